"""The fused Adam kernel against Adam in FP64 on the same codes, on the device it runs on: interpreted or compiled."""

import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from qlab.attention_triton import DEVICE
from qlab.codebooks import dynamic_map, nearest_codes
from qlab.codebooks.nearest import search_of
from qlab.optimizers_triton import FusedMoment, FusedRates, accepts, fused_adam8bit_
from qlab.optimizers_triton.adam import check_update

MAPS = dynamic_map(signed=True), dynamic_map(signed=False)
SIZES = [(5000, 256), (1, 256), (256, 256), (777, 100), (40, 1), (9000, 4096), (2048, 64)]
ADAM = FusedRates(step_size=1e-2 / (1 - 0.9**3), root_correction=math.sqrt(1 - 0.999**3), betas=(0.9, 0.999), eps=1e-8)
ROUNDINGS = 16 * 2**-24  # of FP32, one for each operation on the way


def moment(values: int, block_size: int, codebook: torch.Tensor) -> FusedMoment:
    """Draw a moment that is under way."""
    levels = codebook.to(DEVICE)
    absmax = torch.rand(-(-values // block_size), device=DEVICE) * 1e-2
    codes = torch.randint(256, (values,), dtype=torch.uint8, device=DEVICE)
    return FusedMoment(codes, absmax, levels, search_of(levels, levels.device).table)


def values_of(one: FusedMoment, block_size: int) -> torch.Tensor:
    """Return a moment's values in FP64."""
    scales = one.absmax.double().repeat_interleave(block_size)[: len(one.codes)]
    return one.levels.double()[one.codes.long()] * scales


def exact(parameter, gradient, moments, rates: FusedRates, block_size: int):
    """Compute both new moments and the new parameter in FP64."""
    p = parameter.double()
    g = gradient.double() + rates.coupled_decay * p
    first, second = (values_of(one, block_size) for one in moments)
    first = rates.betas[0] * first + (1 - rates.betas[0]) * g
    second = rates.betas[1] * second + (1 - rates.betas[1]) * g * g
    step = rates.step_size * first / (second.sqrt() / rates.root_correction + rates.eps)
    return first, second, p * rates.kept - step, step


def assert_coded(one: FusedMoment, expected: torch.Tensor, block_size: int) -> None:
    """Require the absmax of each block, and the nearest level of each value but for what rounding moves over a tie."""
    padded = torch.nn.functional.pad(expected, (0, -len(expected) % block_size)).view(-1, block_size)
    largest = padded.abs().amax(1)
    assert torch.allclose(one.absmax.double(), largest, rtol=1e-5, atol=0)
    normalized = (padded / largest.clamp_min(1e-300)[:, None]).view(-1)[: len(expected)]
    slack = 1e-5 * normalized.abs() + ROUNDINGS  # a moment may be a small difference of larger numbers
    lowest, highest = (nearest_codes(normalized + sign * slack, one.levels) for sign in (-1, 1))
    assert ((one.codes >= lowest) & (one.codes <= highest)).all()


@pytest.mark.parametrize("rates", [ADAM, replace(ADAM, kept=0.99), replace(ADAM, coupled_decay=0.1)], ids=str)
@pytest.mark.parametrize(("values", "block_size"), SIZES)
def test_one_step_agrees_with_fp64(values: int, block_size: int, rates: FusedRates):
    parameter, gradient = (torch.randn(values, device=DEVICE) for _ in range(2))
    moments = tuple(moment(values, block_size, codebook) for codebook in MAPS)
    first, second, expected, step = exact(parameter, gradient, moments, rates, block_size)
    fused_adam8bit_(parameter, gradient, moments, rates, block_size=block_size)
    assert ((parameter - expected).abs() <= ROUNDINGS * (expected.abs() + step.abs()) + 1e-5 * step.abs()).all()
    assert_coded(moments[0], first, block_size)
    assert_coded(moments[1], second, block_size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_narrow_parameter_is_rounded_once(dtype: torch.dtype):
    parameter, gradient = (torch.randn(700, device=DEVICE).to(dtype) for _ in range(2))
    moments = tuple(moment(700, 256, codebook) for codebook in MAPS)
    _, _, expected, _ = exact(parameter, gradient, moments, ADAM, 256)
    fused_adam8bit_(parameter, gradient, moments, ADAM, block_size=256)
    half_step = torch.finfo(dtype).eps / 2 * (1 + 1e-3)
    assert parameter.dtype == dtype and ((parameter.double() - expected).abs() <= half_step * expected.abs()).all()


def test_ties_go_to_the_lower_level_as_in_nearest_codes():
    for codebook, place in zip(MAPS, (0, 1), strict=True):
        levels = codebook.to(DEVICE)
        ties = search_of(levels, levels.device).boundaries[:255]
        wanted = torch.cat([ties, ties.nextafter(torch.ones_like(ties)), torch.ones(2, device=DEVICE)])
        blocks = torch.cat([torch.stack([wanted, torch.ones_like(wanted)], 1).view(-1)])
        still = replace(ADAM, betas=(0.0, 0.0), step_size=0.0)  # the first moment becomes the gradient itself
        moments = tuple(moment(len(blocks), 2, one) for one in MAPS)
        gradient = blocks if place == 0 else blocks.sqrt()
        fused_adam8bit_(torch.zeros_like(blocks), gradient, moments, still, block_size=2)
        seen = blocks if place == 0 else gradient * gradient
        assert torch.equal(moments[place].codes, nearest_codes(seen, levels))


def test_zeros_subnormals_and_two_runs():
    gradient = torch.zeros(1024, device=DEVICE)
    gradient[256:512] = torch.linspace(-(2.0**-130), 2.0**-130, 256, device=DEVICE)
    gradient[512:768] = torch.linspace(-(2.0**62), 2.0**62, 256, device=DEVICE)
    still = replace(ADAM, betas=(0.0, 0.0))
    runs = []
    for _ in range(2):
        parameter = torch.ones(1024, device=DEVICE)
        moments = tuple(
            replace(moment(1024, 256, one), codes=torch.zeros(1024, dtype=torch.uint8, device=DEVICE)) for one in MAPS
        )
        fused_adam8bit_(parameter, gradient, moments, still, block_size=256)
        runs.append((parameter, *(x for one in moments for x in (one.codes, one.absmax))))
    assert all(map(torch.equal, *runs))
    parameter, codes, absmax, _, squares = runs[0]
    assert parameter.isfinite().all() and (parameter[:256] == 1).all() and not absmax[0] and not absmax[3]
    assert absmax[1] == 2.0**-130 and squares[2] == 2.0**124
    assert (MAPS[0].to(DEVICE)[codes[256:512].long()].sign() == gradient[256:512].sign()).float().mean() > 0.99


def test_nothing_is_written_behind_the_end():
    held = torch.full((1024,), 7.0, device=DEVICE)
    bytes_held = [torch.full((1024,), 7, dtype=torch.uint8, device=DEVICE) for _ in MAPS]
    moments = tuple(
        replace(moment(300, 256, one), codes=bytes[:300]) for one, bytes in zip(MAPS, bytes_held, strict=True)
    )
    fused_adam8bit_(held[:300], torch.randn(300, device=DEVICE), moments, ADAM, block_size=256)
    assert (held[300:] == 7).all() and all((bytes[300:] == 7).all() for bytes in bytes_held)


def test_bad_inputs_are_named_and_nothing_is_overwritten():
    parameter, gradient = torch.ones(512, device=DEVICE), torch.ones(512, device=DEVICE)
    moments = tuple(moment(512, 256, codebook) for codebook in MAPS)
    short = tuple(replace(one, codes=one.codes[1:]) for one in moments)
    wrong = {
        "block_size must be 1 to 4096, got 5000": (parameter, gradient, moments, 5000),
        "must be FP32, FP16 or BF16, got torch.float64": (parameter.double(), gradient, moments, 256),
        "gradient must be 512 contiguous values": (parameter, gradient[:500], moments, 256),
        "absmax must be 4 contiguous values": (parameter, gradient, moments, 128),
        "codes must be 512 contiguous": (parameter, gradient, short, 256),
    }
    for sentence, (p, g, m, size) in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            check_update(p, g, m, block_size=size)
        with pytest.raises((ValueError, TypeError)):  # the checker of annotations may be first
            fused_adam8bit_(p, g, m, ADAM, block_size=size)
    assert (parameter == 1).all()
    assert accepts(parameter, block_size=256) and not accepts(parameter[::2], block_size=256)
    fused_adam8bit_(parameter[:0], gradient[:0], tuple(moment(0, 256, one) for one in MAPS), ADAM, block_size=256)
