"""A training run that the check of the lottery ticket stands in for."""

import torch

from qlab.checks.handed import handed_named
from qlab.checks.smaller_models.reading import State, copied

SHAPES = {"first": (16, 8), "second": (8, 16)}  # 256 weights: a half and a quarter of them are whole numbers, twice
NOTED = 20  # calls, of which an answer makes three at most


class Trainer:
    """A training run that the check stands in for: it notes with what it was called, and what it returned.

    A trained weight depends on its place, the round and where it began; its magnitude says nothing about the initial.
    """

    def __init__(self, draw: torch.Generator):
        self._draw = draw
        self.calls = 0
        self.begun: list[State] = []
        self.masks: list[State | None] = []
        self.ended: list[State] = []

    def __call__(self, weights: State, masks: State | None = None) -> State:
        begun = {name: tensor.clone() for name, tensor in handed_named(weights, SHAPES, what="weights").items()}
        given = None if masks is None else handed_named(masks, SHAPES, what="masks", floating=False)
        if given is not None:
            begun = {name: begun[name] * given[name] for name in SHAPES}
        moved = {name: 3 * torch.randn(SHAPES[name], generator=self._draw) for name in SHAPES}
        ended = {name: (begun[name] + moved[name]) * (begun[name] != 0) for name in SHAPES}
        self._note(begun, given, ended)
        return copied(ended)

    def _note(self, begun: State, masks: State | None, ended: State) -> None:
        self.calls += 1
        if self.calls <= NOTED:
            self.begun.append(begun)
            self.masks.append(None if masks is None else {name: mask != 0 for name, mask in masks.items()})
            self.ended.append(ended)
