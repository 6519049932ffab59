"""FlashAttention's backward pass in plain PyTorch: no weight was kept, so each tile's are computed again.

Source:  Dao et al. 2022, arXiv:2205.14135, appendix B; in the loop order of Dao 2023, arXiv:2307.08691, algorithm 2.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.attention.border import accumulator, checked_shape
from qlab.attention.softmax import scaled_product
from qlab.attention.tiling import BLOCK, Tiling, fold, room_for, tiling_of
from qlab.attention.traffic import load, report_load, report_store, store


def flash_backward(  # noqa: PLR0913, PLR0917 - all that the forward pass kept
    q: Float[Tensor, "*query_heads queries width"],
    k: Float[Tensor, "*key_heads keys width"],
    v: Float[Tensor, "*key_heads keys width"],
    output: Float[Tensor, "*query_heads queries width"],
    log_sum_exp: Float[Tensor, "*query_heads queries"],
    grad_output: Float[Tensor, "*query_heads queries width"],
    *,
    is_causal: bool = False,
    block_rows: int = BLOCK,
    block_columns: int = BLOCK,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, with each tile's weights computed again from the log-sum-exp.

    An infinite or NaN gradient is passed on as it came: a loss scaler looks for it.
    Errors:  ValueError as `flash_forward`, or if what the forward pass kept is not of q's shape.
    Source:  Dao 2023, arXiv:2307.08691, algorithm 2.
    """
    shape = checked_shape(q, k, v, is_causal=is_causal)
    if not q.shape == output.shape == grad_output.shape or log_sum_exp.shape != q.shape[:-1]:
        given = ", ".join(str(tuple(t.shape)) for t in (output, grad_output, log_sum_exp))
        raise ValueError(f"output, its gradient and the log-sum-exp must fit q {tuple(q.shape)}, got {given}")
    tiling = tiling_of(shape, block_rows, block_columns)
    wide = accumulator(q.dtype)
    gradients = torch.zeros(q.shape, dtype=wide, device=q.device), room_for(k), room_for(v)
    report_store(gradients[0])
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        row_sum = (output.to(wide) * grad_output.to(wide)).sum(-1)
        report_load(output, grad_output)
        report_store(row_sum)
        of_rows = tuple(fold(t, shape) for t in (q, log_sum_exp[..., None], row_sum[..., None], grad_output))
        of_keys = tuple(fold(t, shape) for t in (k, v))
        _walk_back(of_rows, of_keys, tuple(fold(t, shape) for t in gradients), tiling=tiling)
        if q.dtype != wide:
            report_load(gradients[0])
            report_store(rounded := gradients[0].to(q.dtype))
            gradients = rounded, *gradients[1:]
    return gradients


def _walk_back(
    of_rows: tuple[Tensor, Tensor, Tensor, Tensor],
    of_keys: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor, Tensor],
    *,
    tiling: Tiling,
) -> None:
    """Hold one block of keys and its gradients, and let the blocks of rows that see it come by."""
    (q, log_sum_exp, row_sum, grad_output), (k, v), (dq, dk, dv) = of_rows, of_keys, gradients
    scale = q.shape[-1] ** -0.5
    for columns in tiling.column_blocks:
        k_tile, v_tile = load(k, columns), load(v, columns)
        dk_tile, dv_tile = torch.zeros_like(k_tile), torch.zeros_like(v_tile)
        for rows in tiling.row_blocks:
            if not tiling.is_visited(rows, columns):
                continue
            q_tile, grad_tile = load(q, rows), load(grad_output, rows)
            weights = scaled_product(q_tile, k_tile, scale).sub_(load(log_sum_exp, rows)).exp_()
            hidden = tiling.hidden(rows, columns, group=q.shape[2], device=q.device)
            if hidden is not None:
                weights.masked_fill_(hidden, 0)
            grad_scores = weights * (grad_tile @ v_tile.mT).sub_(load(row_sum, rows))
            dv_tile = dv_tile.baddbmm(weights.mT, grad_tile)
            dk_tile = dk_tile.baddbmm(grad_scores.mT, q_tile, alpha=scale)
            store(load(dq, rows).baddbmm(grad_scores, k_tile, alpha=scale), dq, rows)
        store(dk_tile, dk, columns)
        store(dv_tile, dv, columns)
