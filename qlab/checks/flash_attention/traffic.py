"""Check of `standard_bytes` and `flash_bytes`: every tensor that crosses the memory bus, counted each time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from qlab import attention
from qlab.checks.expect import Suspect
from qlab.checks.flash_attention.exact import TOPIC
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.report import check, part

Slip = tuple[str, str, float]


@dataclass(frozen=True)
class Case:
    """One head of `length` queries and keys in FP16; blocks are used by the tiled pass only."""

    length: int
    width: int
    rows: int = 0
    columns: int = 0
    is_causal: bool = False

    @property
    def tensor(self) -> int:
        """Bytes of q, of k, of v and of the output."""
        return 2 * self.length * self.width

    @property
    def scores(self) -> int:
        """Bytes of a matrix of scores, or of weights."""
        return 2 * self.length**2

    def keys_read(self, *, last: Callable[[int], int] | None = None) -> int:
        """Count the keys that all blocks of rows read; `last` says where a block of rows from a start stops."""
        stops = (self.seen(start) if last is None else last(start) for start in range(0, self.length, self.rows))
        return sum(stops)

    def seen(self, start: int) -> int:
        """Count the keys in the tiles that the rows from `start` visit."""
        if not self.is_causal:
            return self.length
        return min(math.ceil(min(start + self.rows, self.length) / self.columns) * self.columns, self.length)

    def flash(self, keys: float | None = None) -> float:
        """Return what the tiled pass moves: queries, output, log-sum-exp, and keys and values as often as read."""
        keys = self.keys_read() if keys is None else keys
        return 2 * self.tensor + 4 * self.length + 4 * keys * self.width


@check(TOPIC, "hbm-bytes", attention.standard_bytes, attention.flash_bytes, points=4)
def check_hbm_bytes(standard_bytes: LearnerFunction, flash_bytes: LearnerFunction, draw: torch.Generator) -> None:
    """Check `standard_bytes(length, width)` and `flash_bytes(length, width, block_rows, block_columns, is_causal)`."""
    with part("standard: three kernels, and each reads and writes its matrices"):
        cases = [Case(drawn(100, 5_000, draw), 8 * drawn(2, 32, draw)) for _ in range(4)]
        require_numbers(
            [standard_bytes(c.length, c.width) for c in cases],
            [2 * (c.tensor * 2 + c.scores * 2) for c in cases],
            calls=[f"standard_bytes({c.length}, {c.width})" for c in cases],
            suspects=lambda: _suspects(cases, _standard_slips),
        )
    with part("tiled: keys and values once for each block of rows"):
        _compare(flash_bytes, [_case(draw, even=True) for _ in range(4)])
    with part("a ragged last block moves what it holds, and no more"):
        _compare(flash_bytes, [_case(draw), _case(draw), _larger(draw)])
    with part("causal: no tile is read that is hidden as a whole"):
        square = _case(draw, is_causal=True)
        tall, wide = (Case(drawn(900, 1_300, draw), 64, *blocks, True) for blocks in ((96, 40), (40, 96)))
        _compare(flash_bytes, [square, tall, wide])


def _case(draw: torch.Generator, *, even: bool = False, is_causal: bool = False) -> Case:
    """Draw blocks and a length of 5 to 20 of the larger, which both divide if `even`."""
    columns, width = 8 * drawn(4, 9, draw), 8 * drawn(3, 16, draw)
    rows = columns * drawn(2, 3, draw)
    return Case(
        rows * drawn(5, 20, draw) + (0 if even else drawn(1, columns - 1, draw)), width, rows, columns, is_causal
    )


def _larger(draw: torch.Generator) -> Case:
    """Draw a block of rows that is larger than the sequence."""
    length = drawn(100, 200, draw)
    return Case(length, 64, length + drawn(1, 100, draw), drawn(20, 60, draw))


def _compare(flash_bytes: LearnerFunction, cases: list[Case]) -> None:
    require_numbers(
        [flash_bytes(c.length, c.width, c.rows, c.columns, c.is_causal) for c in cases],
        [c.flash() for c in cases],
        calls=[f"flash_bytes({c.length}, {c.width}, {c.rows}, {c.columns}, {c.is_causal})" for c in cases],
        suspects=lambda: _suspects(cases, _flash_slips),
    )


def _suspects(cases: list[Case], slips: Callable[[Case], Iterator[Slip]]) -> Iterator[Suspect]:
    for same_slip in zip(*map(slips, cases), strict=True):
        misconception, thought, _ = same_slip[0]
        yield Suspect(misconception, thought, doubles([value for _, _, value in same_slip]))


def _standard_slips(case: Case) -> Iterator[Slip]:
    tensor, scores = case.tensor, case.scores
    right = 4 * tensor + 4 * scores
    size = "FP16 takes two bytes a value."
    for factor in (0.5, 2, 4):
        yield "wrong-bytes-per-value", size, right * factor
    kernels = "Three kernels: q kᵀ writes the scores, softmax reads and writes, the product with v reads the weights."
    for matrices in (0, 1, 2, 3):
        yield "forgets-a-pass-over-the-scores", kernels, 4 * tensor + matrices * scores
    vectors = "The first product reads q and k, the last reads v and writes the output: four tensors of N · d."
    for tensors in (0, 1, 2, 3, 6):
        yield "miscounts-the-inputs", vectors, tensors * tensor + 4 * scores
    yield "forgets-a-pass-over-the-scores", f"{kernels} {vectors}", 3 * tensor + 2 * scores
    yield "counts-operations", "These are operations: count bytes.", 4 * case.length**2 * case.width
    yield "counts-operations", "These are operations: count bytes.", 2 * case.length**2 * case.width


def _flash_slips(case: Case) -> Iterator[Slip]:
    n, width, tensor, right = case.length, case.width, case.tensor, case.flash()
    kv = right - 2 * tensor - 4 * n
    # first: with the last block left out as many bytes are missing as without queries and output
    parts = "A part of a block is a block as well: it reads the keys once more. Round the number of blocks up."
    yield "rounds-blocks-down", parts, case.flash(n // case.rows * n)
    yield "rounds-blocks-down", parts, case.flash(n / case.rows * n)
    size = "FP16 takes two bytes a value, the log-sum-exp, in FP32, four."
    for values in (2 * tensor + 2 * n + kv, 2 * right, 2 * (right - 4 * n) + 4 * n, right / 2):
        yield "wrong-bytes-per-value", size, values
    yield "counts-values", "These are values: count bytes.", (right - 4 * n) / 2 + n
    yield "forgets-the-log-sum-exp", "The backward pass needs the log-sum-exp: N values are written.", right - 4 * n
    for values in (right - tensor, right - 2 * tensor, right - tensor - 4 * n, right - 2 * tensor - 4 * n):
        yield "forgets-queries-or-output", "The queries are read once, and the output is written once.", values
    yield "counts-keys-or-values-only", "Every tile reads keys *and* values.", right - kv / 2
    once = "The keys and values do not stay on the chip: each block of rows reads them again."
    yield "reads-keys-once", once, 4 * tensor + 4 * n
    turned = "The loop over rows is the outer one: queries stay, and keys and values come by again."
    passes = math.ceil(n / case.columns)
    yield "loops-turned-round", turned, 2 * tensor * passes + 2 * tensor + 4 * n
    yield "loops-turned-round", turned, 2 * tensor + tensor * 2 * passes + 4 * n
    yield "loops-turned-round", turned, 3 * tensor * passes + 2 * tensor + 4 * n
    again = "The tile of queries stays on the chip while all keys come by: it is read once."
    tiles = sum(case.seen(start) / case.columns for start in range(0, n, case.rows))
    yield "reads-queries-for-each-tile", again, right - tensor + tensor * passes
    yield "stores-the-scores", "Scores and weights never leave the chip.", right + 2 * case.scores
    yield "stores-the-scores", "Scores and weights never leave the chip.", right + 4 * case.scores
    whole = "The last block is shorter: it moves as many rows, or keys, as it holds."
    padded = math.ceil(n / case.columns) * case.columns
    rows = math.ceil(n / case.rows)
    yield "counts-whole-blocks", whole, case.flash(rows * padded)
    yield "counts-whole-blocks", whole, case.flash(math.ceil(tiles) * case.columns)
    for values in (rows * padded, rows * n):
        at = rows * case.rows
        yield "counts-whole-blocks", whole, 4 * at * width + 4 * at + 4 * values * width
        yield "counts-whole-blocks", whole, 4 * at * width + 4 * n + 4 * values * width
    yield "counts-whole-blocks", whole, case.flash(_up(case))
    yield from _causal_slips(case)


def _up(case: Case) -> int:
    """Count the keys of visited tiles, the last of them as a whole block."""
    stops = (min(start + case.rows, case.length) for start in range(0, case.length, case.rows))
    return sum(math.ceil((stop if case.is_causal else case.length) / case.columns) * case.columns for stop in stops)


def _causal_slips(case: Case) -> Iterator[Slip]:
    n, rows, columns = case.length, case.rows, case.columns
    blocks = math.ceil(n / rows)
    skipped = (
        "Causal: a block of rows stops at the tile that holds the key of its last query; later tiles are not read."
    )
    yield "reads-hidden-tiles", skipped, case.flash(blocks * n)
    half = "The triangle is cut into tiles: count the tiles, half of the square is too little."
    for values in (blocks * n / 2, blocks * n // 2, n * (n + 1) / 2 / rows):
        yield "halves-the-traffic", half, case.flash(values)
        yield "halves-the-traffic", half, (case.flash(blocks * n) + 0.0) / 2
    diagonal = "The tile on the diagonal is read, too: its first keys are seen."
    yield "skips-the-diagonal-tiles", diagonal, case.flash(case.keys_read(last=lambda r: r // columns * columns))
    yield "skips-the-diagonal-tiles", diagonal, case.flash(case.keys_read(last=lambda r: min(r, n)))
    yield (
        "skips-the-diagonal-tiles",
        diagonal,
        case.flash(case.keys_read(last=lambda r: min(r + rows, n) // columns * columns)),
    )
    first = "The *last* query of a block sees the most keys: a block stops where its last query does."
    yield (
        "stops-at-the-first-query",
        first,
        case.flash(case.keys_read(last=lambda r: min(-(-(r + 1) // columns) * columns, n))),
    )
    whole = "Tiles are read whole: from the key of the last query, round up to the end of its tile."
    yield "reads-parts-of-tiles", whole, case.flash(case.keys_read(last=lambda r: min(r + rows, n)))
    one_more = "A tile that begins at the end of the rows holds no key that they see."
    yield (
        "reads-one-tile-too-many",
        one_more,
        case.flash(case.keys_read(last=lambda r: min((min(r + rows, n) // columns + 1) * columns, n))),
    )
