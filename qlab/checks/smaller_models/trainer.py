"""A training run that the check of the lottery ticket stands in for."""

import torch

from qlab.checks.smaller_models.reading import State, copied

SHAPES = {"first": (16, 8), "second": (8, 16)}  # 256 weights: a half and a quarter of them are whole numbers, twice


class Trainer:
    """A training run that the check stands in for: it notes with what it was called, and what it returned.

    A trained weight depends on its place, the round and where it began; its magnitude says nothing about the initial.
    """

    def __init__(self, draw: torch.Generator):
        self._draw = draw
        self.begun: list[State] = []
        self.masks: list[State | None] = []
        self.ended: list[State] = []

    def __call__(self, weights: State, masks: State | None = None) -> State:
        begun = {name: torch.as_tensor(weights[name]).detach().clone() for name in SHAPES}
        self.masks.append(
            None if masks is None else {name: torch.as_tensor(masks[name]).detach() != 0 for name in SHAPES}
        )
        if masks is not None:
            begun = {name: begun[name] * torch.as_tensor(masks[name]) for name in SHAPES}
        self.begun.append(begun)
        moved = {name: 3 * torch.randn(SHAPES[name], generator=self._draw) for name in SHAPES}
        self.ended.append({name: (begun[name] + moved[name]) * (begun[name] != 0) for name in SHAPES})
        return copied(self.ended[-1])
