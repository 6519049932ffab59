"""Bringing a learner's cells back into the release's structure: matched by `grade_id`, then by place."""

import copy
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbformat import NotebookNode

from qlab.labs import notebooks

MOST_REPAIRS = 30
FEWEST_FOREIGN = 2  # answers of another lab: one may have been renamed
LONGEST_TITLE = 60
FLAGS = ("grade", "solution", "locked", "task")
DEFINITION = re.compile(r"^(?:async +)?(?:def|class) +(\w+)", re.MULTILINE)


class AnotherLab(ValueError):
    """None of the release's answers is in a notebook that holds answers of others; the text names its title."""


@dataclass(frozen=True)
class Cell:
    """What is read of a learner's cell: its kind, its source, and what its metadata say of it, which may be a lie."""

    kind: str
    source: str
    id: str = ""
    noted: dict[str, Any] = field(default_factory=dict)

    @property
    def grade_id(self) -> str:
        named = self.noted.get("grade_id")
        return named if isinstance(named, str) else ""


def mended(found: Sequence[Cell], release: NotebookNode) -> tuple[NotebookNode, tuple[str, ...]]:
    """Return the release's cells with the learner's code in them, the learner's own cells between, and the repairs.

    Errors:  AnotherLab if it is one.
    """
    match = _Match(found, release)
    own = [index for index in range(len(found)) if index not in match.taken]
    after = _places(own, match)
    cells = [_own_cell(found[index], index) for index in after.get(None, ())]
    for place, cell in enumerate(release.cells):
        if place in match.of or match.is_needed(place):
            cells.append(_released(cell, found[match.of[place]] if place in match.of else None))
        cells += [_own_cell(found[index], index) for index in after.get(place, ())]
    notebook = NotebookNode(copy.deepcopy({k: v for k, v in release.items() if k != "cells"}), cells=cells)
    told = _Told(match).all()
    more = [f"and {len(told) - MOST_REPAIRS} more repairs"] if len(told) > MOST_REPAIRS else []
    return notebook, (*told[:MOST_REPAIRS], *more)


class _Match:
    """Which cell of the submission stands for which cell of the release."""

    def __init__(self, found: Sequence[Cell], release: NotebookNode) -> None:
        self.found, self.cells = found, release.cells
        self.of: dict[int, int] = {}  # place in the release: index in the submission
        self.taken: dict[int, int] = {}
        self.marked = [place for place, cell in enumerate(self.cells) if name_of(cell)]
        self._match_copies()
        self._match_each(lambda cell, own: bool(own.id) and own.id == cell.get("id") and not own.grade_id)
        self._match_each(lambda cell, own: not own.grade_id and own.source == cell.source)
        self._match_by_definition()
        self._refuse_another_lab()
        self._match_by_place()

    def is_needed(self, place: int) -> bool:
        """Tell whether a cell that is not there must be put back: what nbgrader marks, and the setup before it."""
        first = self.marked[0] if self.marked else 0
        return bool(name_of(self.cells[place])) or (place < first and self.cells[place].cell_type == "code")

    def between(self, place: int) -> range:
        """Return the indices between the nearest matched cells before and after a place of the release."""
        before = max((self.of[p] for p in self.of if p < place), default=-1)
        after = min((i for p, i in self.of.items() if p > place and i > before), default=len(self.found))
        return range(before + 1, after)

    def _take(self, place: int, index: int) -> None:
        self.of[place], self.taken[index] = index, place

    def _match_copies(self) -> None:
        """Match by `grade_id`; of several copies, the one that stands where the release has it."""
        by_id: dict[str, list[int]] = {}
        for index, own in enumerate(self.found):
            if own.grade_id:
                by_id.setdefault(own.grade_id, []).append(index)
        places = {place: by_id.get(name_of(self.cells[place]), []) for place in self.marked}
        for place, copies in places.items():
            if len(copies) == 1:
                self._take(place, copies[0])
        for place, copies in places.items():
            if len(copies) > 1:
                here = self.between(place)
                same = [i for i in copies if self.found[i].kind == self.cells[place].cell_type] or copies
                self._take(place, next((i for i in same if i in here), same[0]))

    def _match_each(self, fits: Callable[[NotebookNode, Cell], bool]) -> None:
        free = [index for index in range(len(self.found)) if index not in self.taken]
        for place, cell in enumerate(self.cells):
            if place not in self.of:
                index = next((i for i in free if i not in self.taken and fits(cell, self.found[i])), None)
                if index is not None:
                    self._take(place, index)

    def _match_by_definition(self) -> None:
        """Find an answer whose marks are gone by the names that it defines, the nearest to its place first."""
        lost = [p for p in self.marked if p not in self.of and notebooks.marks(self.cells[p]).get("solution")]
        free = [i for i in range(len(self.found)) if i not in self.taken] if lost else []
        defined = {index: defined_in(self.found[index].source) for index in free}
        for place in lost:
            names, here = defined_in(self.cells[place].source), self.between(place)
            fits = [i for i in free if i not in self.taken and names and names <= defined[i]]
            if fits:
                self._take(place, next((i for i in reversed(fits) if i in here), fits[-1]))

    def _refuse_another_lab(self) -> None:
        foreign = [
            own for i, own in enumerate(self.found) if own.grade_id and _is_solution(own) and i not in self.taken
        ]
        if len(foreign) < FEWEST_FOREIGN or any(_is_solution(self.cells[place]) for place in self.of):
            return
        titles = (own.source.strip().lstrip("# ").splitlines() for own in self.found if own.kind == "markdown")
        title = next((lines[0] for lines in titles if lines), "untitled")
        title = "".join(letter for letter in title if letter.isprintable())[:LONGEST_TITLE]
        raise AnotherLab(f"none of this lab's answers is in it: it looks like another notebook, {title!r}")

    def _match_by_place(self) -> None:
        """Take what was renamed: the one cell that stands where a marked cell is missing, and says it is marked."""
        known = {name_of(cell) for cell in self.cells}
        for place in self.marked:
            if place not in self.of:
                free = [i for i in self.between(place) if i not in self.taken]
                renamed = [i for i in free if self.found[i].grade_id and self.found[i].grade_id not in known]
                alike = [i for i in renamed if _is_solution(self.found[i]) == _is_solution(self.cells[place])]
                if len(alike) == 1:
                    self._take(place, alike[0])


class _Told:
    """The repairs of a match, a sentence each; only names of the release appear in them."""

    def __init__(self, match: _Match) -> None:
        self._match = match

    def all(self) -> list[str]:
        told = [sentence for place in self._match.marked for sentence in self._of_cell(place)]
        told += [
            f"the setup cell {self._match.cells[place].get('id', place + 1)!r} was missing and was put back"
            for place, cell in enumerate(self._match.cells)
            if not name_of(cell) and place not in self._match.of and self._match.is_needed(place)
        ]
        return told + self._of_order() + self._of_strangers()

    def _of_cell(self, place: int) -> list[str]:
        cell, name = self._match.cells[place], name_of(self._match.cells[place])
        copies = [own for own in self._match.found if own.grade_id == name]
        told = [f"{name!r} was there {len(copies)} times: its copies became plain cells"] if len(copies) > 1 else []
        if place not in self._match.of:
            return [*told, f"{name!r} was missing and was put back as released"]
        own, noted = self._match.found[self._match.of[place]], notebooks.marks(cell)
        if own.grade_id != name:
            told.append(f"{name!r} had lost its name and was found by its place or its code")
        if own.kind != cell.cell_type:
            told.append(f"{name!r} had become a {own.kind} cell and is a {cell.cell_type} cell again")
        if own.grade_id and any(bool(own.noted.get(flag)) != bool(noted.get(flag)) for flag in FLAGS):
            told.append(f"{name!r} had other marks (graded, answer, locked) than the release and has them again")
        if own.grade_id and own.noted.get("points") != noted.get("points"):
            told.append(f"{name!r} had other points than the release and has {notebooks.points(cell)} again")
        if not _is_solution(cell) and own.source != cell.source:
            told.append(f"{name!r} is locked: its text was changed and was put back")
        return told

    def _of_order(self) -> list[str]:
        farthest, moved = -1, []
        for place in self._match.marked:
            index = self._match.of.get(place, farthest)
            if index < farthest:
                moved.append(name_of(self._match.cells[place]))
            farthest = max(farthest, index)
        shown = ", ".join(map(repr, moved[:3])) + (" and others" if len(moved) > 3 else "")
        return [f"the release's order was restored: {shown} had been moved"] if moved else []

    def _of_strangers(self) -> list[str]:
        known = {name_of(cell) for cell in self._match.cells}
        own = (cell for index, cell in enumerate(self._match.found) if index not in self._match.taken)
        strangers = Counter(bool(cell.noted.get("grade")) for cell in own if cell.grade_id not in known)
        count = strangers[True]
        return [f"{count} graded cells that are not the release's became plain cells"] if count else []


def name_of(cell: NotebookNode) -> str:
    """Return the `grade_id` of a release's cell, or an empty string."""
    return notebooks.marks(cell).get("grade_id") or ""


def defined_in(source: str) -> set[str]:
    """Return the functions and classes that a cell seems to define at its top level, without parsing it."""
    return set(DEFINITION.findall(source))


def _is_solution(cell: Cell | NotebookNode) -> bool:
    return bool((cell.noted if isinstance(cell, Cell) else notebooks.marks(cell)).get("solution"))


def _places(own: Sequence[int], match: _Match) -> dict[int | None, list[int]]:
    """Put each of the learner's own cells after the release's cell that it followed."""
    places: dict[int | None, list[int]] = {}
    last, waiting = None, iter(own)
    following = next(waiting, None)
    for index in range(len(match.found)):
        if index == following:
            places.setdefault(last, []).append(index)
            following = next(waiting, None)
        else:
            last = match.taken[index]
    return places


def _released(cell: NotebookNode, own: Cell | None) -> NotebookNode:
    """Return the release's cell, with the learner's source where the learner may write."""
    if own is None or (name_of(cell) and not _is_solution(cell)):
        return _emptied(copy.deepcopy(cell))
    kind = cell.cell_type if name_of(cell) else own.kind
    metadata = copy.deepcopy(cell.metadata)
    return _emptied(NotebookNode(cell_type=kind, id=cell.get("id", ""), metadata=metadata, source=own.source))


def _own_cell(own: Cell, index: int) -> NotebookNode:
    return _emptied(NotebookNode(cell_type=own.kind, id=f"own-{index + 1}", metadata=NotebookNode(), source=own.source))


def _emptied(cell: NotebookNode) -> NotebookNode:
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
    return cell
