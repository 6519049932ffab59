"""The kernel: one program decodes some blocks of both moments, steps, writes the parameter, and codes them anew."""

# ruff: noqa: PLR0913, PLR0917 - what a kernel works on comes in as arguments

from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from qlab.attention_triton.runtime import HOW_TO_GET, INSTALLED, INTERPRETED, launching, tl, triton

LARGEST_BLOCK = 4096
LARGE = 2**22  # values: from here on a parameter fills a GPU, and is tuned for by itself
CELLS = 2**16
SMALLEST_NORMAL = 2.0**-126
SUBNORMAL_LIFT = 2.0**24
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# values a program, warps
CONFIGURATIONS = [(1024, 4), (2048, 8), (2048, 4), (1024, 2), (512, 4), (4096, 8)]


@dataclass(frozen=True)
class FusedMoment:
    """A moment's codes and absmaxes, to be updated in place, and its codebook ready to read and to search.

    `cells` finds the nearest level: the table of `qlab.codebooks.nearest.NearestSearch`, on this device.
    Shapes:  `codes` is (values,), `absmax` (ceil(values / block_size),).
    """

    codes: UInt8[Tensor, " values"]
    absmax: Float[Tensor, " blocks"]
    levels: Float[Tensor, "256"]
    cells: Int32[Tensor, "65536"]


@dataclass(frozen=True, kw_only=True)
class FusedRates:
    """The numbers of one step: `step_size` is lr / (1 - β₁^step), `root_correction` √(1 - β₂^step).

    A decoupled decay leaves `kept` of a parameter, 1 - lr · weight_decay; a coupled one adds `coupled_decay` times the
    parameter to the gradient.
    """

    step_size: float
    root_correction: float
    betas: tuple[float, float]
    eps: float
    kept: float = 1.0
    coupled_decay: float = 0.0


@triton.jit
@no_type_check
def decode(codes, absmax, levels, places, inside, block, block_inside):
    """Return the values of blocks of codes."""
    code = tl.load(codes + places, mask=inside, other=0)
    scale = tl.load(absmax + block, mask=block_inside, other=0.0)
    return tl.load(levels + code.to(tl.int32)) * scale[:, None]


@triton.jit
@no_type_check
def encode(values, codes, absmax, cells, places, inside, block, block_inside, LIFT: tl.constexpr, TINY: tl.constexpr):
    """Store blocks of values as the codes of their nearest levels, found with one look-up, and their absmaxes."""
    largest = tl.max(tl.abs(values), 1)
    lift = tl.where(largest < TINY, LIFT, 1.0)
    inverse = tl.where(largest > 0, tl.div_rn(1.0, tl.where(largest > 0, largest * lift, 1.0)), 0.0)
    pattern = (values * lift[:, None] * inverse[:, None]).to(tl.int32, bitcast=True)
    carried = tl.load(cells + ((pattern >> 16) & 0xFFFF)) + pattern
    tl.store(codes + places, tl.abs(carried >> 16).to(tl.uint8), mask=inside)
    tl.store(absmax + block, largest, mask=block_inside)


@triton.jit
@no_type_check
def adam_kernel(
    parameter, gradient, first_codes, first_absmax, first_levels, first_cells,
    second_codes, second_absmax, second_levels, second_cells, values, blocks, is_large,
    step_size, root_correction, old_first, new_first, old_second, new_second, eps, kept, coupled_decay,
    SIZE: tl.constexpr, PADDED: tl.constexpr, LIFT: tl.constexpr, TINY: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Update some whole blocks of a parameter and of its two moments."""
    BLOCKS: tl.constexpr = VALUES // PADDED if VALUES > PADDED else 1
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    column = tl.arange(0, PADDED)[None, :]
    A_STORE: tl.constexpr = 128 // parameter.dtype.element_ty.primitive_bitwidth  # values in 16 bytes
    places = tl.max_contiguous(block[:, None] * SIZE + column, (1, A_STORE))  # as many codes a thread
    inside = places < values
    if PADDED != SIZE:
        inside &= column < SIZE
    block_inside = block < blocks
    old = tl.load(parameter + places, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(gradient + places, mask=inside, other=0.0).to(tl.float32) + coupled_decay * old
    first = decode(first_codes, first_absmax, first_levels, places, inside, block, block_inside)
    second = decode(second_codes, second_absmax, second_levels, places, inside, block, block_inside)
    first = tl.where(inside, first * old_first + new_first * slope, 0.0)
    second = tl.where(inside, second * old_second + new_second * slope * slope, 0.0)
    step = step_size * first / (tl.sqrt_rn(second) / root_correction + eps)
    tl.store(parameter + places, (old * kept - step).to(parameter.dtype.element_ty), mask=inside)
    encode(first, first_codes, first_absmax, first_cells, places, inside, block, block_inside, LIFT, TINY)
    encode(second, second_codes, second_absmax, second_cells, places, inside, block, block_inside, LIFT, TINY)


def accepts(parameter: Tensor, *, block_size: int) -> bool:
    """Tell whether the kernel takes a parameter of this type, where it is, in blocks of this size."""
    return _refusal(parameter, block_size) is None


def fused_adam8bit_(
    parameter: Float[Tensor, " values"],
    gradient: Float[Tensor, " values"],
    moments: tuple[FusedMoment, FusedMoment],
    rates: FusedRates,
    *,
    block_size: int,
) -> None:
    """Apply one Adam update in place, computed in FP32: the moments in 8-bit codes, the parameter rounded once.

    The gradient is finite: looking for a NaN would cost a pass.
    Shapes:  all are flat and contiguous.
    Errors:  ValueError if type, place, size or shape do not fit; ModuleNotFoundError without Triton.
    """
    check_update(parameter, gradient, moments, block_size=block_size)
    values = parameter.numel()
    if not values:
        return
    first, second = moments
    target = parameter.float() if INTERPRETED else parameter  # its stores of BF16 truncate
    size = min(block_size, values)
    padded = triton.next_power_of_2(size)
    blocks = triton.cdiv(values, size)
    with launching(parameter):
        tuned_kernel[lambda tiles: (triton.cdiv(blocks, max(1, tiles["VALUES"] // padded)),)](
            target,
            gradient.float() if INTERPRETED else gradient,
            *(first.codes, first.absmax, first.levels, first.cells),
            *(second.codes, second.absmax, second.levels, second.cells),
            values,
            blocks,
            int(values >= LARGE),
            rates.step_size,
            rates.root_correction,
            rates.betas[0],
            1 - rates.betas[0],
            rates.betas[1],
            1 - rates.betas[1],
            rates.eps,
            rates.kept,
            rates.coupled_decay,
            SIZE=size,
            PADDED=padded,
            LIFT=SUBNORMAL_LIFT,
            TINY=SMALLEST_NORMAL,
        )
    if INTERPRETED:
        parameter.copy_(target)


def check_update(parameter: Tensor, gradient: Tensor, moments: tuple[FusedMoment, ...], *, block_size: int) -> None:
    """Refuse what the kernel cannot run on.

    Errors:  ModuleNotFoundError without Triton; ValueError if type, place, size or shape do not fit.
    """
    if not INSTALLED:
        raise ModuleNotFoundError(HOW_TO_GET)
    if sentence := _refusal(parameter, block_size):
        raise ValueError(sentence)
    blocks = -(-parameter.numel() // block_size)
    for name, tensor, count, dtype in (
        ("gradient", gradient, parameter.numel(), gradient.dtype),
        *(("codes", moment.codes, parameter.numel(), torch.uint8) for moment in moments),
        *(("absmax", moment.absmax, blocks, torch.float32) for moment in moments),
        *(("levels", moment.levels, 256, torch.float32) for moment in moments),
        *(("cells", moment.cells, CELLS, torch.int32) for moment in moments),
    ):
        if tensor.numel() != count or tensor.dtype != dtype or not tensor.is_contiguous():
            found = f"{tensor.numel()} of {tensor.dtype}"
            raise ValueError(f"{name} must be {count} contiguous values of {dtype}, got {found}")
        if tensor.device != parameter.device:
            raise ValueError(f"{name} must be on {parameter.device}, as the parameter is, got {tensor.device}")


def _refusal(parameter: Tensor, block_size: int) -> str | None:
    """Say what does not fit, or nothing."""
    if parameter.dtype not in DTYPES:
        return f"a parameter must be FP32, FP16 or BF16, got {parameter.dtype}"
    if not parameter.is_contiguous():
        return f"a parameter must be contiguous, got strides {parameter.stride()}"
    if not 1 <= block_size <= LARGEST_BLOCK:
        return f"block_size must be 1 to {LARGEST_BLOCK}, got {block_size}"
    if not INTERPRETED and parameter.device.type != "cuda":
        return f"the kernel is compiled for CUDA here, got a parameter on {parameter.device.type}"
    return None


def _tuned(kernel):
    """Return Triton's autotuner; every run updates in place, so what it tried is put back. The interpreter has none."""
    chosen = CONFIGURATIONS[:1] if INTERPRETED else CONFIGURATIONS
    configs = [triton.Config({"VALUES": values}, num_warps=warps) for values, warps in chosen]
    changed = ["parameter", "first_codes", "first_absmax", "second_codes", "second_absmax"]
    return triton.autotune(configs=configs, key=["SIZE", "is_large"], restore_value=changed)(kernel)


tuned_kernel = _tuned(adam_kernel)
