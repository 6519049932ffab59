"""What a sparse weight takes where it is stored: in a dense file, and in forms that leave the zeros out."""

import math
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from qlab.packing import pack_codes
from qlab.sparsity.two_four import two_four_codes

BETA = "Sparse CSR tensor support is in beta state"  # torch says so once a process, whatever is done with it


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Write `tensors` as a safetensors file and return its size; of tensors that share memory one is written.

    Errors:  ValueError if there is no tensor.
    """
    if not tensors:
        raise ValueError("a file is written of at least one tensor, got 0")
    distinct = {(t.data_ptr(), t.shape, t.stride()) if t.numel() else name: name for name, t in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(
            {
                name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
                for name in distinct.values()
            },
            path,
        )
        return path.stat().st_size


def to_csr(weight: Float[Tensor, "..."]) -> Tensor:
    """Return `weight` in compressed sparse rows with 32-bit column numbers.

    Errors:  ValueError if `weight` is no matrix.
    """
    if weight.ndim != 2:
        raise ValueError(f"compressed rows are those of a matrix, got shape {tuple(weight.shape)}")
    with _without_beta_warning():
        made = weight.detach().to_sparse_csr()
        rows, columns = made.crow_indices().int(), made.col_indices().int()
        return torch.sparse_csr_tensor(rows, columns, made.values(), size=weight.shape, check_invariants=True)


def csr_parts(weight: Float[Tensor, "rows columns"]) -> dict[str, Tensor]:
    """Return what compressed rows store: the values, a 32-bit column for each, and where each row begins."""
    made = to_csr(weight)
    return {"values": made.values(), "columns": made.col_indices(), "rows": made.crow_indices()}


def bitmap_parts(weight: Float[Tensor, "*shape"]) -> dict[str, Tensor]:
    """Return what a bitmap stores: one bit for each place, and the values that are not zero."""
    kept = weight.detach().flatten() != 0
    return {"bits": pack_codes(kept.to(torch.uint8), bits=1), "values": weight.detach().flatten()[kept]}


def two_four_parts(weight: Float[Tensor, "*rows width"]) -> dict[str, Tensor]:
    """Return what a 2:4 weight stores: half the values, and two bits for the place of each.

    Errors:  ValueError if the width is no multiple of 4, or a group has more than two weights that are not zero.
    """
    codes = two_four_codes(weight)
    if lost := int((weight != 0).sum() - (codes.values != 0).sum()):
        raise ValueError(f"two of each four weights can be stored, and {lost} more are not zero: prune them first")
    return {"values": codes.values, "positions": codes.packed_positions}


def break_even_sparsity(*, value_bits: int, index_bits: int = 32) -> float:
    """Return the sparsity from which compressed rows are smaller than the dense weight, row starts not counted.

    Errors:  ValueError if a width is below 1.
    """
    if value_bits < 1 or index_bits < 1:
        raise ValueError(f"widths must be at least 1 bit, got {value_bits} and {index_bits}")
    return index_bits / (value_bits + index_bits)


def entropy_bits(sparsity: int | float) -> float:
    """Return the fewest bits a place that say where the zeros are, if they lie anywhere: the binary entropy.

    Errors:  ValueError if `sparsity` is not 0 to 1.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be 0 to 1, got {sparsity}")
    return sum(-p * math.log2(p) for p in (sparsity, 1 - sparsity) if p)


@contextmanager
def _without_beta_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=BETA, category=UserWarning)
        yield
