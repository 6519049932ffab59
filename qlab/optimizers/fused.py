"""The bridge from `Adam8bit` to the Triton kernel, which on CUDA takes one pass where PyTorch takes some thirty."""

from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.optimizers.adam import CorrectedRates
from qlab.optimizers.coded_update import CodedMoment, levels_of, search_for


def can_fuse(parameter: Tensor, *, block_size: int) -> bool:
    """Tell whether the kernel is there for a parameter: on CUDA, with Triton, in blocks that it takes."""
    if not parameter.is_cuda:
        return False
    if find_spec("triton") is None:
        return False
    from qlab.optimizers_triton import accepts  # noqa: PLC0415 - imports Triton, which without a GPU nobody needs

    return accepts(parameter, block_size=block_size)


def fused_update(
    parameter: Float[Tensor, " values"],
    gradient: Float[Tensor, " values"],
    moments: tuple[CodedMoment, CodedMoment],
    rates: CorrectedRates,
    *,
    block_size: int,
) -> None:
    """Do what `coded_adam_update` does, in one kernel.

    Shapes:  all are flat and contiguous.
    """
    from qlab.optimizers_triton import FusedMoment, FusedRates, fused_adam8bit_  # noqa: PLC0415 - imports Triton

    settings = rates.settings
    fused_rates = FusedRates(
        step_size=rates.step_size,
        root_correction=rates.root_correction,
        betas=settings.betas,
        eps=settings.eps,
        kept=rates.kept if settings.decoupled else 1.0,
        coupled_decay=0.0 if settings.decoupled else settings.weight_decay,
    )
    first, second = (
        FusedMoment(one.codes, one.absmax, levels_of(one.signed, device), search_for(one.signed, device).table)
        for one, device in ((moment, parameter.device) for moment in moments)
    )
    with torch.no_grad():
        fused_adam8bit_(parameter, gradient, (first, second), fused_rates, block_size=block_size)
