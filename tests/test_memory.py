from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from qlab.activations import BF16, BF16_AUTOCAST, FP32, Run, activation_bytes
from qlab.budget import largest_batch, precision_for, training_bill
from qlab.config import COURSE_MODEL, GPT2_XL, LLAMA_2_70B, NAMED_CONFIGS, count_parameters
from qlab.measure import PeakBytes, saved_bytes
from qlab.memory import (
    ADAM_8BIT,
    FP32_ADAM,
    GB,
    LORA,
    MIXED_ADAM,
    NF4_DOUBLE_QUANTIZED_BYTES,
    QLORA,
    RECIPES,
    SGD_MOMENTUM,
    GiB,
    adapter_parameters,
    boundaries_and_one_layer_bytes,
    gradient_buffer_bytes,
    model_state_bytes,
    named_recipe,
    rule_of_thumb_activation_bytes,
    square_root_activation_bytes,
    state_bytes,
    zero_state_bytes,
)
from qlab.model import Decoder, run_checkpointed, run_plainly
from qlab.scoring import bits_per_token
from qlab.train_course_model import matmul_attention

SMALL = replace(COURSE_MODEL, sequence=64)
GPT2_LIKE = replace(
    SMALL, norm="layernorm", positions="learned", gated=False, biases=True, tied_embeddings=False, ffn_width=1024
)
SHAPES = {
    "course": SMALL,
    "narrow": replace(SMALL, width=128, ffn_width=352),
    "wide": replace(SMALL, width=384, heads=6, kv_heads=6, ffn_width=1024, layers=2),
    "deep": replace(SMALL, layers=8, width=128, ffn_width=352),
    "grouped": replace(SMALL, kv_heads=1),
    "gpt2-like": GPT2_LIKE,
}
PLAIN_BF16_ADAM = replace(
    FP32_ADAM, name="bf16-adam", matrix_bytes=2, other_bytes=2, gradient_bytes=2, optimizer_bytes=4
)
LOADS = [(1, 64), (4, 64), (3, 20)]


# ------------------------------------------------------------------ published figures


def test_mixed_adam_costs_sixteen_bytes_a_parameter():
    states = model_state_bytes(1_500_000_000, MIXED_ADAM)
    assert states.total == 24 * GB
    assert (states.weights, states.gradients, states.master, states.optimizer) == (3 * GB, 3 * GB, 6 * GB, 12 * GB)


def test_seventy_billion_in_fp32_is_260_gibibytes_and_1043_with_adam():
    states = model_state_bytes(70 * 10**9, FP32_ADAM)
    assert states.weights == 280 * GB
    assert round(states.weights / GiB, 2) == 260.77
    assert int(states.total / GiB) == 1043


def test_seventy_billion_in_four_bits_is_not_65_gb():
    plain, constants, double = (70e9 * bits / 8 / GiB for bits in (4, 4 + 32 / 64, 8 * NF4_DOUBLE_QUANTIZED_BYTES))
    assert [round(figure, 1) for figure in (plain, constants, double)] == [32.6, 36.7, 33.6]
    assert round(8 * NF4_DOUBLE_QUANTIZED_BYTES, 3) == 4.127


def test_gpt2_activations_are_60_gb_and_6_or_9_with_checkpointing():
    figures = [
        f(GPT2_XL, batch=32, sequence=1024) / GB
        for f in (rule_of_thumb_activation_bytes, boundaries_and_one_layer_bytes, square_root_activation_bytes)
    ]
    assert [round(figure, 1) for figure in figures] == [60.4, 6.3, 8.7]


def test_the_flattened_gradient_buffer_of_gpt2_is_6_gb():
    assert gradient_buffer_bytes(1_500_000_000) == 6 * GB


@pytest.mark.parametrize(("stage", "published"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_gives_the_figures_of_its_paper(stage, published):
    # arXiv:1910.02054, figure 1: 7.5 B parameters on 64 devices, mixed Adam
    states = zero_state_bytes(model_state_bytes(7_500_000_000, MIXED_ADAM), stage=stage, devices=64)
    assert round(states.total / GB, 1) == published


# ------------------------------------------------------------------ states


@pytest.mark.parametrize(
    ("recipe", "bytes_each"), [(FP32_ADAM, 16), (MIXED_ADAM, 16), (SGD_MOMENTUM, 12), (ADAM_8BIT, 10.03125)]
)
def test_states_per_parameter(recipe, bytes_each):
    assert model_state_bytes(10**9, recipe).total == bytes_each * 10**9


def test_adapters_pay_for_gradients_and_the_frozen_base_does_not():
    adapters = adapter_parameters(LLAMA_2_70B, rank=16)
    lora, qlora = state_bytes(LLAMA_2_70B, LORA), state_bytes(LLAMA_2_70B, QLORA)
    assert lora.gradients == qlora.gradients == 4 * adapters
    assert lora.optimizer == qlora.optimizer == 8 * adapters
    assert lora.weights == 2 * count_parameters(LLAMA_2_70B) + 4 * adapters
    assert qlora.weights / lora.weights < 0.27  # 4.127 bits of 16, and embeddings that stay at 16


def test_adapter_parameters_are_those_of_real_adapters():
    decoder = Decoder(SMALL)
    linears = [module for layer in decoder.layers for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    assert adapter_parameters(SMALL, rank=8) == sum(
        8 * (linear.in_features + linear.out_features) for linear in linears
    )


@pytest.mark.parametrize("devices", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_zero_loses_nothing_and_each_stage_saves(recipe, devices):
    states = state_bytes(COURSE_MODEL, recipe)
    shares = [zero_state_bytes(states, stage=stage, devices=devices) for stage in range(4)]
    assert shares[0] == states
    assert all(later.total <= earlier.total for earlier, later in pairwise(shares))
    assert 0 <= devices * shares[3].total - states.total < 4 * devices  # each of four parts rounds up


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: model_state_bytes(-1, FP32_ADAM), "parameters must be at least 0, got -1"),
        (lambda: model_state_bytes(5, FP32_ADAM, others=6), "others must be at most parameters, got 6 and 5"),
        (lambda: zero_state_bytes(model_state_bytes(1, FP32_ADAM), stage=4, devices=2), "stage must be .* got 4"),
        (lambda: zero_state_bytes(model_state_bytes(1, FP32_ADAM), stage=1, devices=0), "devices must .* got 0"),
        (lambda: named_recipe("adamw"), "no recipe is called 'adamw'; the names are fp32-adam"),
        (lambda: Run(batch=0, sequence=8), "batch must be at least 1, got 0"),
        (lambda: activation_bytes(SMALL, Run(batch=1, sequence=65)), "sequence must be at most .* 64, got 65"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


# ------------------------------------------------------------------ predicted against measured


def training_loss(config, run, attention=F.scaled_dot_product_attention):
    run_layer = run_checkpointed if run.checkpointed else run_plainly
    decoder = Decoder(config, attention=attention, run_layer=run_layer)
    decoder = decoder.bfloat16() if run.precision == BF16 else decoder
    inputs, targets = torch.randint(0, config.vocabulary, (2, run.batch, run.sequence)).unbind()

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=run.precision.casts):
            logits = decoder(inputs)
        return bits_per_token(logits, targets).mean()

    return decoder, loss


@pytest.mark.parametrize("precision", [FP32, BF16_AUTOCAST, BF16], ids=lambda precision: precision.name)
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_predicted_activations_are_within_five_percent_of_the_measured(shape, checkpointed, precision):
    for batch, sequence in LOADS:
        run = Run(batch=batch, sequence=sequence, checkpointed=checkpointed, precision=precision)
        measured = saved_bytes(training_loss(SHAPES[shape], run)[1])
        # the promise is 5 %; with torch 2.13 on a CPU the two are equal to the byte
        assert activation_bytes(SHAPES[shape], run).total == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("precision", "score_bytes"), [(FP32, 4), (BF16_AUTOCAST, 2)])
def test_attention_by_matrix_products_saves_its_scores(precision, score_bytes):
    run = Run(batch=2, sequence=64, precision=precision, score_bytes=score_bytes)
    measured = saved_bytes(training_loss(SMALL, run, matmul_attention)[1])
    assert activation_bytes(SMALL, run).total == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    "config", [c for c in NAMED_CONFIGS.values() if c.layers < 100], ids=lambda config: config.name
)
def test_predictions_hold_for_the_public_models_on_tensors_without_memory(config, checkpointed):
    run = Run(batch=2, sequence=512, checkpointed=checkpointed, score_bytes=4)
    with torch.device("meta"):
        measured = saved_bytes(training_loss(config, run, matmul_attention)[1])
    assert activation_bytes(config, run).total == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("precision", [FP32, BF16], ids=lambda precision: precision.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_recomputed_layer_is_what_one_layer_saves_beyond_its_input(shape, precision):
    config, run = SHAPES[shape], Run(batch=2, sequence=64, checkpointed=True, precision=precision)
    dtype = torch.bfloat16 if precision == BF16 else torch.float32
    layer, x = Decoder(config).to(dtype).layers[0], torch.randn(2, 64, config.width, dtype=dtype, requires_grad=True)
    measured = saved_bytes(layer, x, excluding=[x])
    assert activation_bytes(config, run).recomputed_layer == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_predicted_peak_of_a_step_is_within_ten_percent_of_the_measured(shape, checkpointed):
    config = SHAPES[shape]
    for precision, recipe in ((FP32, FP32_ADAM), (BF16_AUTOCAST, FP32_ADAM), (BF16, PLAIN_BF16_ADAM)):
        run = Run(batch=3, sequence=64, checkpointed=checkpointed, precision=precision)
        decoder, loss = training_loss(config, run)
        optimizer = torch.optim.AdamW(decoder.parameters(), fused=True)

        def step(loss=loss, optimizer=optimizer) -> None:
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # the optimizer makes its states
        with PeakBytes() as peak:
            step()
        lasting = 3 * precision.stream_bytes * count_parameters(config)  # weights and two optimizer states
        assert training_bill(config, recipe, run).peak == pytest.approx(lasting + peak.bytes, rel=0.10)


# ------------------------------------------------------------------ the bill


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("config", NAMED_CONFIGS.values(), ids=NAMED_CONFIGS)
def test_the_peak_grows_with_the_batch_and_is_at_most_the_sum_of_its_parts(config, recipe):
    peaks = []
    for batch in (1, 2, 8):
        bill = training_bill(config, recipe, Run(batch=batch, sequence=512))
        peaks.append(bill.peak)
        assert bill.states.weights + bill.states.optimizer < bill.peak
    assert peaks == sorted(set(peaks))


@pytest.mark.parametrize("budget_gb", [1, 2.5, 40])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_largest_batch_fits_and_one_more_does_not(budget_gb, checkpointed):
    run = Run(batch=1, sequence=512, checkpointed=checkpointed)
    budget = int(budget_gb * GB)
    batch = largest_batch(budget, COURSE_MODEL, FP32_ADAM, run)
    peaks = [training_bill(COURSE_MODEL, FP32_ADAM, replace(run, batch=b)).peak for b in (batch, batch + 1)]
    assert peaks[0] <= budget < peaks[1]


def test_weights_in_16_bits_are_multiplied_in_16_bits():
    assert [precision_for(recipe).name for recipe in RECIPES.values()] == [
        "fp32",
        "bf16",
        "fp32",
        "bf16",
        "bf16",
        "bf16",
    ]


def test_a_budget_too_small_for_batch_one_says_by_how_much():
    with pytest.raises(ValueError, match=r"batch 1 needs 25\.\d\d GB, 9\.\d\d GB more than the 16\.00 GB given"):
        largest_batch(16 * GB, GPT2_XL, FP32_ADAM, Run(batch=1, sequence=128))
