import math

import pytest
import torch

from qlab.calibrate import Entropy, LeastSquares, MinMax, MovingAverage, Percentile, observers
from qlab.calibrate.histogram import BINS, Histogram
from qlab.quantize import quantize_with

OBSERVERS = {
    "min-max": MinMax,
    "moving average": MovingAverage,
    "percentile": Percentile,
    "least squares": lambda: LeastSquares(bits=4),
    "entropy": lambda: Entropy(bits=8),
}


def seen(observer, *batches):
    for batch in batches:
        observer.observe(batch)
    return observer


def histogram_of(*batches) -> Histogram:
    made = Histogram()
    for batch in batches:
        made.add(batch)
    return made


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-31, 1.0, 1e30, 3e38])
def test_a_histogram_holds_every_value_of_any_size(scale):
    x = torch.tensor([-1.0, -0.5, 0.0, 0.25, 1.0]) * scale
    made = histogram_of(x, x.double())
    assert made.counts.sum() == 10
    assert (made.low, made.high) == (x.min().item(), x.max().item())
    if scale > 1e-30:
        assert made.limit / 2 < scale <= made.limit
        assert made.counts.nonzero().numel() == 5


def test_merged_bins_are_those_of_one_look_at_everything():
    batches = [torch.randn(1000) * 4.0**place for place in range(-3, 4)]
    made, whole = histogram_of(*batches), histogram_of(torch.cat(batches))
    assert made.limit == whole.limit
    assert torch.equal(made.counts, whole.counts)


def test_values_at_the_limit_stay_inside():
    made = histogram_of(torch.tensor([4.0, -4.0]), torch.tensor([3.999, 4.0]))
    assert made.limit == 4
    assert made.counts[0] == 1 and made.counts[-1] == 3


def test_more_values_in_a_bin_than_fp32_counts():
    made = histogram_of(torch.zeros(2**24 + 5, dtype=torch.float16))
    assert made.counts.sum() == 2**24 + 5


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_quantiles_are_right_to_a_bin(share, dtype):
    x = torch.randn(20_001).mul(3).add(1).to(dtype)
    made = histogram_of(*x.split(3000))
    width = 2 * made.limit / BINS
    exact = torch.quantile(x.double(), share).item()
    assert abs(made.quantile(share) - exact) <= 2 * width  # its own bin, and the gap between two values far out


def test_quantiles_of_evenly_spread_values_fall_between_the_edges_of_a_bin():
    made = histogram_of(torch.linspace(0, 1, 1_000_001))
    for share in (0.1, 0.123456, 0.9):
        assert abs(made.quantile(share) - share) <= 1e-5  # a hundredth of a bin, where 488 values lie


def test_min_max_is_the_extremes_of_all_batches_widened_to_zero():
    assert seen(MinMax(), torch.tensor([1.0, 2.0]), torch.tensor([3.0])).range() == (0.0, 3.0)
    assert seen(MinMax(), torch.tensor([-1.0]), torch.tensor([-3.0, -2.0])).range() == (-3.0, 0.0)


def test_a_moving_average_starts_from_the_first_batch():
    observer = seen(MovingAverage(momentum=0.75), torch.tensor([-1.0, 1.0]), torch.tensor([-5.0, 9.0]))
    assert observer.range() == (0.75 * -1 + 0.25 * -5, 0.75 * 1 + 0.25 * 9)


def test_a_percentile_cuts_both_tails_alike():
    x = torch.linspace(-1, 3, 100_001)
    low, high = seen(Percentile(percent=90), x).range()
    width = 2 * 4 / BINS
    assert abs(low + 0.8) <= width and abs(high - 2.8) <= width
    assert seen(Percentile(percent=100), x).range() == (-1.0, 3.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_least_squares_clips_no_worse_than_any_other_range_it_could_name(bits):
    x = torch.distributions.Laplace(0.0, 1.0).sample((20_000,))

    def cost(clip):
        step = clip / (2 ** (bits - 1) - 1)
        return ((x / step).round().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) * step - x).square().mean().item()

    low, high = seen(LeastSquares(bits=bits), x).range()
    assert max(-low, high) <= x.abs().max()
    assert cost(max(-low, high)) <= 1.02 * min(cost(clip) for clip in torch.linspace(0.05, 1, 300) * x.abs().max())


def migacz(counts: list[float], levels: int, stride: int) -> int:
    """Return the best number of bins, with plain loops over plain numbers."""
    best, found = math.inf, 0
    for bins in range(max(levels, stride), len(counts) + 1, stride):
        inside, tail = counts[:bins], sum(counts[bins:])
        members = [[] for _ in range(levels)]
        for k, count in enumerate(inside):
            if count:
                members[k * levels // bins].append(k)
        spread = {k: sum(inside[m] for m in level) / len(level) for level in members for k in level}
        if not spread:
            continue
        real, covered = sum(counts), sum(spread.values())
        inside[-1] += tail
        pairs = [(p / real, max(spread.get(k, 0) / covered, 1e-12)) for k, p in enumerate(inside) if p]
        divergence = sum(p * math.log(p / q) for p, q in pairs)
        if divergence < best - 1e-12:
            best, found = divergence, bins
    return found


@pytest.mark.parametrize("bits", [2, 3, 5])  # these three find different clips
def test_entropy_agrees_with_loops_over_plain_numbers(bits, monkeypatch):
    monkeypatch.setattr(observers, "KL_STRIDE", 32)  # the loops are slow
    x = torch.cat([torch.randn(20_000), torch.tensor([7.9, -6.0])])
    observer = seen(Entropy(bits=bits), x)
    low, high = observer.range()
    best = migacz(observer.seen.magnitudes().tolist(), 2 ** (bits - 1), stride=32)
    clip = observer.seen.limit * best / (BINS // 2)
    assert (low, high) == (max(-clip, -6.0), min(clip, torch.tensor(7.9).item()))


def test_entropy_cuts_a_far_outlier():
    x = torch.cat([torch.randn(50_000), torch.tensor([40.0])])
    low, high = seen(Entropy(bits=8), x).range()
    assert 3 < high < 20 and low == x.min()


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-40, 3e38])
def test_a_constant_tensor_has_a_range_that_holds_it(name, value):
    x = torch.full((100,), value)
    observer = seen(OBSERVERS[name](), x, x)
    low, high = observer.range()
    assert low <= 0 <= high
    grid = observer.grid(bits=8)
    assert grid.scale.isfinite().all() and grid.scale > 0
    back = quantize_with(x, grid).dequantize()
    assert ((back - x).abs() <= grid.scale / 2 * 1.001).all()


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_observer_without_data_says_so(name):
    with pytest.raises(ValueError, match=r"no calibration data.* saw 0"):
        OBSERVERS[name]().range()
    with pytest.raises(ValueError, match="no calibration data"):
        OBSERVERS[name]().grid(bits=8)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_batch_is_refused_and_changes_nothing(name, bad):
    good = torch.randn(500)
    observer = seen(OBSERVERS[name](), good)
    before = observer.range()
    with pytest.raises(ValueError, match="finite, and holds 2 NaN or infinite values"):
        observer.observe(torch.tensor([1.0, bad, -90.0, bad]))
    with pytest.raises(ValueError, match=r"at least one value, got shape \(0, 4\)"):
        observer.observe(torch.zeros(0, 4))
    assert observer.range() == before


def test_fp64_beyond_fp32_is_refused():
    with pytest.raises(ValueError, match="holds 1 NaN"):
        MinMax().observe(torch.tensor([1.0, 1e300], dtype=torch.float64))


@pytest.mark.parametrize("make", [LeastSquares, Entropy])
@pytest.mark.parametrize("bits", [-1, 0, 1, 9])
def test_bits_out_of_range_are_refused(make, bits):
    with pytest.raises(ValueError, match=f"bits must be 2 to 8, got {bits}"):
        make(bits=bits)


def test_settings_out_of_range_are_refused():
    for percent in (0, -1, 100.1, math.nan):
        with pytest.raises(ValueError, match=f"percent must be above 0 and at most 100, got {percent}"):
            Percentile(percent=percent)
    for momentum in (-0.1, 1, math.nan):
        with pytest.raises(ValueError, match=f"momentum must be at least 0 and below 1, got {momentum}"):
            MovingAverage(momentum=momentum)
    with pytest.raises(ValueError, match="bits must be 2 to 8, got 9"):
        seen(MinMax(), torch.ones(3)).grid(bits=9)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OBSERVERS)
def test_a_gpu_gives_the_same_range(name):
    x = torch.randn(10_000)
    on_cpu, on_gpu = seen(OBSERVERS[name](), x).range(), seen(OBSERVERS[name](), x.cuda()).range()
    assert on_gpu == pytest.approx(on_cpu, rel=2 / BINS)
