"""Hostile submissions: what each tries, and what must come of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

ALL = ".*"


@dataclass(frozen=True)
class Hostile:
    """One submission that tries something, described by how it differs from a right one, or from an untouched one.

    `answers` maps an exercise to the source of its answer. An exercise that is named there must earn nothing, unless
    it is in `keeps`, which must earn all, or in `at_most`, which may earn up to that many points. Every other exercise
    must earn all of its points if `answered`, and none otherwise. `says` maps an exercise to a pattern that its
    outcome, misconception and remarks, joined by spaces, must match. `@COURSE@`, `@REPOSITORY@`, `@PORT@` and
    `@NAME@` in sources stand for places that the traps made.
    """

    name: str
    tries: str
    lab: str = "types"
    answered: bool = True
    opening: str = ""
    closing: str = ""
    answers: Mapping[str, str] = field(default_factory=dict)
    keeps: frozenset[str] = frozenset()
    at_most: Mapping[str, int] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)
    harms: bool = False  # it may take memory, processes or processor from others: they are graded at the same time

    def least_and_most(self, exercise: str, points: int) -> tuple[int, int]:
        """Return the fewest and the most points an exercise may earn."""
        if exercise in self.keeps:
            return points, points
        if exercise in self.at_most:
            return 0, self.at_most[exercise]
        right = self.answered and exercise not in self.answers
        return (points, points) if right else (0, 0)
