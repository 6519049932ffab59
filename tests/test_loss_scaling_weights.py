import copy
import math

import pytest
import torch
from torch import nn

from qlab.formats import BF16, FP16, finite_values, round_to_format
from qlab.loss_scaling import (
    KahanWeights,
    LossScaler,
    MasterWeights,
    NarrowWeights,
    StochasticWeights,
    kahan_add,
    nearest_add,
    stochastic_add,
    swallowed_fraction,
)

TYPES = {torch.float16: FP16, torch.bfloat16: BF16}
both_types = pytest.mark.parametrize("dtype", TYPES, ids=str)
STORES = [MasterWeights, NarrowWeights, StochasticWeights, KahanWeights]


def step_of(weights, dtype):
    """Return the distance from each number to the next one away from zero."""
    fmt = TYPES[dtype]
    exponent = torch.frexp(weights.double()).exponent - 1
    return torch.exp2((exponent.clamp(min=fmt.min_exponent) - fmt.mantissa_bits).double())


def some_weights(dtype, n=4096):
    generator = torch.Generator().manual_seed(4)
    spread = torch.randint(-12, 6, (n,), generator=generator)
    return (torch.randn(n, generator=generator) * torch.exp2(spread)).to(dtype)


@both_types
def test_a_sum_goes_to_the_nearest_number(dtype):
    weights = some_weights(dtype)
    update = torch.randn(len(weights)) * 2.0**-6
    total = nearest_add(weights, update)
    exact = weights.double() + update.double()
    assert total.dtype == dtype
    expected = round_to_format(exact, TYPES[dtype], saturate=False)
    moved = total.float() != expected
    assert moved.sum() <= 2  # FP32 rounds first, which makes a tie of what is within 2^-24 of one
    assert torch.equal(nearest_add(weights, torch.zeros_like(update)), weights)
    assert nearest_add(weights[:1], torch.tensor([math.inf])).item() == math.inf


@both_types
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("start", [1.0, -1.0, 1.9990234375, 3.0, -0.75, 2.0**-14, "subnormal"])
def test_rounding_by_chance_is_right_on_average_and_never_leaves_the_two_neighbors(dtype, share, start):
    draws = 20_000
    start = 3 * TYPES[dtype].min_subnormal if start == "subnormal" else start
    weight = torch.full((draws,), start).to(dtype)
    step = step_of(weight[:1], dtype).item()
    update = torch.full((draws,), math.copysign(share * step, start))
    total = stochastic_add(weight, update, generator=torch.Generator().manual_seed(1))
    steps = (total.double() - weight.double()) / math.copysign(step, start)
    assert total.dtype == dtype
    assert set(steps.tolist()) <= {0.0, 1.0}
    meant = ((weight.float() + update)[0].double().item() - weight[0].double().item()) / math.copysign(step, start)
    deviation = math.sqrt(meant * (1 - meant) / draws)
    assert abs(steps.mean().item() - meant) <= 5 * deviation + 1e-12


@both_types
def test_rounding_by_chance_leaves_numbers_of_the_type_alone(dtype):
    numbers = finite_values(TYPES[dtype]).to(dtype)
    assert torch.equal(stochastic_add(numbers, torch.zeros(len(numbers))), numbers)
    weights = some_weights(dtype)
    onto = nearest_add(weights, step_of(weights, dtype).float())  # a whole step away
    assert torch.equal(stochastic_add(weights, step_of(weights, dtype).float()), onto)


@both_types
def test_the_same_seed_rounds_the_same_way_and_another_does_not(dtype):
    weights, update = some_weights(dtype), torch.randn(4096) * 1e-3
    a, b, other = (stochastic_add(weights, update, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, other)


def test_other_types_have_no_rounding_by_chance():
    with pytest.raises(ValueError, match=r"must be torch\.bfloat16 or torch\.float16, got torch\.float32"):
        stochastic_add(torch.ones(2), torch.ones(2))


@both_types
def test_what_a_compensated_addition_loses_it_remembers(dtype):
    weights, lost = some_weights(dtype), torch.zeros(4096, dtype=dtype)
    update = torch.randn(4096) * 1e-3
    total, lost = kahan_add(weights, lost, update)
    assert total.dtype == lost.dtype == dtype
    wanted = weights.double() + update.double()
    left_over = (wanted - total.double()).abs()
    # the left-over is kept to half a step of itself, and computed in FP32
    bound = left_over * TYPES[dtype].epsilon / 2 + wanted.abs() * 2.0**-23 + TYPES[dtype].min_subnormal
    assert ((total.double() + lost.double() - wanted).abs() <= bound).all()


@both_types
@pytest.mark.parametrize("share", [0.001, 0.1, 0.49])
def test_a_thousand_updates_that_rounding_swallows_arrive_with_compensation(dtype, share):
    many = 1000
    start = torch.tensor([1.0, -1.5, 0.0117, 3.14]).to(dtype)
    update = (share * step_of(start, dtype) / 4).float()
    plain, total, lost = start.clone(), start.clone(), torch.zeros(4, dtype=dtype)
    for _ in range(many):
        plain = nearest_add(plain, update)
        total, lost = kahan_add(total, lost, update)
    assert torch.equal(plain, start)
    wanted = start.double() + many * update.double()
    # the left-over is at most about half a step, and rounded to half a step of itself each time
    step = step_of(wanted, dtype)
    rounding = (step / 2 * TYPES[dtype].epsilon / 2).clamp(min=TYPES[dtype].min_subnormal / 2)
    bound = many * (rounding + step * 2.0**-15)
    assert ((total.double() + lost.double() - wanted).abs() <= bound).all()
    assert ((total.double() - wanted).abs() <= bound + step).all()


@both_types
def test_what_is_swallowed_lies_within_the_two_bounds(dtype):
    digits = TYPES[dtype].mantissa_bits
    weights = torch.randn(20_000)
    sign = torch.where(torch.rand(20_000) < 0.5, 1.0, -1.0)
    size = weights.to(dtype).float().abs() * sign
    assert swallowed_fraction(weights, size * 2.0 ** -(digits + 2) * 0.999, dtype=dtype) == 1
    assert swallowed_fraction(weights, size * 2.0 ** -(digits + 1) * 1.001, dtype=dtype) == 0
    between = [swallowed_fraction(weights, size * 2.0 ** -(digits + 2) * f, dtype=dtype) for f in (1.2, 1.5, 1.8)]
    assert 1 > between[0] > between[1] > between[2] > 0


@both_types
def test_a_tie_is_swallowed_where_the_weight_is_even(dtype):
    half = TYPES[dtype].epsilon / 2
    even, odd = torch.tensor([1.0]), torch.tensor([1 + TYPES[dtype].epsilon])
    for sign, expected in ((1, 1), (-1, 1)):
        assert swallowed_fraction(even, torch.tensor([sign * half / (1 if sign > 0 else 2)]), dtype=dtype) == expected
    assert swallowed_fraction(odd, torch.tensor([half]), dtype=dtype) == 0


def test_the_share_counts_nonzero_updates_only_and_rounds_the_weights_first():
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0001])
    assert swallowed_fraction(weights, torch.tensor([0.0, 0.0, 1e-5, 0.1]), dtype=torch.float16) == 0.5
    assert swallowed_fraction(weights, torch.zeros(4), dtype=torch.float16) == 0
    assert swallowed_fraction(weights.half(), torch.full((4,), 1e-5), dtype=torch.float16) == 1
    assert swallowed_fraction(weights, torch.full((4,), 1e-5), dtype=torch.float32) == 0
    with pytest.raises((ValueError, TypeError), match="updates"):  # the shape checker of the tests may come first
        swallowed_fraction(weights, torch.zeros(3), dtype=torch.float16)


@both_types
def test_masters_take_the_steps_that_fp32_weights_take(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(6, 3).to(dtype)
    weights = list(layer.parameters())
    masters = MasterWeights(weights)
    plain = [nn.Parameter(w.detach().float().clone()) for w in weights]
    ours, theirs = (torch.optim.Adam(p, lr=1e-3) for p in (masters.parameters, plain))
    for step in range(5):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
        layer(x).float().square().sum().backward()
        for wide, weight in zip(plain, weights, strict=True):
            assert weight.grad.dtype == dtype
            wide.grad = weight.grad.float()
        masters.take_gradients()
        assert all(weight.grad is None for weight in weights)
        ours.step()
        theirs.step()
        masters.write_back()
        for weight, master, wide in zip(weights, masters.parameters, plain, strict=True):
            assert master.dtype == torch.float32 and torch.equal(master, wide)
            assert weight.dtype == dtype and weight.requires_grad and torch.equal(weight, wide.to(dtype))


@both_types
@pytest.mark.parametrize("store", STORES, ids=lambda s: s.__name__)
@pytest.mark.parametrize("stored", ["narrow", "FP32"])
def test_small_updates_arrive_but_in_weights_that_round_to_nearest(dtype, store, stored):
    start = torch.linspace(1.05, 1.9, 500)
    weight = nn.Parameter(start.to(dtype) if stored == "narrow" else start.clone())
    kept = store([weight], dtype=None if stored == "narrow" else dtype)
    before = weight.detach().float().clone()
    assert torch.equal(before, start.to(dtype).float())
    update = TYPES[dtype].epsilon / 16
    place = weight.data_ptr()
    optimizer = torch.optim.SGD(kept.parameters, lr=1.0)
    for _ in range(64):
        weight.grad = torch.full_like(weight, update)
        kept.take_gradients()
        optimizer.step()
        kept.write_back()
    moved = (before - weight.detach().float()) / (64 * update)
    assert weight.data_ptr() == place and torch.equal(weight.float(), weight.to(dtype).float())
    if store is NarrowWeights:
        assert not moved.any()
    else:  # four steps each: to half a step in masters, to one with compensation, on average of 500 by chance
        assert moved.mean().item() == pytest.approx(1.0, abs=0.05)
    if store is not MasterWeights:
        assert torch.equal(kept.parameters[0], weight.float())


def test_the_chance_of_two_stores_with_one_seed_is_the_same():
    def after(seed):
        weight = nn.Parameter(torch.ones(300, dtype=torch.bfloat16))
        kept = StochasticWeights([weight], seed=seed)
        with torch.no_grad():
            kept.parameters[0].add_(0.002)
        kept.write_back()
        return weight.detach()

    assert torch.equal(after(1), after(1)) and not torch.equal(after(1), after(2))


def test_weights_of_several_types_each_keep_their_own():
    weights = [nn.Parameter(torch.tensor([1.0001]).to(d)) for d in (torch.float16, torch.float32, torch.bfloat16)]
    masters = MasterWeights(weights)
    assert weights[1].item() == torch.tensor(1.0001).item()
    with torch.no_grad():
        for master in masters.parameters:
            master.add_(0.00001)
    masters.write_back()
    assert [w.dtype for w in weights] == [torch.float16, torch.float32, torch.bfloat16]
    assert weights[1].item() == (torch.tensor(1.0001) + 0.00001).item()


def test_a_weight_without_a_gradient_stays_and_an_overflow_is_seen_in_the_copy():
    weights = [nn.Parameter(torch.ones(2, dtype=torch.float16)) for _ in range(2)]
    masters = MasterWeights(weights)
    weights[0].grad = torch.tensor([math.inf, 1.0], dtype=torch.float16)
    masters.take_gradients()
    assert masters.parameters[1].grad is None
    assert LossScaler(8.0).unscale(masters.parameters) is True
    masters.parameters[0].grad = None
    torch.optim.SGD(masters.parameters, lr=1.0).step()
    masters.write_back()
    assert weights[1].tolist() == [1.0, 1.0]


def test_scaled_fp16_gradients_keep_in_the_copy_what_unscaling_in_fp16_would_lose():
    weight = nn.Parameter(torch.ones(1, dtype=torch.float16))
    masters, scaler = MasterWeights([weight]), LossScaler(2.0**14)
    scaler.scaled((weight * 1.0).sum().float() * 2.0**-26).backward()
    assert weight.grad.item() == 2.0**-12
    masters.take_gradients()
    assert scaler.unscale(masters.parameters) is False
    assert masters.parameters[0].grad.item() == 2.0**-26


@pytest.mark.parametrize("store", STORES, ids=lambda s: s.__name__)
def test_nothing_to_keep_is_refused(store):
    with pytest.raises(ValueError, match="there must be at least one weight, got none"):
        store([])


@pytest.mark.parametrize("store", STORES, ids=lambda s: s.__name__)
def test_the_copies_are_not_the_weights(store):
    weight = nn.Parameter(torch.tensor([1.23456]))
    kept = store([weight], dtype=torch.float16)
    rounded = copy.copy(weight.item())
    with torch.no_grad():
        kept.parameters[0].add_(1.0)
    assert weight.item() == rounded == torch.tensor(1.23456).half().float().item()


@pytest.mark.gpu
@pytest.mark.parametrize("store", STORES, ids=lambda s: s.__name__)
def test_weights_on_a_gpu(store):
    weight = nn.Parameter(torch.ones(100, dtype=torch.float16, device="cuda"))
    kept = store([weight])
    with torch.no_grad():
        kept.parameters[0].add_(0.5)
    kept.write_back()
    assert weight.is_cuda and torch.equal(weight, torch.full_like(weight, 1.5))
