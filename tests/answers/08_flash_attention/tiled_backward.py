"""Answers to `tiled_backward`."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from qlab import attention
from tests.answers.bank import Bank

BANK = Bank("tiled-backward")


@dataclass(frozen=True)
class Flaw:
    """One place where the walk below goes wrong; as it stands, nowhere."""

    delta: str = "right"
    scores_scale: float = -0.5
    gradient_scale: float = -0.5
    kept: str = "log-sum-exp"
    hide: str = "right"
    adds: bool = True
    softmax: bool = True
    sign: int = 1
    drops: bool = False


def seen(hide, rows, columns):
    i, j = torch.arange(*rows)[:, None], torch.arange(*columns)
    return {
        "right": j <= i,
        "nothing": (j >= 0) & (i >= 0),
        "strict": j < i,
        "turned": j >= i,
        "late": j <= i + 1,
        "local": j - columns[0] <= i - rows[0],
        "tiles": (j * 0 + columns[0] < rows[1]) & (i >= 0),
    }[hide]


def walk(args, flaw):
    (q, k, v, output, log_sum_exp), grad, is_causal, (block_rows, block_columns) = args
    width = q.shape[1]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    delta = {
        "right": (grad * output).sum(1, keepdim=True),
        "none": 0.0,
        "plus": -(grad * output).sum(1, keepdim=True),
        "gradient": grad.sum(1, keepdim=True),
        "mean": (grad * output).mean(1, keepdim=True),
    }[flaw.delta]
    for r in range(0, len(q), block_rows):
        for c in range(0, len(k), block_columns):
            stop, end = min(r + block_rows, len(q)), min(c + block_columns, len(k))
            if flaw.drops and (stop < r + block_rows or end < c + block_columns):
                continue
            rows, columns = slice(r, stop), slice(c, end)
            scores = width**flaw.scores_scale * q[rows] @ k[columns].T
            if is_causal:
                scores = scores.masked_fill(~seen(flaw.hide, (r, stop), (c, end)), -torch.inf)
            p = {
                "log-sum-exp": lambda s: (s - log_sum_exp[rows, None]).exp(),  # noqa: B023
                "nothing": torch.exp,
                "tile": lambda s: torch.softmax(s, 1).nan_to_num(),
                "base-two": lambda s: (s - log_sum_exp[rows, None] / math.log(2)).exp(),  # noqa: B023
            }[flaw.kept](scores)
            of_p = grad[rows] @ v[columns].T
            ds = (p if flaw.softmax else 1) * (of_p - (delta[rows] if flaw.delta != "none" else 0.0))
            ds = flaw.sign * ds * width**flaw.gradient_scale
            for total, at, new in (
                (dq, rows, ds @ k[columns]),
                (dk, columns, ds.T @ q[rows]),
                (dv, columns, p.T @ grad[rows]),
            ):
                total[at] = total[at] + new if flaw.adds else new
    return dq, dk, dv


def flawed(misconception, name, **flaw):
    def answer(*args):
        return walk(args, Flaw(**flaw))

    BANK.add(name, answer, misconception=misconception)


@BANK.right
def with_two_loops(*args):
    return walk(args, Flaw())


@BANK.right
def in_double_as_a_list(saved, grad_output, is_causal, blocks):
    return list(walk(([t.double() for t in saved], grad_output.double(), is_causal, blocks), Flaw()))


@BANK.right
def by_qlab(saved, grad_output, is_causal, blocks):
    rows, columns = blocks
    return attention.flash_backward(*saved, grad_output, is_causal=is_causal, block_rows=rows, block_columns=columns)


@BANK.right
def keys_outside_and_tiles_skipped(saved, grad_output, is_causal, blocks):
    q, k, v, output, log_sum_exp = saved
    scaled, delta = q / math.sqrt(q.shape[1]), torch.einsum("rw,rw->r", grad_output, output)
    dq, dk, dv = torch.zeros_like(q), [], []
    for c in range(0, len(k), blocks[1]):
        k_tile, v_tile = k[c : c + blocks[1]], v[c : c + blocks[1]]
        dk_tile, dv_tile = torch.zeros_like(k_tile), torch.zeros_like(v_tile)
        for r in range(c // blocks[0] * blocks[0] if is_causal else 0, len(q), blocks[0]):
            rows = slice(r, r + blocks[0])
            p = torch.exp(scaled[rows] @ k_tile.T - log_sum_exp[rows].unsqueeze(1))
            if is_causal:
                i, j = torch.arange(r, r + len(p)), torch.arange(c, c + len(k_tile))
                p = torch.where(i[:, None] >= j, p, 0.0)
            dv_tile += p.T @ grad_output[rows]
            ds = p * (grad_output[rows] @ v_tile.T - delta[rows].unsqueeze(1))
            dk_tile += ds.T @ scaled[rows]
            dq[rows] += ds @ k_tile / math.sqrt(q.shape[1])
        dk.append(dk_tile)
        dv.append(dv_tile)
    return dq, torch.cat(dk), torch.cat(dv)


@BANK.right
def in_numpy(saved, grad_output, is_causal, blocks):
    q, k, v, output, log_sum_exp = (t.numpy().astype(np.float64) for t in saved)
    grad = grad_output.numpy().astype(np.float64)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    delta = (grad * output).sum(axis=1)
    for r in range(0, len(q), blocks[0]):
        for c in range(0, len(k), blocks[1]):
            rows, columns = slice(r, r + blocks[0]), slice(c, c + blocks[1])
            scores = q[rows] @ k[columns].T / q.shape[1] ** 0.5
            i, j = np.indices(scores.shape)
            scores[is_causal & (j + c > i + r)] = -np.inf
            p = np.exp(scores - log_sum_exp[rows, None])
            ds = p * (grad[rows] @ v[columns].T - delta[rows, None]) / q.shape[1] ** 0.5
            dq[rows] += ds @ k[columns]
            dk[columns] += ds.T @ q[rows]
            dv[columns] += p.T @ grad[rows]
    return dq, dk, dv


@BANK.right
def by_autograd_of_each_tile(saved, grad_output, is_causal, blocks):
    q, k, v, output, log_sum_exp = saved
    delta = (grad_output * output).sum(1)
    totals = [torch.zeros_like(t) for t in (q, k, v)]
    for r in range(0, len(q), blocks[0]):
        for c in range(0, len(k), blocks[1]):
            places = slice(r, r + blocks[0]), slice(c, c + blocks[1]), slice(c, c + blocks[1])
            tiles = [t[at].clone().requires_grad_() for t, at in zip((q, k, v), places, strict=True)]
            s = tiles[0] @ tiles[1].T / q.shape[1] ** 0.5
            if is_causal:
                s = s.masked_fill(~seen("right", (r, r + len(s)), (c, c + s.shape[1])), -torch.inf)
            p = (s - log_sum_exp[places[0], None]).exp()
            along = (p * (grad_output[places[0]] @ tiles[2].T - delta[places[0], None]).detach()).sum()
            dq_tile, dk_tile = torch.autograd.grad(along, tiles[:2], retain_graph=True)
            new = dq_tile, dk_tile, p.detach().T @ grad_output[places[0]]
            for total, at, values in zip(totals, places, new, strict=True):
                total[at] += values
    return totals


@BANK.right
def row_sum_over_the_tiles(saved, grad_output, is_causal, blocks):
    q, k, v, _, log_sum_exp = saved
    delta = torch.zeros(len(q), 1)
    for last in (False, True):
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for r in range(0, len(q), blocks[0]):
            for c in range(0, len(k), blocks[1]):
                rows, columns = slice(r, r + blocks[0]), slice(c, c + blocks[1])
                s = torch.mm(q[rows], k[columns].mT).mul_(q.shape[1] ** -0.5)
                if is_causal:
                    s.masked_fill_(~seen("right", (r, r + len(s)), (c, c + s.shape[1])), -torch.inf)
                p = s.sub_(log_sum_exp[rows, None]).exp_()
                of_p = grad_output[rows] @ v[columns].mT
                if not last:
                    delta[rows] += (p * of_p).sum(1, keepdim=True)
                    continue
                dv[columns] += p.mT @ grad_output[rows]
                ds = p.mul_(of_p.sub_(delta[rows])).mul_(q.shape[1] ** -0.5)
                dq[rows] += ds @ k[columns]
                dk[columns] += ds.mT @ q[rows]
    return dq, dk, dv


flawed("misses-the-row-sum", "no_row_sum", delta="none")
flawed("adds-the-row-sum", "row_sum_added", delta="plus")
flawed("wrong-row-sum", "row_sum_of_the_gradient", delta="gradient")
flawed("wrong-row-sum", "mean_for_the_row_sum", delta="mean")
flawed("scale-forgotten", "no_scale_in_the_gradient", gradient_scale=0.0)
flawed("scale-forgotten", "no_scale_in_the_scores", scores_scale=0.0)
flawed("scale-forgotten", "no_scale_at_all", scores_scale=0.0, gradient_scale=0.0)
flawed("scale-by-the-width", "scale_twice", gradient_scale=-1.0)
flawed("log-sum-exp-unused", "exponentials_of_scores", kept="nothing")
flawed("log-sum-exp-in-base-two", "wrong_base", kept="base-two")
flawed("wrong-value", "softmax_of_each_tile", kept="tile")
flawed("misses-the-weights", "softmax_passed_over", softmax=False)
flawed("ignores-the-mask", "not_causal", hide="nothing")
flawed("hides-the-diagonal", "diagonal_hidden", hide="strict")
flawed("sees-one-key-too-many", "one_key_too_many", hide="late")
flawed("mask-turned-round", "sees_the_future", hide="turned")
flawed("mask-counts-inside-the-tile", "mask_of_a_tile", hide="local")
flawed("hides-whole-tiles-only", "hides_whole_tiles", hide="tiles")
flawed("overwrites-tiles", "assigns_instead_of_adding", adds=False)
flawed("wrong-sign", "minus", sign=-1)
flawed("drops-the-ragged-end", "whole_tiles_only", drops=True)


@BANK.wrong("materializes-n-by-n")
def by_autograd(saved, grad_output, is_causal, blocks):
    q, k, v = (t.clone().requires_grad_() for t in saved[:3])
    scores = q @ k.T / q.shape[1] ** 0.5
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -torch.inf)
    return torch.autograd.grad(torch.softmax(scores, 1) @ v, (q, k, v), grad_output)


@BANK.wrong("materializes-n-by-n")
def one_tile_for_all(saved, grad_output, is_causal, blocks):
    return walk((saved, grad_output, is_causal, (10**6, 10**6)), Flaw())


@BANK.wrong("materializes-n-by-n")
def a_whole_mask(saved, grad_output, is_causal, blocks):
    q, k, v, output, log_sum_exp = saved
    visible = torch.arange(len(k)) <= torch.arange(len(q))[:, None] if is_causal else None
    delta = (grad_output * output).sum(1, keepdim=True)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for r in range(0, len(q), blocks[0]):
        for c in range(0, len(k), blocks[1]):
            rows, columns = slice(r, r + blocks[0]), slice(c, c + blocks[1])
            scores = q[rows] @ k[columns].T * q.shape[1] ** -0.5
            if is_causal:
                scores.masked_fill_(~visible[rows, columns], -torch.inf)
            p = (scores - log_sum_exp[rows, None]).exp()
            ds = p * (grad_output[rows] @ v[columns].T - delta[rows]) * q.shape[1] ** -0.5
            dq[rows] += ds @ k[columns]
            dk[columns] += ds.T @ q[rows]
            dv[columns] += p.T @ grad_output[rows]
    return dq, dk, dv


@BANK.wrong("scores-of-all-queries-at-once")
def blocks_of_keys_only(saved, grad_output, is_causal, blocks):
    return walk((saved, grad_output, is_causal, (10**6, blocks[1])), Flaw())


@BANK.wrong("scores-of-all-keys-at-once")
def blocks_of_queries_only(saved, grad_output, is_causal, blocks):
    return walk((saved, grad_output, is_causal, (blocks[0], 10**6)), Flaw())


@BANK.wrong("overflows")
def multiplies_by_the_mask(saved, grad_output, is_causal, blocks):
    q, k, v, output, log_sum_exp = saved
    delta = (grad_output * output).sum(1, keepdim=True)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for r in range(0, len(q), blocks[0]):
        for c in range(0, len(k), blocks[1]):
            rows, columns = slice(r, r + blocks[0]), slice(c, c + blocks[1])
            p = (q[rows] @ k[columns].T * q.shape[1] ** -0.5 - log_sum_exp[rows, None]).exp()
            if is_causal:
                p = p * seen("right", (r, r + len(p)), (c, c + p.shape[1]))
            ds = p * (grad_output[rows] @ v[columns].T - delta[rows]) * q.shape[1] ** -0.5
            dq[rows] += ds @ k[columns]
            dk[columns] += ds.T @ q[rows]
            dv[columns] += p.T @ grad_output[rows]
    return dq, dk, dv


@BANK.wrong("wrong-value")
def divides_exponentials(saved, grad_output, is_causal, blocks):
    q, k, v, output, log_sum_exp = saved
    return walk(((q, k, v, output, torch.log(torch.exp(log_sum_exp))), grad_output, is_causal, blocks), Flaw())


@BANK.wrong("wrong-shape")
def gradients_in_another_order(saved, grad_output, is_causal, blocks):
    dq, dk, dv = walk((saved, grad_output, is_causal, blocks), Flaw())
    return dv, dk, dq


@BANK.right
def first_dq_then_dk_and_dv(saved, grad_output, is_causal, blocks):
    q, k, v, output, log_sum_exp = saved
    delta = torch.einsum("rw,rw->r", grad_output, output)[:, None]

    def tile(rows, columns):
        scores = (q[rows] @ k[columns].t()).mul_(q.shape[1] ** -0.5)
        if is_causal:
            scores[torch.arange(*columns.indices(len(k))) > torch.arange(*rows.indices(len(q)))[:, None]] = -torch.inf
        p = scores.sub_(log_sum_exp[rows, None]).exp_()
        return p, p * (grad_output[rows] @ v[columns].T - delta[rows]) * q.shape[1] ** -0.5

    by_rows = [slice(r, r + blocks[0]) for r in range(0, len(q), blocks[0])]
    by_columns = [slice(c, c + blocks[1]) for c in range(0, len(k), blocks[1])]
    dq = torch.cat([sum(tile(rows, columns)[1] @ k[columns] for columns in by_columns) for rows in by_rows])
    dk = torch.cat([sum(tile(rows, columns)[1].T @ q[rows] for rows in by_rows) for columns in by_columns])
    dv = [sum(tile(rows, columns)[0].T @ grad_output[rows] for rows in by_rows) for columns in by_columns]
    return [dq, dk, torch.cat(dv).T.contiguous().T]


def plainly(args, *, hidden=-torch.inf, row_sum="row"):
    (q, k, v, output, log_sum_exp), grad_output, is_causal, blocks = args
    delta = (grad_output * output).sum(1, keepdim=True)
    delta = delta.sum().expand_as(delta) if row_sum == "all" else delta
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for r in range(0, len(q), blocks[0]):
        for c in range(0, len(k), blocks[1]):
            rows, columns = slice(r, r + blocks[0]), slice(c, c + blocks[1])
            scores = q[rows] @ k[columns].T / math.sqrt(q.shape[1])
            if is_causal:
                later = torch.arange(c, c + scores.shape[1]) > torch.arange(r, r + len(scores))[:, None]
                scores = scores.masked_fill(later, hidden)
            p = (scores - log_sum_exp[rows, None]).exp()
            of_p = grad_output[rows] @ v[columns].T
            ds = p * (of_p - ((p * of_p).sum(1, keepdim=True) if row_sum == "tile" else delta[rows]))
            dq[rows] += ds @ k[columns] / math.sqrt(q.shape[1])
            dk[columns] += ds.T @ q[rows] / math.sqrt(q.shape[1])
            dv[columns] += p.T @ grad_output[rows]
    return dq, dk, dv


@BANK.right
def hides_by_a_huge_number(*args):
    return plainly(args, hidden=-1e30)


@BANK.wrong("overflows")
def hides_by_minus_a_hundred(*args):
    return plainly(args, hidden=-100.0)


@BANK.wrong("one-row-sum-for-all")
def forgets_the_axis_of_the_sum(*args):
    return plainly(args, row_sum="all")


@BANK.wrong("row-sum-of-one-tile")
def sums_over_the_tile(*args):
    return plainly(args, row_sum="tile")


@BANK.wrong("gradients-in-another-order")
def of_v_before_k(*args):
    dq, dk, dv = plainly(args)
    return dq, dv, dk


@BANK.wrong("materializes-n-by-n")
def all_weights_in_numpy(saved, grad_output, is_causal, blocks):
    q, k, v, output, log_sum_exp = (t.numpy() for t in saved)
    grad, scale = grad_output.numpy(), np.float32(q.shape[1] ** -0.5)
    scores = q @ k.T * scale
    if is_causal:
        scores = np.where(np.tri(*scores.shape, dtype=bool), scores, np.float32(-np.inf))
    weights = np.exp(scores - log_sum_exp.reshape(-1, 1))
    ds = weights * (grad @ v.T - (grad * output).sum(1, keepdims=True)) * scale
    return tuple(map(torch.from_numpy, (ds @ k, ds.T @ q, weights.T @ grad)))


@BANK.wrong("returns-nothing")
def forgets_to_return(*args):
    walk(args, Flaw())


@BANK.crashes
def forgets_to_transpose(saved, grad_output, is_causal, blocks):
    q, k, _, _, log_sum_exp = saved
    p = (q @ k - log_sum_exp).exp()
    return p @ k, p.T @ q, p.T @ grad_output
