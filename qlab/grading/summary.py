"""What a class got: a table, a CSV file, and how often each misconception was met in each exercise."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qlab.grading.work import Judged
from qlab.labs.execute import ExerciseResult
from qlab.labs.notebooks import write_whole

NOT_GRADED = "not graded"
STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
WIDEST_NAME = 24
WIDEST_REMARK = 70
WIDEST_BAR = 40
OF_AN_EXERCISE = ("student", "notebook", "exercise", "points", "max", "outcome", "misconception", "remarks")
COLUMNS = (*OF_AN_EXERCISE, "submission_seconds")
PROCESS_ENDED = "stopped: its process ended"
# what the judge says of an answer that was stopped
OUT_OF_TIME = re.compile(
    r"ran for [\d.e+]+ seconds and was stopped|took longer than [\d.e+]+ seconds to read|more processor time than"
)
DIED = re.compile(r"While this was checked, |ended its own process too often|did not end well \(its? ")


def table(judged: Sequence[Judged]) -> str:
    """Return a line for each submission: its points by exercise, their sum, and what had to be said of it."""
    exercises = list(dict.fromkeys(result.grade_id for one in judged for result in one.results))
    numbers = [str(number) for number in range(1, len(exercises) + 1)]
    rows = [["student", *numbers, "total", "remarks"], *(_row(one, exercises) for one in judged)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        points = "  ".join(text.rjust(width) for text, width in zip(row[1:-1], widths[1:], strict=True))
        lines.append(f"{row[0].ljust(widths[0])}  {points}  {row[-1]}".rstrip())
    named = [f"{number} {name.removeprefix('check-')}" for number, name in zip(numbers, exercises, strict=True)]
    return "\n".join([*lines, *([" · ".join(named)] if named else [])])


def misconceptions(judged: Iterable[Judged]) -> dict[str, Counter[str]]:
    """Count, for each exercise, what its answers came to: a misconception, a crash, nothing, or every point."""
    counted: dict[str, Counter[str]] = {}
    for one in judged:
        for result in one.results:
            counted.setdefault(result.grade_id, Counter())[result.misconception or outcome(result)] += 1
    return counted


def outcome(result: ExerciseResult) -> str:
    """Say how an exercise ended; an answer that was stopped is told from one that raised an error."""
    if result.outcome == "empty":
        return "not answered"
    if result.outcome == "crashed":
        said = " ".join(result.remarks)
        return "stopped: out of time" if OUT_OF_TIME.search(said) else PROCESS_ENDED if DIED.search(said) else "crashed"
    return result.outcome


def histogram(counted: Mapping[str, Counter[str]]) -> str:
    """Return a bar for each end of each exercise, the most frequent first."""
    lines = []
    for exercise, counts in counted.items():
        total = sum(counts.values())
        lines.append(f"{exercise.removeprefix('check-')}  ({counted_as(total, 'answer')})")
        for name, count in counts.most_common():
            bar = "█" * max(1, round(WIDEST_BAR * count / total))
            lines.append(f"  {name[:32]:32} {count:5}  {bar}")
    return "\n".join(lines)


def counted_as(number: int, name: str) -> str:
    """Return a number of things in words: `1 answer`, `2 answers`."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def refuse_unwritable(path: Path, option: str) -> None:
    """Try whether a file can be written, as long as that costs nothing.

    Errors:  ValueError if it cannot.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} {path} is no plain file: name another")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}: make it first")
    tried = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # as `write_whole` will name it
    try:
        tried.touch()
        tried.unlink()
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written: {error.strerror or error}") from None


def write_picture(judged: Sequence[Judged], assignment: str, path: Path) -> None:
    """Draw what the answers came to, as the format that the file's name ends with."""
    import matplotlib as mpl  # noqa: PLC0415 - only a picture needs it

    mpl.use("agg")
    from qlab.plots.misconceptions import misconception_bars  # noqa: PLC0415

    number = sum(not one.reason for one in judged)
    axes = misconception_bars(misconceptions(judged), title=f"{assignment}: {counted_as(number, 'submission')}")
    drawn = io.BytesIO()
    axes.figure.savefig(drawn, format=path.suffix.lower().removeprefix("."))
    write_whole(drawn.getvalue(), path)


def write_csv(judged: Iterable[Judged], path: Path) -> None:
    """Write a row for each exercise of each submission; a spreadsheet takes none of its text for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in judged:
        seconds = f"{one.seconds:.2f}"
        if one.reason:
            row = [one.student, one.notebook, "", "", "", NOT_GRADED, "", one.reason, seconds]
            writer.writerow([plain(cell) for cell in row])
        for result in one.results:
            remarks = " | ".join((*result.remarks, *one.repairs))
            points = (result.points, result.max_points)
            row = [one.student, one.notebook, result.grade_id, *points, outcome(result), result.misconception, remarks]
            writer.writerow([cell if isinstance(cell, int) else plain(cell) for cell in (*row, seconds)])
    write_whole(text.getvalue().encode("utf-8", "replace"), path)


def plain(text: str) -> str:
    """Return a text that a spreadsheet shows as it is, and a terminal does not obey."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return f"'{shown}" if text.startswith(STARTS_A_FORMULA) else shown


def remark(one: Judged) -> str:
    """Return the one thing to say of a submission, at the length of a line."""
    if one.reason:
        said = f"{NOT_GRADED}: {one.reason}"
    else:
        more = f" (and {len(one.repairs) - 1} more)" if len(one.repairs) > 1 else ""
        said = f"repaired: {one.repairs[0]}{more}" if one.repairs else ""
    return _cut(said, WIDEST_REMARK if not one.reason else 3 * WIDEST_REMARK)


def _row(one: Judged, exercises: Sequence[str]) -> list[str]:
    points = {result.grade_id: str(result.points) for result in one.results}
    most = sum(result.max_points for result in one.results)
    total = f"{sum(result.points for result in one.results)}/{most}" if not one.reason else "—"
    return [_cut(one.student, WIDEST_NAME), *(points.get(name, "—") for name in exercises), total, remark(one)]


def _cut(text: str, width: int) -> str:
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"
