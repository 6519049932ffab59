import pytest
import torch

from qlab.quantize import per_group, quantize_symmetric
from qlab.quantized_products import GROUP_SIZE, fused_int4_linear, measure_linears

# Of a product of normal numbers, relative to its norm. FP32: rounding in sums. BF16: weight and result rounded, each by
# up to 2^-9, with a root mean square of about 0.4 of that. int8: steps of 3.3 σ / 127 in weight and input, over √12. 4
# bits: steps of 2.5 σ / 7, over √12, and what BF16 adds.
BOUNDS = {
    "FP32": (1e-8, 1e-6),
    "BF16": (5e-4, 4e-3),
    "int8 codes, scales found on the spot": (5e-3, 2e-2),
    "4-bit weights, dequantized at each call": (7e-2, 0.14),
    "4-bit weights, PyTorch's fused kernel": (7e-2, 0.14),
}


def within_bounds(found):
    for one in found:
        lowest, highest = BOUNDS[one.name]
        assert lowest < one.relative_error < highest, one
        assert one.microseconds > 0


def test_every_way_is_measured_and_as_wrong_as_its_bits():
    found = measure_linears(width=128, tokens=(1, 40), device="cpu", repeats=1)
    assert [one.name for one in found] == [*BOUNDS] * 2
    assert [one.tokens for one in found] == [1] * 5 + [40] * 5
    within_bounds(found)


def test_a_seed_decides_the_numbers():
    first, again, other = (
        [one.relative_error for one in measure_linears(width=128, tokens=(2,), device="cpu", repeats=1, seed=seed)]
        for seed in (3, 3, 4)
    )
    assert first == again != other


def same_as_dequantized(device):
    weight = torch.randn(128, 256)
    x = torch.randn(5, 256).bfloat16()
    expected = x.double() @ quantize_symmetric(weight, bits=4, tile=per_group(GROUP_SIZE)).dequantize().double().T
    y = fused_int4_linear(weight.to(device))(x.to(device)).cpu().double()
    # scales and results in BF16, and products and sums in BF16 or better
    assert (y - expected).norm() < 2**-7 * expected.norm()


def test_the_fused_kernel_takes_the_codes_for_what_they_stand_for():
    same_as_dequantized("cpu")


@pytest.mark.parametrize("width", [0, 64, 100, 129, -128])
def test_a_width_that_the_layouts_refuse(width):
    with pytest.raises(ValueError, match=f"width must be a multiple of 128, got {width}"):
        measure_linears(width=width, device="cpu")


def test_counts_below_one_are_refused():
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        measure_linears(width=128, tokens=(4, 0), device="cpu")
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        measure_linears(width=128, tokens=(4,), device="cpu", repeats=0)


@pytest.mark.gpu
def test_a_gpu_stays_within_the_same_bounds():
    found = measure_linears(width=256, tokens=(1, 64), repeats=1)
    few, many = [one for one in found if one.tokens == 1], [one for one in found if one.tokens == 64]
    assert [one.name for one in many] == [*BOUNDS]
    assert [one.name for one in few] == [name for name in BOUNDS if not name.startswith("int8")]
    within_bounds(found)
    same_as_dequantized("cuda")
