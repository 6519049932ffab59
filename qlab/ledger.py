"""The ledger: what each topic's way of training or running the course model costs, and what it is worth."""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from IPython.display import Markdown
from matplotlib.axes import Axes
from torch import nn

from qlab import course
from qlab.checks import progress
from qlab.corpus import load_corpus
from qlab.page import table
from qlab.plots import axes, legend
from qlab.scoring import held_out_bits

WINDOWS, SEQUENCE = 16, 512
MARKERS = "os^Dv<>Ph*"


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One measured way to run or train the course model.

    Units:   bytes, milliseconds and joules of one step; `bits_per_byte` on held-out text, lower is better.
             None is "not measured".
    """

    name: str
    predicted_bytes: int | None
    measured_bytes: int | None
    step_ms: float | None
    joules: float | None
    bits_per_byte: float | None


def held_out_quality(model: nn.Module) -> float:
    """Score a model in bits per byte on the 16 windows of held-out text that every entry of the ledger is scored on."""
    text = load_corpus().validation[: WINDOWS * SEQUENCE + 1]
    return held_out_bits(model, text, sequence=SEQUENCE).mean().item()


def show_ledger(topic: str, entries: Sequence[LedgerEntry]) -> Markdown:
    """Keep a topic's entries under `work/.qlab/` and return its card."""
    progress.write_json(_file(topic), {"entries": [asdict(entry) for entry in entries]})
    rows = [
        (
            entry.name,
            _megabytes(entry.predicted_bytes),
            _megabytes(entry.measured_bytes),
            _told(entry.step_ms),
            _told(entry.joules),
            "not measured" if entry.bits_per_byte is None else f"{entry.bits_per_byte:.3f}",
        )
        for entry in entries
    ]
    headers = ["", "MB predicted", "MB measured", "ms a step", "joules a step", "bits per byte"]
    return table(headers, rows)


def entries_so_far() -> dict[str, tuple[LedgerEntry, ...]]:
    """Return the entries of every topic that has been run on this machine; what cannot be read is left out."""
    known = {field.name for field in dataclasses.fields(LedgerEntry)}
    found = {}
    for path in sorted((course.work_folder() / ".qlab" / "ledger").glob("*.json")):
        stored = (progress.read_json(path) or {}).get("entries", [])
        entries = tuple(LedgerEntry(**entry) for entry in stored if isinstance(entry, dict) and set(entry) == known)
        if entries:
            found[path.stem] = entries
    return found


def pareto(*, ax: Axes | None = None) -> Axes:
    """Draw every entry so far with measured bytes and quality: down and to the left is better."""
    ax = ax or axes(x="measured MB", y="bits per byte on held-out text")
    for marker, (topic, entries) in zip(MARKERS, entries_so_far().items(), strict=False):
        points = [(e.measured_bytes / 1e6, e.bits_per_byte) for e in entries if e.measured_bytes and e.bits_per_byte]
        if points:
            ax.plot(*zip(*points, strict=True), marker, ms=7, label=topic.replace("_", " "))
    return legend(ax) if ax.lines else ax


def _file(topic: str) -> Path:
    return course.work_folder() / ".qlab" / "ledger" / f"{topic}.json"


def _megabytes(count: int | None) -> str:
    return "not measured" if count is None else f"{count / 1e6:,.1f}"


def _told(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
