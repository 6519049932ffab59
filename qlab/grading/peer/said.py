"""What a call over the border brings back beside its result: warnings, and text on stderr."""

import builtins
import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from qlab.checks.learner import printable

LONGEST = 2_000
MOST_WARNINGS = 20


class Heard:
    """The text and the warnings of one call."""

    def __init__(self) -> None:
        self.text, self.warned = "", list[tuple[str, str]]()

    def told(self) -> Any:
        """Return what the reply carries, or None for a call that said nothing."""
        return (self.text, self.warned) if self.text or self.warned else None

    def add(self, warning: warnings.WarningMessage) -> None:
        """Note a warning."""
        with contextlib.suppress(Exception):  # the text of a warning of the learner's own making may raise
            self.warned.append((warning.category.__name__, str(warning.message)[:LONGEST]))


@contextlib.contextmanager
def caught(heard: Heard) -> Iterator[None]:
    """Keep warnings and text on stderr for the reply."""
    stream, before, seen = io.StringIO(), sys.stderr, list[warnings.WarningMessage]()
    sys.stderr = stream
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield
    finally:
        sys.stderr = before
        heard.text = stream.getvalue()[:LONGEST]
        for warning in seen[:MOST_WARNINGS]:
            heard.add(warning)


def repeat(told: Any) -> None:
    """Warn and write here as the call did over there; what is malformed is left out."""
    if type(told) is not tuple or len(told) != 2 or type(told[0]) is not str or type(told[1]) is not list:
        return
    sys.stderr.write(printable(told[0][:LONGEST]))
    for entry in told[1][:MOST_WARNINGS]:
        if type(entry) is tuple and len(entry) == 2 and all(type(word) is str for word in entry):
            warnings.warn(printable(entry[1][:LONGEST]), _category(entry[0]), stacklevel=2)


def _category(name: str) -> type[Warning]:
    known = getattr(builtins, name, None)
    if isinstance(known, type) and issubclass(known, Warning):
        return known
    return type(name, (UserWarning,), {}) if name.isidentifier() and len(name) <= 80 else UserWarning
