"""What an 8-bit optimizer refuses, with the value in the sentence: before anything is overwritten."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from qlab.optimizers.moments import blocks_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_GRADIENT = 2.0**63  # its square is within FP32
CPU_PIECE = 2**15  # values of a narrow gradient to widen at a time
MOMENTS = ("exp_avg", "exp_avg_sq")


def require_parameters(parameters: Iterable[Tensor]) -> None:
    """Refuse a parameter that cannot be updated in FP32 and rounded once.

    Errors:  ValueError if one is not FP32, FP16 or BF16, or several of its values share one place in memory.
    """
    for parameter in parameters:
        if parameter.dtype not in DTYPES:
            raise ValueError(f"a parameter must be FP32, FP16 or BF16, got {parameter.dtype}")
        if any(step == 0 < size - 1 for step, size in zip(parameter.stride(), parameter.shape, strict=True)):
            raise ValueError(f"a parameter must not be expanded, got shape {tuple(parameter.shape)} on one value")


def require_gradients(parameters: Iterable[Tensor]) -> None:
    """Refuse gradients that would leave no number behind in a moment.

    Errors:  ValueError if one is sparse, or holds NaN, infinity or a magnitude above 2^63.
    """
    gradients = [parameter.grad for parameter in parameters]
    for gradient in gradients:
        if gradient.layout != torch.strided:
            raise ValueError(f"a gradient must be dense, got {gradient.layout}")
    sums = [squares(gradient) for gradient in gradients if gradient.numel()]
    by_device: dict[torch.device, list[Tensor]] = {}
    for total in sums:
        by_device.setdefault(total.device, []).append(total)
    if all(torch.stack(totals).isfinite().all() for totals in by_device.values()):
        return
    for gradient in gradients:
        if wrong := int((~gradient.isfinite()).sum()):
            shape = tuple(gradient.shape)
            raise ValueError(f"a gradient must be finite: that of shape {shape} holds {wrong} NaN or infinite values")
        if gradient.numel() and (largest := gradient.abs().max().item()) > LARGEST_GRADIENT:
            raise ValueError(f"a gradient must be at most 2^63, got {largest:g}: its square is beyond FP32")


def squares(gradient: Tensor) -> Tensor:
    """Return the sum of squares, or its root, in FP32: infinite or NaN where a square, or the sum, is."""
    if gradient.device.type != "cpu":
        return torch.linalg.vector_norm(gradient, dtype=torch.float32)
    flat = gradient.reshape(-1)
    if flat.dtype == torch.float32:
        return torch.dot(flat, flat)
    return sum(torch.dot(piece, piece) for piece in map(Tensor.float, flat.split(CPU_PIECE)))


def require_place(parameter: Tensor, state: dict[str, Any]) -> None:
    """Refuse a parameter that has left its state behind.

    Errors:  ValueError if it has another device or another number of values than its moments.
    """
    kept = state["exp_avg"]
    if kept.device != parameter.device:
        raise ValueError(f"a parameter is on {parameter.device} and its state on {kept.device}: move the model first")
    if kept.shape != parameter.shape:
        raise ValueError(f"a parameter has shape {tuple(parameter.shape)} and its state {tuple(kept.shape)}")


def require_fitting_state(saved: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Refuse the state dict of another optimizer, of another block size, or for other parameters.

    Errors:  ValueError if the groups, their block size, or the kind, shape or values of a moment do not fit.
    """
    saved_groups = saved["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in found] for found in (groups, saved_groups))
    if sizes != saved_sizes:
        raise ValueError(f"the state dict has groups of {saved_sizes} parameters, the optimizer of {sizes}")
    for group, saved_group in zip(groups, saved_groups, strict=True):
        for name in ("block_size", "min_8bit_size"):
            if name not in saved_group:
                raise ValueError(f"the state dict has no {name}: it is not of an 8-bit optimizer of qlab")
            if saved_group[name] != group[name]:
                raise ValueError(f"the state dict has {name} {saved_group[name]}, the optimizer {group[name]}")
        for number, parameter in zip(saved_group["params"], group["params"], strict=True):
            if state := saved["state"].get(number):
                _require_fitting_moments(f"parameter {number}", state, wanted_tensors(parameter, group))


def wanted_tensors(parameter: Tensor, group: dict[str, Any]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the names of the tensors that an 8-bit Adam keeps for a parameter, with their shapes and types."""
    if parameter.numel() < group["min_8bit_size"]:
        return dict.fromkeys(MOMENTS, (parameter.shape, torch.float32))
    absmax = (torch.Size([blocks_of(parameter.numel(), group["block_size"])]), torch.float32)
    coded = {name: (parameter.shape, torch.uint8) for name in MOMENTS}
    return coded | {f"{name}_absmax": absmax for name in MOMENTS}


def _require_fitting_moments(what: str, state: dict[str, Any], wanted: dict[str, tuple]) -> None:
    tensors = {name: value for name, value in state.items() if name != "step"}
    if tensors.keys() != wanted.keys():
        raise ValueError(f"the state of {what} holds {', '.join(tensors)}, and must hold {', '.join(wanted)}")
    if not int(state.get("step", 0)) >= 1:
        raise ValueError(f"the step of {what} must be at least 1, got {state.get('step')}")
    for name, (shape, dtype) in wanted.items():
        kept = tensors[name]
        if kept.dtype != dtype or kept.shape != shape:
            found, expected = (f"{t} of shape {tuple(s)}" for t, s in ((kept.dtype, kept.shape), (dtype, shape)))
            raise ValueError(f"{name} of {what} is {found}, and must be {expected}")
        if not kept.isfinite().all():
            raise ValueError(f"{name} of {what} must be finite, and holds {int((~kept.isfinite()).sum())} other values")
