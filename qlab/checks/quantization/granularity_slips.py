"""What the slips of group-wise quantization give: scales of other groups, in the right shape or in another."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from qlab.checks.expect import Suspect
from qlab.checks.quantization.codes import with_an_epsilon


@dataclass(frozen=True)
class Case:
    """One call: `quantize_groups(w, bits, group_size)`."""

    w: Tensor
    bits: int
    group_size: int

    @property
    def call(self) -> str:
        return f"quantize_groups(w, {self.bits}, {self.group_size})"

    @property
    def told(self) -> str:
        """What was given, in words."""
        return f"w of shape {tuple(self.w.shape)}, bits={self.bits}, group_size={self.group_size}"

    @property
    def largest(self) -> int:
        """The largest code; the smallest is its negative."""
        return 2 ** (self.bits - 1) - 1

    @property
    def scales(self) -> Tensor:
        """One scale for each group of each row."""
        groups = self.w.double().split(self.group_size, dim=1)
        return torch.stack([group.abs().amax(1) for group in groups], 1) / self.largest


def other_groupings(case: Case) -> Iterator[tuple[str, str, Tensor]]:
    """Yield the largest magnitudes of other groups, which are fewer or more than there should be."""
    w, size, (rows, columns) = case.w.double().abs(), case.group_size, case.w.shape
    yield "one-scale-for-all", "One large weight would set the step of all: a scale for each group.", w.max()[None]
    yield "one-scale-for-all", "Each group of a row needs a scale of its own, not one for the row.", w.amax(1)
    blocks = torch.stack([group.max() for group in w.split(size, 1)])
    yield "one-scale-for-all", "Each row needs scales of its own.", blocks
    axis = "Groups run along a row, the inputs of one output: reduce over dim 1, not over dim 0."
    yield "wrong-axis", axis, w.amax(0)
    down = pad(w, (0, 0, 0, -rows % size)).view(-1, size, columns).amax(1)
    yield "wrong-axis", axis, down
    yield "wrong-axis", axis, down.T
    across = "A group ends with its row: a flattened matrix would let the end of one row share with the next."
    yield "groups-cross-rows", across, pad(w.flatten(), (0, -w.numel() % size)).view(-1, size).amax(1)
    tail = "The last group of a row may be shorter than the others, and it needs a scale too."
    yield "drops-the-ragged-group", tail, w[:, : columns // size * size].view(rows, -1, size).amax(2)
    merged = list(w.split(size, 1))
    merged = [*merged[:-2], torch.cat(merged[-2:], 1)] if columns % size else merged
    yield "merges-the-ragged-group", tail, torch.stack([group.amax(1) for group in merged], 1)


def wrong_scales(case: Case, got: Tensor) -> Iterator[Suspect]:
    """Yield the scales that slips put in the right places."""
    most = case.scales * case.largest
    for misconception, thought, magnitudes in _wrong_magnitudes(case, most):
        yield Suspect(misconception, thought, magnitudes.expand_as(most) / case.largest)
    yield Suspect("divides-by-128", "With 8 bits the codes end at 127, with 4 at 7.", most / (case.largest + 1))
    yield Suspect("ignores-bits", "The largest code follows from `bits`.", most / 127)
    yield Suspect("counts-255-levels", "From −127 to 127 there are 254 steps.", most / (case.largest + 0.5))
    yield Suspect("inverse-scale", "The scale is the size of a step: return S, not 1 / S.", case.largest / most)
    for factor in (1, case.largest):  # an epsilon on the scale, or on the magnitude
        for suspect in with_an_epsilon(factor * case.scales.flatten(), factor * got.double().flatten()):
            yield Suspect(suspect.misconception, suspect.thought, suspect.values / factor)


def _wrong_magnitudes(case: Case, most: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    w, size, count = case.w.double(), case.group_size, most.shape[1]
    shared = "Each group of each row has a largest magnitude of its own."
    for magnitudes in (most.max(), most.amax(1, keepdim=True), most.amax(0)):
        yield "one-scale-for-all", shared, magnitudes
    signed = torch.stack([group.amax(1) for group in w.split(size, dim=1)], 1)
    yield "forgets-the-sign", "−3 is larger in magnitude than 2: take absolute values first.", signed
    back = torch.cat([most[:, :-1], w[:, -size:].abs().amax(1, keepdim=True)], 1)
    yield "overlaps-the-ragged-group", "The last group holds what is left of the row: it does not reach back.", back
    flat = pad(w.abs().flatten(), (0, most.numel() * size - w.numel())).view(-1, size).amax(1).view(most.shape)
    yield "groups-cross-rows", "A group ends with its row: pad each row, not the end of the flat matrix.", flat
    strided = torch.stack([w[:, i::count].abs().amax(1) for i in range(count)], 1)
    yield "groups-are-not-neighbors", "Neighbors share a scale: columns 0 to group_size − 1, then the next.", strided
