"""Which objects each side has handed to the other, and for how long."""

import weakref
from typing import Any


class Table:
    """What this side exported, which it holds, and what it imported, which it only watches."""

    def __init__(self) -> None:
        self.exports: dict[int, Any] = {}
        self.numbers: dict[int, int] = {}  # id of an exported object → its number
        self.imports: dict[int, weakref.ref[Any]] = {}
        self.imported: dict[int, int] = {}  # id of an imported object → the other side's number for it
        self.released: list[int] = []
        self.last = 0

    def export(self, thing: Any) -> int:
        """Give an object a number and hold it until the other side releases it."""
        self.last += 1
        self.exports[self.last] = thing
        self.numbers[id(thing)] = self.last
        return self.last

    def taken_releases(self) -> list[int]:
        """Return what has died since the last message."""
        released, self.released[:] = list(self.released), []
        return released

    def release(self, numbers: list[int]) -> None:
        """Let go of what the other side needs no more.

        Errors:  TypeError for what is no list of numbers, or of more than there are: it comes from a stranger.
        """
        if type(numbers) is not list or len(numbers) > len(self.exports):
            raise TypeError("no list of what was exported")
        if not all(type(number) is int for number in numbers):
            raise TypeError("no list of numbers")
        for number in numbers:
            thing = self.exports.pop(number, None)
            self.numbers.pop(id(thing), None)

    def number_of(self, thing: Any) -> int | None:
        """Return the number under which an object was exported."""
        number = self.numbers.get(id(thing))
        return number if number is not None and self.exports.get(number) is thing else None

    def imported_as(self, thing: Any) -> int | None:
        """Return the other side's number for an object that stands for one of its own."""
        number = self.imported.get(id(thing))
        return number if number is not None and self.imports[number]() is thing else None

    def note(self, number: int, thing: Any) -> None:
        """Watch an import: once it dies, the other side hears of it."""
        place = id(thing)

        def forget(reference: "weakref.ref[Any]") -> None:
            if self.imports.get(number) is reference:
                del self.imports[number]
                self.released.append(number)
            if self.imported.get(place) == number:
                del self.imported[place]

        if number in self.released:
            self.released.remove(number)
        self.imports[number] = weakref.ref(thing, forget)
        self.imported[place] = number

    def get(self, number: int) -> Any:
        """Return the living import of this number, or None."""
        reference = self.imports.get(number)
        return None if reference is None else reference()
