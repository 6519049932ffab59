"""Answers to `triton_forward`, exercise `triton_kernel`."""
# ruff: noqa: PLR0912, PLR0913, PLR0915, PLR0917 - one kernel with many places to go wrong, and what it works on

import numpy as np
import torch

from qlab import attention
from qlab.attention_triton import INTERPRETED, flash_forward, tl, triton
from tests.answers.bank import Bank

BANK = Bank("triton-kernel")


@triton.jit
def flawed_kernel(
    q, k, v, output, log_sum_exp, rows, columns, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FLAW: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDTH)
    q_tile = tl.load(q + i[:, None] * WIDTH + channel, mask=i[:, None] < rows, other=0.0)
    maximum = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    result = tl.zeros([BLOCK, WIDTH], tl.float32)
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        k_tile = tl.load(k + j[:, None] * WIDTH + channel, mask=j[:, None] < columns, other=0.0)
        v_tile = tl.load(v + j[:, None] * WIDTH + channel, mask=j[:, None] < columns, other=0.0)
        scores = scale * tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        if FLAW == "scale":
            scores = scores * scale
        seen = j[None, :] < columns
        if FLAW == "padding":
            seen = j[None, :] >= 0
        if FLAW == "one more":
            seen = j[None, :] <= columns
        if CAUSAL and FLAW != "no mask":
            if FLAW == "strict":
                seen = seen & (j[None, :] < i[:, None])
            elif FLAW == "turned":
                seen = seen & (j[None, :] >= i[:, None])
            elif FLAW == "local":
                seen = seen & (j[None, :] - start <= i[:, None] % BLOCK)
            else:
                seen = seen & (j[None, :] <= i[:, None])
        if FLAW == "zero":
            scores = tl.where(seen, scores, 0.0)
        elif FLAW == "zero for later keys":
            scores = tl.where(seen, scores, tl.where(j[None, :] < columns, 0.0, float("-inf")))
        elif FLAW != "late":
            scores = tl.where(seen, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        if FLAW == "no maximum":
            new_maximum = tl.zeros([BLOCK], tl.float32)
        if FLAW == "tile's own":
            new_maximum = tl.max(scores, 1)
        if FLAW == "two":
            weights = tl.exp2(scores - new_maximum[:, None])
            factor = tl.exp2(maximum - new_maximum)
        else:
            weights = tl.exp(scores - new_maximum[:, None])
            factor = tl.exp(maximum - new_maximum)
        if FLAW == "no maximum":
            factor = tl.full([BLOCK], 1.0, tl.float32)
        if FLAW == "late":
            weights = tl.where(seen, weights, 0.0)
        if FLAW == "turned factor":
            factor = tl.where(maximum == float("-inf"), 0.0, tl.exp(new_maximum - maximum))
        if FLAW != "old sum":
            total = total * factor
        total += tl.sum(weights, 1)
        if FLAW != "old output":
            result = result * factor[:, None]
        result = result + tl.dot(weights, v_tile, input_precision="ieee")
        if FLAW != "never moves":
            maximum = new_maximum
    natural = maximum + tl.log(total)
    if FLAW == "maximum alone":
        natural = maximum
    if FLAW == "sum alone":
        natural = tl.log(total)
    if FLAW == "base two":
        natural = maximum * 1.4426950408889634 + tl.log2(total)
    if FLAW == "mixed bases":
        natural = maximum + tl.log2(total)
    if FLAW != "not divided":
        result = result / total[:, None]
    tl.store(output + i[:, None] * WIDTH + channel, result, mask=i[:, None] < rows)
    tl.store(log_sum_exp + i, natural, mask=i < rows)


def launch(kernel, q, k, v, is_causal, *, block=32, programs=None, **constants):
    rows, width = q.shape
    output = torch.full_like(q, torch.nan)
    log_sum_exp = torch.full((rows,), torch.nan, device=q.device)
    grid = (triton.cdiv(rows, block) if programs is None else programs(rows),)
    kernel[grid](
        q, k, v, output, log_sum_exp, rows, len(k), width**-0.5, CAUSAL=is_causal, WIDTH=width, BLOCK=block, **constants
    )
    return output, log_sum_exp


@BANK.right
def as_the_task_has_it(q, k, v, is_causal):
    return launch(flawed_kernel, q, k, v, is_causal, FLAW="")


@BANK.right
def with_other_tiles(q, k, v, is_causal):
    return launch(flawed_kernel, q, k, v, is_causal, block=16, FLAW="")


@BANK.right
def with_larger_tiles_as_a_list(q, k, v, is_causal):
    return list(launch(flawed_kernel, q, k, v, is_causal, block=64, FLAW=""))


@BANK.right
def with_more_programs_than_needed(q, k, v, is_causal):
    return launch(flawed_kernel, q, k, v, is_causal, programs=lambda rows: rows // 32 + 2, FLAW="")


@triton.jit
def half_walk(
    q, k, v, output, log_sum_exp, rows, columns, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Powers of two, a finite start, rows that are done before their hidden tiles, division at each tile."""
    first = tl.program_id(0) * BLOCK
    i, channel = first + tl.arange(0, BLOCK)[:, None], tl.arange(0, WIDTH)[None, :]
    q_tile = tl.load(q + i * WIDTH + channel, mask=i < rows, other=0.0) * (scale * 1.4426950408889634)
    state = tl.full([BLOCK, 1], -1e30, tl.float32)
    share = tl.zeros([BLOCK, WIDTH], tl.float32)
    stop = columns
    if CAUSAL:
        stop = tl.minimum(columns, first + BLOCK)
    for start in range(0, stop, BLOCK):
        j = start + tl.arange(0, BLOCK)[:, None]
        k_tile = tl.load(k + j * WIDTH + channel, mask=j < columns, other=0.0)
        v_tile = tl.load(v + j * WIDTH + channel, mask=j < columns, other=0.0)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        later = tl.trans(j) >= columns
        if CAUSAL:
            later = later | (tl.trans(j) > i)
        scores = tl.where(later, -1e38, scores)
        top = tl.maximum(state, tl.max(scores, 1, keep_dims=True))
        weights = tl.exp2(scores - top)
        new_state = top + tl.log2(tl.exp2(state - top) + tl.sum(weights, 1, keep_dims=True))
        share = share * tl.exp2(state - new_state)
        share += tl.dot(weights * tl.exp2(top - new_state), v_tile, input_precision="ieee")
        state = new_state
    tl.store(output + i * WIDTH + channel, share, mask=i < rows)
    tl.store(log_sum_exp + i, state * 0.6931471805599453, mask=i < rows)


@BANK.right
def with_the_log_sum_exp_as_the_state(q, k, v, is_causal):
    return launch(half_walk, q, k, v, is_causal)


@triton.jit
def whole_row(
    q, k, v, output, log_sum_exp, rows, columns, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """All keys in one tile, and so one softmax, with products that are summed and not `tl.dot`."""
    i, j, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, ALL), tl.arange(0, WIDTH)
    q_tile = tl.load(q + i[:, None] * WIDTH + channel[None, :], mask=i[:, None] < rows, other=0.0)
    k_tile = tl.load(k + j[:, None] * WIDTH + channel[None, :], mask=j[:, None] < columns, other=0.0)
    v_tile = tl.load(v + j[:, None] * WIDTH + channel[None, :], mask=j[:, None] < columns, other=0.0)
    scores = tl.sum(q_tile[:, None, :] * k_tile[None, :, :], 2) * scale
    last = tl.minimum(i, columns - 1) if CAUSAL else columns - 1 + 0 * i
    scores = tl.where(j[None, :] <= last[:, None], scores, float("-inf"))
    maximum = tl.max(scores, 1)
    weights = tl.exp(scores - maximum[:, None])
    total = tl.sum(weights, 1)
    result = tl.sum((weights / total[:, None])[:, :, None] * v_tile[None, :, :], 1)
    tl.store(output + i[:, None] * WIDTH + channel[None, :], result, mask=i[:, None] < rows)
    tl.store(log_sum_exp + i, maximum + tl.log(total), mask=i < rows)


@BANK.right
def with_all_keys_in_one_tile(q, k, v, is_causal):
    return launch(whole_row, q, k, v, is_causal, block=16, ALL=128)


@BANK.right
def by_qlab_with_wider_heads(q, k, v, is_causal):
    """Pad width 16 to 64 with zeros, which add nothing to a score, and mend the scale."""
    if not INTERPRETED:  # compiled, they take no FP32
        return as_the_task_has_it(q, k, v, is_causal)
    wide = [torch.nn.functional.pad(x, (0, 48)) for x in (2 * q, k, v)]
    output, log_sum_exp = flash_forward(*(x[None] for x in wide), is_causal=is_causal)
    return output[0, :, :16], log_sum_exp[0]


@BANK.wrong("not-a-kernel")
def by_torchs_own_attention(q, k, v, is_causal):
    output = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=is_causal)[0]
    return output, attention.flash_forward(q, k, v, is_causal=is_causal)[1]


@BANK.wrong("not-a-kernel")
def tile_by_tile_in_torch(q, k, v, is_causal):
    return attention.flash_forward(q, k, v, is_causal=is_causal, block_rows=32, block_columns=32)


def in_numpy(q, k, v, is_causal):
    q, k, v = (x.double().cpu().numpy() for x in (q, k, v))
    scores = q @ k.T / q.shape[1] ** 0.5
    if is_causal:
        scores = np.where(np.tri(*scores.shape, dtype=bool), scores, -np.inf)
    maximum = scores.max(1, keepdims=True)
    weights = np.exp(scores - maximum)
    total = weights.sum(1, keepdims=True)
    return torch.from_numpy(weights @ v / total).float(), torch.from_numpy(maximum + np.log(total))[:, 0].float()


BANK.add("no_kernel_at_all", in_numpy, misconception="not-a-kernel")


@triton.jit
def stores_nothing(x, LENGTH: tl.constexpr):
    tl.load(x + tl.arange(0, LENGTH))


if INTERPRETED:  # compiled, a launch that does nothing looks like any other

    @BANK.wrong("not-a-kernel")
    def a_kernel_that_nothing_comes_of(q, k, v, is_causal):
        stores_nothing[(1,)](q, 16)
        return in_numpy(q, k, v, is_causal)


@BANK.right
def into_memory_that_was_never_set(q, k, v, is_causal):
    rows, width = q.shape
    output, log_sum_exp = torch.empty_like(q), torch.empty(rows, device=q.device)
    whole_row[triton.cdiv(rows, 16),](
        q, k, v, output, log_sum_exp, rows, len(k), width**-0.5, CAUSAL=is_causal, WIDTH=width, BLOCK=16, ALL=128
    )
    assert output.isfinite().all()
    return output, log_sum_exp


def flawed(misconception, name, flaw, **how):
    def answer(q, k, v, is_causal):
        return launch(flawed_kernel, q, k, v, is_causal, FLAW=flaw, **how)

    BANK.add(name, answer, misconception=misconception)


flawed("forgets-to-rescale", "keeps_the_old_sum", "old sum")
flawed("forgets-to-rescale", "keeps_the_old_output", "old output")
flawed("rescales-the-wrong-way", "turns_the_factor", "turned factor")
flawed("keeps-the-last-tile-only", "maximum_never_moves", "never moves")
flawed("counts-the-padding", "no_mask_for_ragged_ends", "padding")
flawed("counts-the-padding", "one_key_too_many", "one more")
flawed("ignores-the-mask", "no_causal_mask", "no mask")
flawed("hides-the-diagonal", "hides_its_own_key", "strict")
flawed("mask-turned-round", "sees_the_future", "turned")
flawed("mask-counts-inside-the-tile", "compares_places_in_the_tile", "local")
flawed("counts-the-padding", "zero_for_all_that_is_hidden", "zero")
flawed("masks-with-zero", "zero_for_later_keys", "zero for later keys")
flawed("masks-after-the-max", "hides_after_the_maximum", "late")
flawed("no-maximum", "a_plain_exponential", "no maximum")
flawed("powers-of-two", "exp2_without_its_factor", "two")
flawed("scale-by-the-width", "scales_again", "scale")
flawed("never-divides", "leaves_the_sum", "not divided")
flawed("not-the-log-sum-exp", "returns_the_maximum", "maximum alone")
flawed("not-the-log-sum-exp", "returns_the_log_of_the_sum", "sum alone")
flawed("log-sum-exp-in-base-two", "log_sum_exp_in_base_two", "base two")
flawed("log-sum-exp-in-base-two", "two_bases_at_once", "mixed bases")
flawed("programs-missing", "whole_blocks_of_queries_only", "", programs=lambda rows: max(1, rows // 32))
flawed("programs-missing", "one_program", "", programs=lambda rows: 1)


@BANK.wrong("returns-nothing")
def returns_nothing(q, k, v, is_causal):
    launch(flawed_kernel, q, k, v, is_causal, FLAW="")


@BANK.wrong("returns-wrong-type")
def returns_the_output_alone(q, k, v, is_causal):
    return launch(flawed_kernel, q, k, v, is_causal, FLAW="")[0]


@BANK.wrong("wrong-shape")
def returns_a_row_of_sums_for_each_channel(q, k, v, is_causal):
    output, log_sum_exp = launch(flawed_kernel, q, k, v, is_causal, FLAW="")
    return output, log_sum_exp[:, None].expand_as(output)


@BANK.wrong("wrong-value")
def output_rounded_to_bf16(q, k, v, is_causal):
    output, log_sum_exp = launch(flawed_kernel, q, k, v, is_causal, FLAW="")
    return output.bfloat16(), log_sum_exp


@BANK.crashes
def forgets_an_argument(q, k, v, is_causal):
    return launch(flawed_kernel, q, k, v, is_causal)


@triton.jit
def misspelled(
    q, k, v, output, log_sum_exp, rows, columns, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tl.store(output, tl.softmaximum(tl.load(q)))


@BANK.crashes
def calls_what_triton_has_not(q, k, v, is_causal):
    return launch(misspelled, q, k, v, is_causal)
