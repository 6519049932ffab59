import dataclasses
import datetime
import gc
import platform
import time

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from qlab.config import COURSE_MODEL
from qlab.measure import PeakBytes, SavedForBackward, median_ms, nvidia_driver, processor_name, provenance, saved_bytes
from qlab.model import Decoder
from qlab.scoring import bits_per_token

FLOAT = 4
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def leaf(n: int, device: str = "cpu") -> torch.Tensor:
    return torch.randn(n, device=device, requires_grad=True)


# ------------------------------------------------------------------ bytes saved for backward


@pytest.mark.parametrize("device", DEVICES)
def test_a_tensor_saved_twice_counts_once(device):
    x = leaf(1000, device)
    assert saved_bytes(lambda: x * x) == 1000 * FLOAT
    assert saved_bytes(lambda: x.exp() * x.sin()) == (1 + 1 + 1) * 1000 * FLOAT  # x, exp(x), sin(x)


def test_views_of_one_storage_count_once_and_keep_all_of_it():
    x = leaf(1000)
    assert saved_bytes(lambda: x[:10] * x[10:20]) == 1000 * FLOAT
    assert saved_bytes(lambda: x.view(10, 100).t().square()) == 1000 * FLOAT


@pytest.mark.parametrize("bias", [False, True])
def test_parameters_and_their_views_do_not_count(bias):
    linear, x = nn.Linear(50, 70, bias=bias), torch.randn(20, 50)
    assert saved_bytes(linear, x) == x.numel() * FLOAT
    assert saved_bytes(lambda: x @ linear.weight.t()[:, :7]) == x.numel() * FLOAT


def test_named_tensors_can_be_left_out():
    x, y = leaf(100), leaf(100)
    assert saved_bytes(lambda: x * y) == 2 * 100 * FLOAT
    assert saved_bytes(lambda: x * y.view(10, 10).flatten(), excluding=[y]) == 100 * FLOAT


def test_what_is_freed_no_longer_counts_though_its_address_is_used_again():
    with SavedForBackward() as saved:
        for _ in range(20):
            (leaf(1000).exp().sum()).backward()
        assert saved.live_bytes == 0
        assert saved.peak_bytes == 1000 * FLOAT


def test_live_bytes_fall_with_the_graph():
    x = leaf(1000)
    with SavedForBackward() as saved:
        y = x.exp()
        z = y.cos()
    assert saved.live_bytes == 1000 * FLOAT  # exp saves its result, and cos its argument: the same
    (z + 1).sum().backward()
    del y, z
    gc.collect()
    assert saved.live_bytes == 0


def test_measures_nest():
    x = leaf(100)
    with SavedForBackward() as outer:
        a = x.exp()
        with SavedForBackward() as inner:
            b = a.sin().exp()
        c = b.exp()
    assert inner.live_bytes == 2 * 100 * FLOAT  # a, and exp(sin(a))
    assert outer.live_bytes == 3 * 100 * FLOAT
    del c


def test_an_exception_passes_and_leaves_no_hook_behind():
    x = leaf(100)
    with pytest.raises(ZeroDivisionError), SavedForBackward() as saved:
        y = x.exp()
        raise ZeroDivisionError
    before = saved.live_bytes
    z = y.exp()
    assert saved.live_bytes == before == 100 * FLOAT
    assert SavedForBackward.active == []
    del z


def test_a_checkpointed_function_keeps_its_input_only():
    x = leaf(1000)
    assert saved_bytes(lambda: x.exp().exp().exp()) == 3 * 1000 * FLOAT
    assert saved_bytes(lambda: checkpoint(lambda t: t.exp().exp().exp(), x, use_reentrant=False)) == 1000 * FLOAT


def test_measuring_does_not_change_gradients():
    def gradient() -> torch.Tensor:
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1)), torch.randn(4, 8)
        model(x).sum().backward()
        return model[0].weight.grad

    plain = gradient()
    with SavedForBackward(), PeakBytes():
        assert torch.equal(gradient(), plain)


# ------------------------------------------------------------------ peak bytes


@pytest.mark.parametrize("device", DEVICES)
def test_the_peak_is_what_lives_at_one_time(device):
    n = 1 << 18  # 1 MiB in FP32: CUDA's allocator rounds to 512 bytes
    with PeakBytes(device=device) as peak:
        for _ in range(3):
            a = torch.zeros(n, device=device)
            b = a + 1
            del a, b
        c = torch.zeros(n, device=device)
        c.view(2, -1).add_(1)
    assert peak.bytes == 2 * n * FLOAT


@pytest.mark.parametrize("device", DEVICES)
def test_peaks_nest(device):
    n = 1 << 18
    with PeakBytes(device=device) as outer:
        a = torch.zeros(3 * n, device=device)
        del a
        with PeakBytes(device=device) as inner:
            b = torch.zeros(n, device=device)
        del b
    assert inner.bytes == n * FLOAT
    assert outer.bytes == 3 * n * FLOAT


@pytest.mark.parametrize("device", DEVICES)
def test_a_peak_survives_an_exception(device):
    n = 1 << 18
    with pytest.raises(ZeroDivisionError), PeakBytes(device=device) as peak:
        a = torch.zeros(n, device=device)
        raise ZeroDivisionError
    assert peak.bytes == a.numel() * FLOAT
    assert PeakBytes.active == []
    torch.zeros(2 * n, device=device)
    assert peak.bytes == n * FLOAT


def test_the_peak_agrees_with_the_profilers_own_account():
    config = dataclasses.replace(COURSE_MODEL, layers=2, width=64, heads=2, kv_heads=2, ffn_width=128)
    decoder, text = Decoder(config), torch.randint(256, (2, 129))

    def step() -> None:
        bits_per_token(decoder(text[:, :-1]), text[:, 1:]).mean().backward()
        decoder.zero_grad()

    step()
    with PeakBytes() as peak:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as account:
        step()
    total = highest = 0
    for event in account.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            highest = max(highest, total)
    # the profiler also sees scratch space inside kernels, which never has the size of a saved tensor
    assert peak.bytes <= highest <= 1.1 * peak.bytes


# ------------------------------------------------------------------ time and provenance


@pytest.mark.parametrize(("repeats", "warmup"), [(1, 0), (5, 2)])
def test_calls_are_those_asked_for(repeats, warmup):
    calls = []
    median_ms(lambda: calls.append(0), repeats=repeats, warmup=warmup)
    assert len(calls) == repeats + warmup


def test_the_median_forgets_an_outlier_and_the_warm_up():
    naps = iter([0.05, 0.0, 0.05, 0.0])
    milliseconds = median_ms(lambda: time.sleep(next(naps)), repeats=3, warmup=1)
    assert milliseconds < 50


def test_milliseconds_are_milliseconds():
    assert median_ms(lambda: time.sleep(0.002), repeats=3, warmup=0) >= 2


@pytest.mark.parametrize(
    ("arguments", "sentence"), [({"repeats": 0}, "repeats .* got 0"), ({"warmup": -1}, "warmup .* got -1")]
)
def test_impossible_counts_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        median_ms(lambda: None, **arguments)


def test_provenance_tells_machine_versions_seed_and_date():
    record = provenance(seed=7, device="cpu")
    assert (record.device, record.driver, record.seed, record.threads) == ("cpu", "none", 7, 1)
    assert (record.torch, record.python) == (torch.__version__, platform.python_version())
    assert datetime.date.fromisoformat(record.date) <= datetime.date.today()
    assert record.processor == processor_name() != ""
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.seed = 8


def test_a_driver_that_does_not_answer_is_unknown():
    assert nvidia_driver() == "unknown" or nvidia_driver()[0].isdigit()


def test_an_operation_that_saves_its_own_output_is_freed():
    x = torch.randn(7, requires_grad=True)
    assert saved_bytes(lambda x: x.exp().detach().sum(), x) == 0
    with SavedForBackward() as saved:
        x.exp().tanh().sum().backward()
    assert saved.live_bytes == 0 and saved.peak_bytes > 0
