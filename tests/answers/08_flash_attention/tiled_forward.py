"""Answers to `tiled_forward`."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from qlab import attention
from tests.answers.bank import Bank

BANK = Bank("tiled-forward")


@dataclass(frozen=True)
class Flaw:
    """One place where the walk below goes wrong; as it stands, nowhere."""

    hide: str = "right"
    old_total: bool = True
    old_output: bool = True
    turned: bool = False
    scale: float = -0.5
    mask_late: bool = False
    maximum: bool = True
    divided: bool = True
    base: str = "e"
    skips: bool = True
    start: float = -math.inf
    drops: bool = False
    pads: bool = False


def hidden(hide, rows, columns):
    i, j = torch.arange(*rows)[:, None], torch.arange(*columns)
    local = torch.arange(columns[1] - columns[0]) > torch.arange(rows[1] - rows[0])[:, None]
    ways = {
        "right": j > i,
        "nothing": j < 0,
        "local": local,
        "strict": j >= i,
        "late": j > i + 1,
        "turned": j < i,
        "tiles": (j >= rows[1]) & (i >= 0),
    }
    return ways[hide].expand(len(i), len(j))


def walk(args, flaw):
    q, k, v, is_causal, (block_rows, block_columns) = args
    output, log_sum_exp = torch.zeros_like(q), torch.zeros(len(q))
    for r in range(0, len(q), block_rows):
        if flaw.drops and r + block_rows > len(q):
            continue
        rows = slice(r, min(r + block_rows, len(q)))
        tile = q[rows] * q.shape[1] ** flaw.scale
        m, total, o = torch.full((len(tile),), flaw.start), torch.zeros(len(tile)), torch.zeros_like(tile)
        for c in range(0, len(k), block_columns):
            if is_causal and flaw.skips and c >= rows.stop and flaw.hide == "right":
                break
            k_tile, v_tile = k[c : c + block_columns], v[c : c + block_columns]
            if flaw.pads:
                k_tile, v_tile = (
                    torch.cat([t, t.new_zeros(block_columns - len(t), t.shape[1])]) for t in (k_tile, v_tile)
                )
            scores = tile @ k_tile.T
            hide = is_causal & hidden(flaw.hide, (r, rows.stop), (c, c + len(k_tile)))
            if not flaw.mask_late:
                scores = scores.masked_fill(hide, -torch.inf)
            top = torch.maximum(m, scores.amax(1)) if flaw.maximum else torch.zeros_like(m)
            pivot = top.masked_fill(top == -torch.inf, 0)
            p, factor = (scores - pivot[:, None]).exp(), (m - pivot).exp()
            if not flaw.maximum:
                factor = torch.ones_like(factor)
            if flaw.mask_late:
                p = p.masked_fill(hide, 0)
            if flaw.turned and c:
                factor = 1 / factor
            total = (factor if flaw.old_total else 1) * total + p.sum(1)
            o = (factor[:, None] if flaw.old_output else 1) * o + p @ v_tile
            m = top
        output[rows] = o / total[:, None] if flaw.divided else o
        log_sum_exp[rows] = {"e": m + total.log(), "2": m / math.log(2) + total.log2(), "m": m, "sum": total.log()}[
            flaw.base
        ]
    return output, log_sum_exp


def flawed(misconception, name, **flaw):
    def answer(*args):
        return walk(args, Flaw(**flaw))

    BANK.add(name, answer, misconception=misconception)


@BANK.right
def with_running_maximum(*args):
    return walk(args, Flaw())


@BANK.right
def without_skipping_tiles(*args):
    return walk(args, Flaw(skips=False))


@BANK.right
def by_qlab(q, k, v, is_causal, blocks):
    block_rows, block_columns = blocks
    return attention.flash_forward(q, k, v, is_causal=is_causal, block_rows=block_rows, block_columns=block_columns)


@BANK.right
def in_double(*args):
    q, k, v, *rest = args
    output, log_sum_exp = walk((q.double(), k.double(), v.double(), *rest), Flaw())
    return output, log_sum_exp


@BANK.right
def by_merging_partials(q, k, v, is_causal, blocks):
    block_rows, block_columns = blocks
    outputs, sums = [], []
    for r in range(0, len(q), block_rows):
        tile = q[r : r + block_rows]
        seen = None
        for c in range(0, len(k), block_columns):
            hide = hidden("right", (r, r + len(tile)), (c, min(c + block_columns, len(k)))) if is_causal else None
            new = attention.partial(tile, k[c : c + block_columns], v[c : c + block_columns], hidden=hide)
            seen = new if seen is None else attention.merge(seen, new)
        outputs.append(seen.output / seen.total)
        sums.append(seen.maximum + seen.total.log())
    return torch.cat(outputs), torch.cat(sums)


@BANK.right
def with_the_log_sum_exp_as_the_state(q, k, v, is_causal, blocks):
    block_rows, block_columns = blocks
    output, sums = torch.zeros_like(q), torch.full((len(q),), -torch.inf)
    for c in range(0, len(k), block_columns):
        for r in range(0, len(q), block_rows):
            rows = slice(r, r + block_rows)
            scores = q[rows] @ k[c : c + block_columns].T / math.sqrt(q.shape[1])
            if is_causal:
                scores[hidden("right", (r, r + len(scores)), (c, c + scores.shape[1]))] = -torch.inf
            of_tile = scores.logsumexp(1)
            new = torch.logaddexp(sums[rows], of_tile)
            at = new.masked_fill(new == -torch.inf, 0)[:, None]
            output[rows] = (sums[rows][:, None] - at).exp() * output[rows] + (scores - at).exp() @ v[
                c : c + block_columns
            ]
            sums[rows] = new
    return output, sums


@BANK.right
def in_powers_of_two_as_lists(q, k, v, is_causal, blocks):
    block_rows, block_columns = blocks
    output, sums = [], []
    for r in range(0, len(q), block_rows):
        tile = q[r : r + block_rows] * (math.log2(math.e) / math.sqrt(q.shape[1]))
        m, total, o = torch.full((len(tile), 1), -1e30), torch.zeros(len(tile), 1), torch.zeros_like(tile)
        for c in range(0, len(k), block_columns):
            scores = tile @ k[c : c + block_columns].T
            if is_causal:
                scores = scores.masked_fill(hidden("right", (r, r + len(tile)), (c, c + scores.shape[1])), -torch.inf)
            top = torch.maximum(m, scores.amax(1, keepdim=True))
            p, factor = torch.exp2(scores - top), torch.exp2(m - top)
            m, total, o = top, factor * total + p.sum(1, keepdim=True), factor * o + p @ v[c : c + block_columns]
        output += (o / total).tolist()
        sums += ((m + total.log2()) * math.log(2)).flatten().tolist()
    return [output, sums]


@BANK.right
def in_numpy(q, k, v, is_causal, blocks):
    block_rows, block_columns = blocks
    q, k, v = (t.numpy().astype(np.float64) for t in (q, k, v))
    output, sums = np.zeros_like(q), np.zeros((len(q), 1))
    for r in range(0, len(q), block_rows):
        tile = q[r : r + block_rows]
        m = np.full((len(tile), 1), -np.inf)
        total, o = np.zeros((len(tile), 1)), np.zeros_like(tile)
        for c in range(0, len(k), block_columns):
            scores = tile @ k[c : c + block_columns].T / np.sqrt(q.shape[1])
            if is_causal:
                i, j = np.indices(scores.shape)
                scores = np.where(j + c > i + r, -np.inf, scores)
            top = np.maximum(m, scores.max(axis=1, keepdims=True))
            p, factor = np.exp(scores - top), np.exp(m - top)
            m, total, o = top, factor * total + p.sum(axis=1, keepdims=True), factor * o + p @ v[c : c + block_columns]
        output[r : r + block_rows], sums[r : r + block_rows] = o / total, m + np.log(total)
    return output, sums


@BANK.right
def with_padding_that_is_masked(q, k, v, is_causal, blocks):
    block_rows, block_columns = blocks
    output, sums = [], []
    for r in range(0, len(q), block_rows):
        tile = q[r : r + block_rows]
        state = torch.full((len(tile), 1), -1e38), torch.zeros(len(tile), 1), torch.zeros_like(tile)
        for c in range(0, len(k), block_columns):
            k_tile, v_tile = (torch.zeros(block_columns, k.shape[1]) for _ in range(2))
            k_tile[: len(k[c : c + block_columns])] = k[c : c + block_columns]
            v_tile[: len(v[c : c + block_columns])] = v[c : c + block_columns]
            j = torch.arange(c, c + block_columns)
            last = torch.arange(r, r + len(tile))[:, None] if is_causal else len(k) - 1
            scores = torch.where((j <= last) & (j < len(k)), tile @ k_tile.T / k.shape[1] ** 0.5, -torch.inf)
            top = torch.maximum(state[0], scores.amax(1, keepdim=True))
            p, factor = (scores - top).exp(), (state[0] - top).exp()
            state = top, factor * state[1] + p.sum(1, keepdim=True), factor * state[2] + p @ v_tile
        output.append(state[2] / state[1])
        sums.append((state[0] + state[1].log())[:, 0])
    return torch.cat(output), torch.cat(sums)


@BANK.right_but_slow
def one_query_at_a_time(q, k, v, is_causal, blocks):
    _block_rows, block_columns = blocks
    output, sums = torch.zeros_like(q), torch.zeros(len(q))
    for i in range(len(q)):
        m, total, o = -math.inf, 0.0, torch.zeros(q.shape[1])
        for c in range(0, i + 1 if is_causal else len(k), block_columns):
            end = min(c + block_columns, i + 1 if is_causal else len(k))
            scores = k[c:end] @ q[i] / q.shape[1] ** 0.5
            top = max(m, scores.max().item())
            p = (scores - top).exp()
            o = o * math.exp(m - top) + p @ v[c:end]
            total = total * math.exp(m - top) + p.sum().item()
            m = top
        output[i], sums[i] = o / total, m + math.log(total)
    return output, sums


@BANK.right
def with_a_first_pass_for_the_maximum(q, k, v, is_causal, blocks):
    def scores_of(rows, c):
        scores = q[rows] @ k[c : c + blocks[1]].T / q.shape[1] ** 0.5
        hide = hidden("right", (rows.start, rows.stop), (c, c + scores.shape[1])) & is_causal
        return scores.masked_fill(hide, -torch.inf)

    output, sums = [], []
    for r in range(0, len(q), blocks[0]):
        rows, starts = slice(r, min(r + blocks[0], len(q))), range(0, len(k), blocks[1])
        top = torch.stack([scores_of(rows, c).amax(1) for c in starts]).amax(0)[:, None]
        total, o = 0.0, 0.0
        for c in starts:
            p = (scores_of(rows, c) - top).exp()
            total, o = total + p.sum(1, keepdim=True), o + p @ v[c : c + blocks[1]]
        output.append(o / total)
        sums.append((top + total.log()).squeeze(1))
    return torch.cat(output), torch.cat(sums)


@BANK.right
def by_halves(q, k, v, is_causal, blocks):
    def over(rows, start, stop):
        if stop - start > 1:
            middle = (start + stop) // 2
            return attention.merge(over(rows, start, middle), over(rows, middle, stop))
        keys = slice(start * blocks[1], min(stop * blocks[1], len(k)))
        hide = hidden("right", (rows.start, rows.stop), (keys.start, keys.stop)) & is_causal
        return attention.partial(q[rows], k[keys], v[keys], hidden=hide)

    starts = range(0, len(q), blocks[0])
    seen = [over(slice(r, min(r + blocks[0], len(q))), 0, -(-len(k) // blocks[1])).finish() for r in starts]
    return torch.cat([o for o, _ in seen]), torch.cat([total for _, total in seen])


flawed("masks-after-the-max", "takes_the_maximum_of_hidden_scores", mask_late=True)
flawed("forgets-to-rescale", "old_total_as_it_was", old_total=False)
flawed("forgets-to-rescale", "old_output_as_it_was", old_output=False)
flawed("forgets-to-rescale", "nothing_rescaled", old_total=False, old_output=False)
flawed("scale-forgotten", "no_scale", scale=0.0)
flawed("scale-by-the-width", "scale_without_the_root", scale=-1.0)
flawed("no-maximum", "no_maximum", maximum=False)
flawed("maximum-starts-too-high", "maximum_from_zero", start=0.0)
flawed("never-divides", "no_division", divided=False)
flawed("not-the-log-sum-exp", "the_maximum_alone", base="m")
flawed("not-the-log-sum-exp", "the_logarithm_of_the_sum_alone", base="sum")
flawed("log-sum-exp-in-base-two", "log_sum_exp_in_base_two", base="2")
flawed("drops-the-ragged-end", "whole_blocks_of_rows_only", drops=True)
flawed("counts-the-padding", "keys_padded_with_zeros", pads=True)
flawed("ignores-the-mask", "not_causal", hide="nothing")
flawed("mask-counts-inside-the-tile", "mask_of_a_tile", hide="local")
flawed("hides-the-diagonal", "query_does_not_see_itself", hide="strict")
flawed("sees-one-key-too-many", "one_key_too_many", hide="late")
flawed("mask-turned-round", "sees_the_future", hide="turned")
flawed("hides-whole-tiles-only", "hides_whole_tiles", hide="tiles")


@BANK.wrong("rescales-the-wrong-way")
def new_minus_old(*args):
    return walk(args, Flaw(turned=True))


@BANK.wrong("masks-after-the-max")
def multiplies_by_the_mask(q, k, v, is_causal, blocks):
    block_rows, block_columns = blocks
    output, sums = torch.zeros_like(q), torch.zeros(len(q))
    for r in range(0, len(q), block_rows):
        rows = slice(r, r + block_rows)
        n = len(q[rows])
        m, total, o = torch.full((n, 1), -torch.inf), torch.zeros(n, 1), torch.zeros(n, q.shape[1])
        for c in range(0, len(k), block_columns):
            scores = q[rows] @ k[c : c + block_columns].T / q.shape[1] ** 0.5
            top = torch.maximum(m, scores.amax(1, keepdim=True))
            p = (scores - top).exp()
            if is_causal:
                p = p * ~hidden("right", (r, r + n), (c, c + p.shape[1]))
            factor = (m - top).exp()
            m, total, o = top, factor * total + p.sum(1, keepdim=True), factor * o + p @ v[c : c + block_columns]
        output[rows], sums[rows] = o / (total + 1e-30), (m + (total + 1e-30).log())[:, 0]
    return output, sums


@BANK.wrong("materializes-n-by-n")
def by_torch(q, k, v, is_causal, blocks):
    _block_rows, _block_columns = blocks
    scores = q @ k.T / q.shape[1] ** 0.5
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -torch.inf)
    return torch.softmax(scores, 1) @ v, scores.logsumexp(1)


@BANK.wrong("materializes-n-by-n")
def tiles_cut_from_all_scores(q, k, v, is_causal, blocks):
    _block_rows, block_columns = blocks
    everything = q @ k.T / q.shape[1] ** 0.5
    if is_causal:
        everything.masked_fill_(torch.ones_like(everything).triu(1) > 0, -torch.inf)
    m, total, o = torch.full((len(q), 1), -torch.inf), torch.zeros(len(q), 1), torch.zeros_like(q)
    for c in range(0, len(k), block_columns):
        scores = everything[:, c : c + block_columns]
        top = torch.maximum(m, scores.amax(1, keepdim=True))
        p, factor = (scores - top).exp(), (m - top).exp()
        m, total, o = top, factor * total + p.sum(1, keepdim=True), factor * o + p @ v[c : c + block_columns]
    return o / total, (m + total.log())[:, 0]


@BANK.wrong("materializes-n-by-n")
def a_whole_mask(q, k, v, is_causal, blocks):
    block_rows, block_columns = blocks
    later = torch.arange(len(k)) > torch.arange(len(q))[:, None] if is_causal else None
    output, sums = [], []
    for r in range(0, len(q), block_rows):
        tile = q[r : r + block_rows]
        m, total, o = torch.full((len(tile), 1), -torch.inf), torch.zeros(len(tile), 1), torch.zeros_like(tile)
        for c in range(0, len(k), block_columns):
            scores = tile @ k[c : c + block_columns].T / q.shape[1] ** 0.5
            if is_causal:
                scores.masked_fill_(later[r : r + block_rows, c : c + block_columns], -torch.inf)
            top = torch.maximum(m, scores.amax(1, keepdim=True))
            p, factor = (scores - top).exp(), (m - top).exp()
            m, total, o = top, factor * total + p.sum(1, keepdim=True), factor * o + p @ v[c : c + block_columns]
        output.append(o / total)
        sums.append((m + total.log())[:, 0])
    return torch.cat(output), torch.cat(sums)


@BANK.wrong("scores-of-all-keys-at-once")
def blocks_of_rows_only(q, k, v, is_causal, blocks):
    block_rows, _block_columns = blocks
    output, sums = [], []
    for r in range(0, len(q), block_rows):
        scores = q[r : r + block_rows] @ k.T / q.shape[1] ** 0.5
        if is_causal:
            scores = scores.masked_fill(hidden("right", (r, r + len(scores)), (0, len(k))), -torch.inf)
        output.append(torch.softmax(scores, 1) @ v)
        sums.append(scores.logsumexp(1))
    return torch.cat(output), torch.cat(sums)


@BANK.wrong("scores-of-all-queries-at-once")
def blocks_of_columns_only(q, k, v, is_causal, blocks):
    _block_rows, block_columns = blocks
    m, total, o = torch.full((len(q), 1), -torch.inf), torch.zeros(len(q), 1), torch.zeros_like(q)
    for c in range(0, len(k), block_columns):
        scores = q @ k[c : c + block_columns].T / q.shape[1] ** 0.5
        if is_causal:
            scores = scores.masked_fill(hidden("right", (0, len(q)), (c, c + scores.shape[1])), -torch.inf)
        top = torch.maximum(m, scores.amax(1, keepdim=True))
        p, factor = (scores - top).exp(), (m - top).exp()
        m, total, o = top, factor * total + p.sum(1, keepdim=True), factor * o + p @ v[c : c + block_columns]
    return o / total, (m + total.log())[:, 0]


@BANK.wrong("softmax-of-each-tile")
def adds_up_softmaxes(q, k, v, is_causal, blocks):
    _block_rows, block_columns = blocks
    scores = q @ k.T / q.shape[1] ** 0.5
    output = sum(
        torch.softmax(scores[:, c : c + block_columns], 1) @ v[c : c + block_columns]
        for c in range(0, len(k), block_columns)
    )
    return output, scores.logsumexp(1)


@BANK.wrong("returns-wrong-type")
def returns_the_output_only(q, k, v, is_causal, blocks):
    _block_rows, _block_columns = blocks
    return scaled_dot_product_attention(q[None], k[None], v[None], is_causal=is_causal)[0]


@BANK.wrong("wrong-value")
def the_largest_value(q, k, v, is_causal, blocks):
    _block_rows, _block_columns = blocks
    return v[(q @ k.T).argmax(1)], (q @ k.T).amax(1)


def plainly(args, *, start=-torch.inf, hidden=-torch.inf, loose=0, early=False):
    (q, k, v, is_causal, blocks), outputs, sums = args, [], []
    for r in range(0, len(q), blocks[0]):
        rows = q[r : r + blocks[0]]
        maximum, total = torch.full((len(rows), 1), start), torch.zeros(len(rows), 1)
        output = torch.zeros(len(rows), v.shape[1])
        for c in range(0, len(k), blocks[1]):
            scores = rows @ k[c : c + blocks[1]].T / math.sqrt(q.shape[1])
            if is_causal:
                later = torch.arange(c, c + scores.shape[1]) > torch.arange(r, r + len(rows))[:, None] + loose
                scores = scores.masked_fill(later, hidden)
            new = torch.maximum(maximum, scores.amax(1, keepdim=True))
            pivot = new.masked_fill(new == -torch.inf, 0)
            weights, factor = (scores - pivot).exp(), (maximum - pivot).exp()
            total = factor * total + weights.sum(1, keepdim=True)
            output = factor * output + weights @ v[c : c + blocks[1]]
            output, maximum = (output / total if early else output), new
        outputs.append(output if early else output / total)
        sums.append((maximum + total.log())[:, 0])
    return torch.cat(outputs), torch.cat(sums)


@BANK.wrong("materializes-n-by-n")
def all_scores_in_numpy(q, k, v, is_causal, blocks):
    scores = q.numpy() @ k.numpy().T / np.float32(math.sqrt(q.shape[1]))
    if is_causal:
        scores = np.where(np.tri(*scores.shape, dtype=bool), scores, np.float32(-np.inf))
    maximum = scores.max(1, keepdims=True)
    weights = np.exp(scores - maximum)
    total = weights.sum(1, keepdims=True)
    return torch.from_numpy(weights @ v.numpy() / total), torch.from_numpy((maximum + np.log(total))[:, 0])


@BANK.right
def hides_by_a_huge_number(*args):
    output, log_sum_exp = plainly(args, start=-1e30, hidden=-1e30)
    return [output.T.contiguous().T, log_sum_exp[:, None]]


@BANK.right
def blocks_of_keys_outside(q, k, v, is_causal, blocks):
    maximum, total = torch.full((len(q), 1), -torch.inf), torch.zeros(len(q), 1)
    output = torch.zeros(len(q), v.shape[1])
    for c in range(0, len(k), blocks[1]):
        for r in range(0, len(q), blocks[0]):
            at = slice(r, r + blocks[0])
            scores = q[at] @ k[c : c + blocks[1]].T / math.sqrt(q.shape[1])
            if is_causal:
                later = torch.arange(c, c + scores.shape[1]) > torch.arange(r, r + len(scores))[:, None]
                scores = scores.masked_fill(later, -torch.inf)
            new = torch.maximum(maximum[at], scores.amax(1, keepdim=True))
            pivot = new.masked_fill(new == -torch.inf, 0)
            weights, factor = (scores - pivot).exp(), (maximum[at] - pivot).exp()
            total[at] = factor * total[at] + weights.sum(1, keepdim=True)
            output[at] = factor * output[at] + weights @ v[c : c + blocks[1]]
            maximum[at] = new
    return output / total, (maximum + total.log())[:, 0]


@BANK.wrong("masks-with-a-number")
def hides_by_minus_a_hundred(*args):
    return plainly(args, hidden=-100.0)


@BANK.wrong("maximum-starts-too-high")
def starts_at_zero(*args):
    return plainly(args, start=0.0)


@BANK.wrong("divides-too-early")
def divides_after_each_tile(*args):
    return plainly(args, early=True)


@BANK.wrong("hides-the-diagonal")
def hides_its_own_key(*args):
    return plainly(args, loose=-1)


@BANK.wrong("returns-nothing")
def forgets_to_return(*args):
    walk(args, Flaw())


@BANK.crashes
def divides_by_a_row(q, k, v, is_causal, blocks):
    _block_rows, _block_columns = blocks
    output, log_sum_exp = walk((q, k, v, is_causal, blocks), Flaw())
    return output / log_sum_exp[: len(q) - 1], log_sum_exp
