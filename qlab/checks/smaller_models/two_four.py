"""Check of `two_four_mask` and `bits_per_weight`: two of every four stay, and what they cost when really stored."""

from collections.abc import Callable

import torch
from torch import Tensor

from qlab import sparsity as reference
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import FP32_ROUNDING, doubles, drawn, require_numbers
from qlab.checks.report import Refused, check, part
from qlab.checks.smaller_models.reading import as_mask
from qlab.checks.smaller_models.topic import TOPIC

CALL = "two_four_mask(weight)"
LOOK = "Look at one row as groups of four: `weight.view(rows, -1, 4)`."


@check(TOPIC, "two-four", reference.two_four_mask, reference.two_four_codes, points=5)
def check_two_four(two_four_mask: LearnerFunction, bits_per_weight: LearnerFunction, draw: torch.Generator) -> None:
    """Check `two_four_mask(weight)`, True where a weight stays, and `bits_per_weight(value_bits)`."""
    with part("two of every four neighbors in a row stay"):
        weight = torch.randn(8, 4 * drawn(4, 6, draw), generator=draw)
        _require_two_of_four(_mask(two_four_mask, weight), weight, which=False)
    with part("they are the two of the largest magnitude"):
        weight = torch.randn(8, 4 * drawn(4, 6, draw), generator=draw)
        _require_two_of_four(_mask(two_four_mask, weight), weight, which=True)
    with part("equal magnitudes and zeros: still two"):
        weight = torch.randint(-1, 2, (8, 16), generator=draw).float()
        _require_two_of_four(_mask(two_four_mask, weight), weight, which=True)
    with part("a weight stored column by column, in BF16"):
        weight = torch.randn(12, 8, generator=draw).bfloat16().t()
        _require_two_of_four(_mask(two_four_mask, weight), weight, which=True)
    with part("the bits of a weight, positions included"):
        _require_bits(bits_per_weight, draw)


def _mask(two_four_mask: LearnerFunction, weight: Tensor) -> Tensor:
    return as_mask(two_four_mask(weight), weight, call=CALL)


def _require_two_of_four(mask: Tensor, weight: Tensor, *, which: bool) -> None:
    groups, magnitudes = mask.reshape(-1, 4), weight.reshape(-1, 4).abs().float()
    counts = groups.sum(dim=1)
    right = counts == 2
    if which:
        right &= _smallest_kept(groups, magnitudes) >= _largest_cut(groups, magnitudes)
    if right.all():
        return
    at = int((~right).nonzero()[0])
    row, column = divmod(4 * at, weight.shape[1])
    stay = groups[at].nonzero().flatten().tolist()
    message = (
        f"in row {row}, columns {column} to {column + 3}, of {[f'{v:.3g}' for v in weight.reshape(-1, 4)[at].tolist()]}"
        f" those at {stay} stay (wrong in {int((~right).sum())} of {len(right)} groups)"
    )
    for misconception, thought, fits in _slips(mask, weight):
        if fits():
            raise Refused(message, misconception=misconception, thought=thought)
    raise Refused(message, misconception="wrong-value", thought=LOOK)


def _smallest_kept(groups: Tensor, magnitudes: Tensor) -> Tensor:
    return magnitudes.masked_fill(~groups, torch.inf).amin(dim=1)


def _largest_cut(groups: Tensor, magnitudes: Tensor) -> Tensor:
    return magnitudes.masked_fill(groups, -torch.inf).amax(dim=1)


def _slips(mask: Tensor, weight: Tensor) -> list[tuple[str, str, Callable[[], bool]]]:
    def largest_two(grouped_mask: Tensor, values: Tensor) -> bool:
        grouped_mask, values = grouped_mask.reshape(-1, 4), values.reshape(-1, 4)
        twos = bool((grouped_mask.sum(dim=1) == 2).all())
        return twos and bool((_smallest_kept(grouped_mask, values) >= _largest_cut(grouped_mask, values)).all())

    def down_the_columns() -> bool:
        if weight.shape[0] % 4 == 0:
            return largest_two(mask.t(), weight.abs().float().t())
        return False

    def groups_apart() -> bool:
        def gathered(tensor: Tensor) -> Tensor:
            return tensor.reshape(len(tensor), 4, -1).transpose(1, 2)

        return largest_two(gathered(mask), gathered(magnitudes))

    def half_of(rows: Tensor, row_masks: Tensor) -> bool:
        halves = all(2 * int(m.sum()) == len(m) for m in row_masks)
        ordered = (v[m].min() >= v[~m].max() for v, m in zip(rows, row_masks, strict=True))
        return halves and all(map(bool, ordered))

    def by_threshold() -> bool:
        groups, values = mask.reshape(-1, 4), magnitudes.reshape(-1, 4)
        ranked = values.sort(dim=1).values
        tied = (ranked[:, 1] == ranked[:, 2]) & (groups.sum(dim=1) != 2)
        right = (groups.sum(dim=1) == 2) & (_smallest_kept(groups, values) >= _largest_cut(groups, values))
        return bool(tied.any() and (tied | right).all())

    magnitudes = weight.abs().float()
    whole = (magnitudes.reshape(1, -1), mask.reshape(1, -1))
    in_rows = (magnitudes, mask)
    return [
        (
            "half-of-everything",
            "Half of the weights stay, but not two of each four: the hardware needs the pattern in every group.",
            lambda: half_of(*whole) or half_of(*in_rows),
        ),
        (
            "groups-far-apart",
            "`reshape(rows, 4, -1)` groups values a quarter of a row apart: neighbors are `reshape(rows, -1, 4)`.",
            groups_apart,
        ),
        (
            "groups-down-the-columns",
            "Your groups run down the columns: a group is four neighbors in a row, along the last dimension.",
            down_the_columns,
        ),
        (
            "keeps-the-smallest",
            "Your mask marks the two smallest: True stands for a weight that stays.",
            lambda: largest_two(mask, -magnitudes),
        ),
        (
            "ignores-the-sign",
            "−3 is larger than 1 here: compare magnitudes, `weight.abs()`.",
            lambda: largest_two(mask, weight.float()),
        ),
        (
            "threshold-moves-the-count",
            "A comparison takes all equal magnitudes or none: choose two positions, as `topk` does.",
            by_threshold,
        ),
    ]


def _require_bits(bits_per_weight: LearnerFunction, draw: torch.Generator) -> None:
    widths = [16, 8, 32, 2 * drawn(1, 3, draw) + 1]
    want = [(2 * bits + 2 * 2) / 4 for bits in widths]

    def slip(misconception: str, thought: str, formula: Callable[[int], float]) -> Suspect:
        return Suspect(misconception, thought, doubles([formula(bits) for bits in widths]))

    require_numbers(
        [bits_per_weight(bits) for bits in widths],
        want,
        calls=[f"bits_per_weight({bits})" for bits in widths],
        within=FP32_ROUNDING,
        suspects=lambda: (
            slip(
                "forgets-positions", "Whoever reads the values must know which two of four they are.", lambda b: b / 2
            ),
            slip("keeps-the-zeros", "The two that go are not stored.", float),
            slip("one-position-a-group", "Both values of a group have a position.", lambda b: (2 * b + 2) / 4),
            slip(
                "drops-the-fraction",
                "A weight of 5-bit values costs three and a half bits: divide with `/`, where `//` drops the half.",
                lambda b: (2 * b + 4) // 4,
            ),
            slip("bits-of-a-group", "Divide by the four weights of a group.", lambda b: 2 * b + 4),
            slip("bits-of-what-stays", "Divide by all four weights, those that went as well.", lambda b: b + 2),
            slip(
                "bit-a-weight",
                "Four bits say which of four stay; two positions of 2 bits are what the hardware reads"
                ": that is one bit a weight as well. Look at the values: how many are stored?",
                lambda b: b + 1,
            ),
        ),
    )
