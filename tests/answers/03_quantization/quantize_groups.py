"""Answers to `quantize_groups` and `dequantize_groups`."""

import numpy as np
import torch
from torch.nn.functional import pad

from qlab import quantize
from tests.answers.bank import Answer, Bank

BANK = Bank("quantize-groups")


def positive(scale):
    return torch.where(scale > 0, scale, 1.0)


def coded(w, scale, bits):
    largest = 2 ** (bits - 1) - 1
    return torch.round(w / scale).clamp(-largest, largest).to(torch.int8)


def scales_of(w, bits, group_size):
    groups = w.abs().split(group_size, dim=1)
    return positive(torch.stack([group.amax(1) for group in groups], 1) / (2 ** (bits - 1) - 1))


def spread(scales, group_size, columns):
    return scales.repeat_interleave(group_size, dim=1)[:, :columns]


def forward(w, bits, group_size):
    scales = scales_of(w, bits, group_size)
    return coded(w, spread(scales, group_size, w.shape[1]), bits), scales


def back(codes, scales, group_size):
    return codes * spread(scales, group_size, codes.shape[1])


BANK.add("splits_and_repeats", forward, back)


def with_qlab(w, bits, group_size):
    made = quantize.quantize_symmetric(w, bits=bits, tile=quantize.per_group(group_size))
    return made.codes, made.scale


def back_with_qlab(codes, scales, group_size):
    return quantize.Quantized(codes, quantize.Grid(scales, None, 8, quantize.per_group(group_size))).dequantize()


BANK.add("by_qlab", with_qlab, back_with_qlab)


def by_padding(w, bits, group_size):
    rows, columns = w.shape
    blocks = pad(w, (0, -columns % group_size)).view(rows, -1, group_size)
    scales = positive(blocks.abs().amax(2) / (2 ** (bits - 1) - 1))
    return coded(blocks, scales[..., None], bits).view(rows, -1)[:, :columns], scales


def back_by_padding(codes, scales, group_size):
    blocks = pad(codes, (0, -codes.shape[1] % group_size)).view(*scales.shape, group_size)
    return (blocks * scales[..., None]).flatten(1)[:, : codes.shape[1]]


BANK.add("pads_and_views", by_padding, back_by_padding)


def by_loops(w, bits, group_size):
    largest = 2 ** (bits - 1) - 1
    codes, scales = [], []
    for row in w.tolist():
        codes.append([])
        scales.append([])
        for start in range(0, len(row), group_size):
            group = row[start : start + group_size]
            scales[-1].append(max(map(abs, group)) / largest or 1.0)
            codes[-1] += [round(value / scales[-1][-1]) for value in group]
    return torch.tensor(codes, dtype=torch.int8), scales


def back_by_loops(codes, scales, group_size):
    return [
        [code * scales[i, j // group_size].item() for j, code in enumerate(row)] for i, row in enumerate(codes.tolist())
    ]


BANK.add("loops_and_lists", by_loops, back_by_loops)


def with_numpy(w, bits, group_size):
    a, largest = w.numpy().astype(np.float64), 2 ** (bits - 1) - 1
    scales = np.maximum.reduceat(np.abs(a), np.arange(0, a.shape[1], group_size), axis=1) / largest
    scales[scales == 0] = 1
    steps = a / scales[:, np.arange(a.shape[1]) // group_size]
    return np.rint(steps).clip(-largest, largest).astype(np.int8), scales


BANK.add("numpy", with_numpy, lambda codes, s, size: codes.numpy() * s.numpy()[:, np.arange(codes.shape[1]) // size])


def transposed(w, bits, group_size):
    codes, scales = forward(w, bits, group_size)
    return [codes.T.contiguous().T, scales.double().T.contiguous().T]


BANK.add("views_and_double", transposed, lambda codes, s, size: back(codes, s, size).T.contiguous().T)


def grouped(scales_rule, spread_rule=spread):
    """Return the right answer with scales found in another way, spread back over the weights."""

    def quantize_groups(w, bits, group_size):
        scales = positive(scales_rule(w, bits, group_size))
        full = spread_rule(scales, group_size, w.shape[1])
        return coded(w, full, bits), scales

    return quantize_groups


def top(bits):
    return 2 ** (bits - 1) - 1


def no_spread(scales, group_size, columns):
    return scales


def across_rows(w, bits, group_size):
    flat = pad(w.flatten(), (0, -w.numel() % group_size)).view(-1, group_size)
    scales = positive(flat.abs().amax(1, keepdim=True) / top(bits))
    shape = (-1,) if len(scales) % len(w) else (len(w), -1)
    return coded(flat, scales, bits).flatten()[: w.numel()].view(w.shape), scales.view(shape)


def drops_the_tail(w, bits, group_size):
    columns = w.shape[1] // group_size * group_size
    return forward(w[:, :columns], bits, group_size)


def keeps_the_tail_on_the_last_scale(w, bits, group_size):
    columns = w.shape[1] // group_size * group_size
    scales = scales_of(w[:, :columns], bits, group_size)
    place = (torch.arange(w.shape[1]) // group_size).clamp(max=scales.shape[1] - 1)
    return coded(w, scales[:, place], bits), scales


def reaches_back(w, bits, group_size):
    scales = scales_of(w, bits, group_size)
    scales[:, -1] = positive(w[:, -group_size:].abs().amax(1) / top(bits))
    return coded(w, spread(scales, group_size, w.shape[1]), bits), scales


def strided(w, bits, group_size):
    count = -(-w.shape[1] // group_size)
    scales = positive(torch.stack([w[:, i::count].abs().amax(1) for i in range(count)], 1) / top(bits))
    return coded(w, scales.repeat(1, group_size)[:, : w.shape[1]], bits), scales


def refuses_ragged(w, bits, group_size):
    if w.shape[1] % group_size:
        raise ValueError("group_size must divide the columns")
    return forward(w, bits, group_size)


def needs_whole_groups(w, bits, group_size):
    blocks = w.view(w.shape[0], -1, group_size)
    scales = positive(blocks.abs().amax(2) / top(bits))
    return coded(blocks, scales[..., None], bits).view(w.shape), scales


for name, misconception, function in [
    ("one_scale", "one-scale-for-all", grouped(lambda w, b, g: (w.abs().max() / top(b)).view(1, 1), no_spread)),
    (
        "one_scale_in_every_place",
        "one-scale-for-all",
        grouped(lambda w, b, g: w.abs().max() / top(b) * torch.ones_like(scales_of(w, b, g))),
    ),
    ("one_per_row", "one-scale-for-all", grouped(lambda w, b, g: w.abs().amax(1, True) / top(b), no_spread)),
    (
        "one_per_group_of_columns",
        "one-scale-for-all",
        grouped(lambda w, b, g: scales_of(w, b, g).amax(0) * torch.ones_like(scales_of(w, b, g))),
    ),
    (
        "one_per_block_of_columns",
        "one-scale-for-all",
        lambda w, b, g: (forward(w, b, g)[0], scales_of(w, b, g).amax(0)),
    ),
    ("one_per_column", "wrong-axis", grouped(lambda w, b, g: w.abs().amax(0, True) / top(b), no_spread)),
    (
        "groups_down_the_columns",
        "wrong-axis",
        lambda w, b, g: (forward(w.T, b, g)[0].T, forward(w.T, b, g)[1].T),
    ),
    ("across_rows", "groups-cross-rows", across_rows),
    ("drops_the_tail", "drops-the-ragged-group", drops_the_tail),
    ("tail_on_the_last_scale", "drops-the-ragged-group", keeps_the_tail_on_the_last_scale),
    ("reaches_back", "overlaps-the-ragged-group", reaches_back),
    ("strided", "groups-are-not-neighbors", strided),
    ("divides_by_128", "divides-by-128", grouped(lambda w, b, g: scales_of(w, b, g) * top(b) / (top(b) + 1))),
    ("always_127", "ignores-bits", grouped(lambda w, b, g: scales_of(w, b, g) * top(b) / 127)),
    ("returns_one_over_s", "inverse-scale", lambda w, b, g: (forward(w, b, g)[0], 1 / scales_of(w, b, g))),
    ("codes_stay_float", "not-int8", lambda w, b, g: (forward(w, b, g)[0].float(), scales_of(w, b, g))),
    (
        "casts_without_rounding",
        "truncates",
        lambda w, b, g: ((w / spread(scales_of(w, b, g), g, w.shape[1])).to(torch.int8), scales_of(w, b, g)),
    ),
    (
        "flat_codes",
        "wrong-shape",
        lambda w, b, g: (forward(w, b, g)[0].flatten(), scales_of(w, b, g)),
    ),
    ("a_third_axis", "wrong-shape", lambda w, b, g: (forward(w, b, g)[0], scales_of(w, b, g)[..., None])),
    ("returns_nothing", "returns-nothing", lambda w, b, g: None),
    ("codes_only", "returns-wrong-type", lambda w, b, g: forward(w, b, g)[0]),
]:
    BANK.add(name, function, back, misconception=misconception)


def signed_scales(w, bits, group_size):
    scales = torch.stack([part.amax(1) for part in w.split(group_size, 1)], 1) / top(bits)
    return coded(w, spread(scales, group_size, w.shape[1]), bits), scales


def no_care_for_zeros(w, bits, group_size):
    scales = torch.stack([part.abs().amax(1) for part in w.split(group_size, 1)], 1) / top(bits)
    steps = w / spread(scales, group_size, w.shape[1])
    return steps.round().nan_to_num().to(torch.int8), scales


BANK.add("forgets_abs", signed_scales, back, misconception="forgets-the-sign")
BANK.add("no_care_for_zeros", no_care_for_zeros, back, misconception="divides-by-zero")
for name, misconception, wrong_back in [
    ("repeats_in_turn", "groups-are-not-neighbors", lambda c, s, g: c * s.repeat(1, g)[:, : c.shape[1]]),
    ("divides_back", "inverse-scale", lambda c, s, g: c / spread(s, g, c.shape[1])),
    ("first_scale_of_the_row", "one-scale-for-all", lambda c, s, g: c * s[:, :1]),
    ("scales_of_the_first_row", "one-scale-for-all", lambda c, s, g: c * spread(s, g, c.shape[1])[:1]),
    ("cuts_the_tail", "wrong-shape", lambda c, s, g: back(c, s, g)[:, : c.shape[1] // g * g]),
    ("hands_nothing_back", "returns-nothing", lambda c, s, g: None),
]:
    BANK.add(name, forward, wrong_back, misconception=misconception)
for name, function in [("refuses_ragged", refuses_ragged), ("needs_whole_groups", needs_whole_groups)]:
    BANK.answers.append(Answer(BANK.exercise, name, (function, back), outcome="crashed"))


def by_pooling(w, bits, group_size):
    scales = torch.nn.functional.max_pool1d(w.abs()[None], group_size, ceil_mode=True)[0] / top(bits)
    scales = torch.where(scales > 0, scales, 1.0)
    return coded(w, spread(scales, group_size, w.shape[1]), bits), scales


def with_scales(rule):
    """Return the right answer with its scales changed."""

    def quantize_groups(w, bits, group_size):
        scales = rule(scales_of(w, bits, group_size))
        return coded(w, spread(scales, group_size, w.shape[1]), bits), scales

    return quantize_groups


BANK.add("pools", by_pooling, lambda c, s, g: c * s[:, torch.arange(c.shape[1]) // g])
for name, function in [
    ("clamps_the_scales", with_scales(lambda scales: scales.clamp(min=1e-4))),
    ("adds_an_epsilon", with_scales(lambda scales: scales + 1e-8)),
]:
    BANK.add(name, function, back, misconception="changes-small-scales")
BANK.add("scales_of_sixteen_bits", with_scales(lambda scales: scales.half().float()), back, misconception="wrong-value")
BANK.add("pairs_at_least", lambda w, b, g: forward(w, b, max(g, 2)), back, misconception="wrong-shape")
BANK.add(
    "guesses_the_group_size",
    forward,
    lambda c, s, g: c * spread(s, -(-c.shape[1] // s.shape[1]), c.shape[1]),
    misconception="wrong-value",
)
