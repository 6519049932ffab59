"""Which cells a process that is not a submission's first must run again, and for what."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from nbformat import NotebookNode

from qlab.grading.check_cells import bound_names, imported_names, touched_names, used_names
from qlab.labs import notebooks


@dataclass(frozen=True, eq=False)
class Entry:
    """A cell that ran and did not end its process, with the global names that it binds, reads and may change."""

    source: str
    name: str = ""

    @cached_property
    def bound(self) -> frozenset[str]:
        return bound_names(self.source)

    @cached_property
    def used(self) -> frozenset[str]:
        return used_names(self.source)

    @cached_property
    def touched(self) -> frozenset[str]:
        return touched_names(self.source)

    @cached_property
    def imported(self) -> frozenset[str]:
        return imported_names(self.source)


class History:
    """The cells of a submission that ran, in order.

    After a death, cells are run again where a cell or a check needs them: the first one, which is the setup, and what
    binds or changes a global name that is read. So a cell that harms its process later harms no exercise but those
    that need it. The release's own try-outs and figures change nothing: they are run again for the names they bind.
    """

    def __init__(self, release: NotebookNode) -> None:
        code = [cell for cell in release.cells if cell.cell_type == "code"]
        self._furniture = frozenset(cell.source.strip() for cell in code if not notebooks.marks(cell).get("grade_id"))
        self._entries: list[Entry] = []

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(entry.source for entry in self._entries)

    def add(self, source: str, name: str) -> Entry:
        self._entries.append(Entry(source, name))
        return self._entries[-1]

    def drop(self, entry: Entry) -> None:
        """Forget a cell that ended the process when it was run again."""
        self._entries.remove(entry)

    def needed(self, names: Iterable[str]) -> list[Entry]:
        """Return the cells without which these global names do not mean what they meant."""
        wanted, kept = set(names), self._entries[:1]
        imported = frozenset().union(*(entry.imported for entry in self._entries))
        wanted |= {name for entry in kept for name in entry.used}
        left = self._entries[1:]
        while more := [entry for entry in left if self._changes(entry, imported) & wanted]:
            kept = kept + more
            left = [entry for entry in left if entry not in more]
            wanted = wanted.union(*(entry.used for entry in more))
        chosen = set(kept)
        return [entry for entry in self._entries if entry in chosen]

    def missing(self, names: Iterable[str], done: Collection[Entry]) -> list[Entry] | None:
        """Return the cells that a process lacks which has run some; None if it is too late to run them there."""
        if len(done) == len(self._entries):
            return []
        missing = [entry for entry in self.needed(names) if entry not in done]
        overwritten = frozenset().union(*(entry.bound for entry in missing))
        later = self._entries[self._entries.index(missing[0]) :] if missing else []
        return None if any(e in done and e.bound & overwritten for e in later) else missing

    def is_least(self, names: Iterable[str], done: Collection[Entry]) -> bool:
        """Tell whether a process has run no cell but those needed for these names."""
        return len(done) == len([entry for entry in self.needed(names) if entry in done])

    def _changes(self, entry: Entry, imported: frozenset[str]) -> frozenset[str]:
        if entry.source.strip() in self._furniture:
            return entry.bound
        return entry.bound | entry.touched - imported
