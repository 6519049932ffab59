import copy
import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from qlab.config import ModelConfig
from qlab.loss_scaling import EVERYTHING, LossScaler, StaticScaler
from qlab.model import Decoder
from qlab.precision_runs import (
    BF16_KAHAN,
    BF16_MIXED,
    BF16_NEAREST,
    BF16_STOCHASTIC,
    FP16_BARE,
    FP16_NO_MASTERS,
    FP16_SCALED,
    FP32_RUN,
    NARROW_WEIGHTS,
    REGIMES,
    PrecisionRecipe,
    Regime,
    run,
)

TINY = ModelConfig(
    name="tiny",
    layers=2,
    width=32,
    heads=2,
    kv_heads=2,
    ffn_width=48,
    vocabulary=256,
    sequence=32,
    norm="rmsnorm",
    positions="rotary",
    gated=True,
    biases=False,
    tied_embeddings=True,
)
WORDS = b"the scale of a loss is a power of two; its gradients are unscaled before they are clipped. "
TEXT = torch.frombuffer(bytearray(WORDS * 8), dtype=torch.uint8)
SHORT = PrecisionRecipe(steps=5, batch=2, sequence=16, learning_rate=3e-3)
LONG = replace(SHORT, steps=25)


def trained(regime, recipe=SHORT, *, device="cpu"):
    torch.manual_seed(1)
    model = Decoder(TINY).to(device)
    return run(model, TEXT, regime, recipe), model


def on_grid(x, dtype):
    return torch.equal(x, x.to(dtype).float())


def plain_loop(recipe):
    """Train the same model as PyTorch's own examples do, with nothing of qlab's step in it."""
    torch.manual_seed(1)
    model = Decoder(TINY)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), foreach=False)
    generator, losses = torch.Generator().manual_seed(recipe.seed), []
    for step in range(recipe.steps):
        starts = torch.randint(len(TEXT) - recipe.sequence, (recipe.batch,), generator=generator)
        windows = torch.stack([TEXT[s : s + recipe.sequence + 1] for s in starts.tolist()]).long()
        logits = model(windows[:, :-1])
        nats = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
        loss = (nats / math.log(2)).view(windows[:, 1:].shape).mean() * math.log(2)
        losses.append(loss.item() / math.log(2))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_norm, foreach=False)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - step / recipe.steps)
        optimizer.step()
    return losses, model


def test_the_fp32_run_is_a_plain_training_loop_bit_by_bit():
    told, model = trained(FP32_RUN)
    losses, plain = plain_loop(SHORT)
    assert told.losses == losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert told.regime == "FP32" and told.skipped == [] and told.failed_at is None
    assert told.scales == [1.0] * SHORT.steps


@pytest.mark.parametrize("regime", [FP16_SCALED, BF16_MIXED, FP16_BARE, *NARROW_WEIGHTS], ids=lambda r: r.name)
def test_a_run_is_the_same_again_and_another_seed_draws_other_text(regime):
    first, again = trained(regime)[0], trained(regime)[0]
    assert repr(first) == repr(again)  # a lost loss is NaN in both
    assert trained(regime, replace(SHORT, seed=1))[0].losses != first.losses


def test_every_regime_reads_the_same_text():
    seen = {}
    for regime in (*REGIMES, *NARROW_WEIGHTS):
        torch.manual_seed(1)
        model, read = Decoder(TINY), []
        model.register_forward_pre_hook(lambda _, inputs, read=read: read.append(inputs[0].clone()))
        run(model, TEXT, regime, SHORT)
        seen[regime.name] = read
    expected = seen["FP32"]
    assert len(expected) == SHORT.steps
    for name, read in seen.items():
        assert len(read) <= len(expected), name
        assert all(torch.equal(a, b) for a, b in zip(read, expected, strict=False)), name
    assert len(seen) == len(REGIMES) + len(NARROW_WEIGHTS)


def test_the_first_loss_differs_from_fp32_s_by_what_rounding_the_products_adds():
    wide, fp16, bf16 = (
        trained(regime, replace(SHORT, steps=1))[0].losses[0] for regime in (FP32_RUN, FP16_SCALED, BF16_MIXED)
    )
    # about thirty roundings lie between text and loss, and the logits of a new model are small: half a step of each
    assert 0 < abs(fp16 - wide) < 30 * 2.0**-11
    assert 0 < abs(bf16 - wide) < 30 * 2.0**-8
    assert abs(fp16 - wide) < abs(bf16 - wide)


def test_fp16_with_a_scaled_loss_and_bf16_learn_as_fp32_does():
    wide = trained(FP32_RUN, LONG)[0].losses
    assert wide[-1] < wide[0] - 1.5
    for regime in (FP16_SCALED, BF16_MIXED):
        told, _ = trained(regime, LONG)
        assert told.failed_at is None
        skipped = len(told.skipped)
        # another seed moves the last losses by a tenth; a skipped step delays all that follow by one, 0.1 bits here
        ends = [sum(losses[-5:]) / 5 for losses in (told.losses, wide)]
        assert abs(ends[0] - ends[1]) < 0.02 + 0.1 * skipped


def test_the_scale_falls_with_every_skip_and_weights_stay():
    many = replace(SHORT, steps=6)
    too_large = Regime("too large", torch.float16, scaler=lambda: LossScaler(2.0**40))
    told, model = trained(too_large, many)
    torch.manual_seed(1)
    assert told.skipped == list(range(6))
    assert told.scales == [2.0 ** (40 - step) for step in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), Decoder(TINY).parameters(), strict=True))


def test_a_static_scale_that_fits_changes_nothing_in_fp32():
    told, model = trained(Regime("scaled FP32", torch.float32, scaler=lambda: StaticScaler(2.0**10)))
    plain, other = trained(FP32_RUN)
    assert told.losses == plain.losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_each_run_has_a_scaler_of_its_own():
    first = trained(Regime("x", torch.float16, scaler=lambda: LossScaler(2.0**40)), replace(SHORT, steps=3))[0]
    again = trained(FP16_SCALED, replace(SHORT, steps=1))[0]
    assert again.scales == [65536.0] and first.scales[0] == 2.0**40
    assert trained(FP16_SCALED, replace(SHORT, steps=1))[0].scales == [65536.0]


def test_bare_fp16_fails_or_falls_behind():
    wide, bare = trained(FP32_RUN, LONG)[0], trained(FP16_BARE, LONG)[0]
    behind = bare.failed_at is None and sum(bare.losses[-5:]) / 5 > sum(wide.losses[-5:]) / 5 + 0.1
    assert bare.failed_at is not None or behind
    assert bare.skipped == []  # nothing looks for an overflow there
    if bare.failed_at is not None:
        assert not math.isfinite(bare.losses[-1]) and len(bare.losses) == bare.failed_at + 1


def test_bare_fp16_keeps_weights_and_all_it_computes_on_the_grid():
    _, model = trained(FP16_BARE, replace(SHORT, steps=1))
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32 and on_grid(parameter.nan_to_num(), torch.float16)


@pytest.mark.parametrize(
    ("regime", "dtype"),
    [
        (FP16_NO_MASTERS, torch.float16),
        (BF16_NEAREST, torch.bfloat16),
        (BF16_STOCHASTIC, torch.bfloat16),
        (BF16_KAHAN, torch.bfloat16),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_narrow_weights_are_narrow_and_masters_are_not(regime, dtype):
    for parameter in trained(regime)[1].parameters():
        assert on_grid(parameter, dtype)
    for mixed in (FP16_SCALED, BF16_MIXED):
        assert not all(on_grid(parameter, dtype) for parameter in trained(mixed)[1].parameters())


def test_small_updates_are_swallowed_by_nearest_rounding_only():
    slow = replace(LONG, learning_rate=1e-4, steps=12)
    torch.manual_seed(1)
    start = copy.deepcopy(Decoder(TINY))
    moved = {}
    for regime in (BF16_NEAREST, BF16_STOCHASTIC, BF16_KAHAN):
        model = trained(regime, slow)[1]
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        # far from zero: where an update of 1e-4 is under half a step of BF16, 2.4e-4, and twelve of them are not
        moved[regime.name] = sum(int(((a != b.bfloat16().float()) & (b.abs() > 2.0**-4)).sum()) for a, b in pairs)
    assert moved[BF16_NEAREST.name] == 0
    assert moved[BF16_STOCHASTIC.name] > 0 and moved[BF16_KAHAN.name] > 0


def test_a_lost_loss_ends_the_run_there():
    torch.manual_seed(1)
    model = Decoder(TINY)
    with torch.no_grad():
        model.embedding.weight.mul_(1e30)
    told = run(model, TEXT, Regime("FP16 everything", torch.float16, EVERYTHING), SHORT)
    assert told.failed_at == 0 and len(told.losses) == 1 and not math.isfinite(told.losses[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"sequence": -1}, "sequence must be at least 1, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and finite, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0 and finite, got nan"),
        ({"max_norm": 0.0}, "max_norm must be above 0, got 0.0"),
        ({"max_norm": math.nan}, "max_norm must be above 0, got nan"),
    ],
)
def test_recipes_that_are_none_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PrecisionRecipe(**change)


def test_text_that_is_too_short_is_refused_and_the_shortest_is_enough():
    with pytest.raises(ValueError, match="a window of 16 needs at least 17 bytes, got 16"):
        run(Decoder(TINY), TEXT[:16], FP32_RUN, SHORT)
    assert len(run(Decoder(TINY), TEXT[:17], FP32_RUN, SHORT).losses) == SHORT.steps


@pytest.mark.gpu
@pytest.mark.parametrize("regime", [*REGIMES, *NARROW_WEIGHTS], ids=lambda r: r.name)
def test_on_a_gpu_products_run_in_the_real_type(regime):
    torch.manual_seed(1)
    model, seen = Decoder(TINY).cuda(), []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda *hooked: seen.append(hooked[-1].dtype))
    told = run(model, TEXT, regime, SHORT)
    assert set(seen) == {regime.dtype}
    expected = regime.dtype if regime.all_narrow else torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    if regime is not FP16_BARE:
        assert told.failed_at is None
        wide = trained(FP32_RUN, device="cuda")[0].losses
        assert abs(told.losses[0] - wide[0]) < 30 * 2.0**-8
