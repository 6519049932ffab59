"""What a class got: a table, a CSV file, and how often each misconception was met in each exercise."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qlab.grading.work import Judged
from qlab.labs.notebooks import write_whole

NOT_GRADED = "not graded"
STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
WIDEST_NAME = 24
WIDEST_REMARK = 70
WIDEST_BAR = 40
COLUMNS = ("student", "notebook", "exercise", "points", "max", "outcome", "misconception", "remarks", "seconds")


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
    """Count, for each exercise, what its answers ended in: a misconception, a crash, nothing, or every point."""
    counted: dict[str, Counter[str]] = {}
    for one in judged:
        for result in one.results:
            name = result.misconception or {"right": "right", "empty": "not answered"}.get(result.outcome, "crashed")
            counted.setdefault(result.grade_id, Counter())[name] += 1
    return counted


def histogram(counted: Mapping[str, Counter[str]]) -> str:
    """Return a bar for each end of each exercise, the most frequent first."""
    lines = []
    for exercise, counts in counted.items():
        total = sum(counts.values())
        lines.append(f"{exercise.removeprefix('check-')}  ({total} answers)")
        for name, count in counts.most_common():
            bar = "█" * max(1, round(WIDEST_BAR * count / total))
            lines.append(f"  {name[:32]:32} {count:5}  {bar}")
    return "\n".join(lines)


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
            row = [one.student, one.notebook, result.grade_id, *points, result.outcome, result.misconception, remarks]
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
