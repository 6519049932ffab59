"""Progress and predictions: one small file each under `work/.qlab/`, written whole or not at all."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qlab import course


@dataclass(frozen=True)
class Progress:
    """The best result so far of one exercise."""

    won: int
    of: int
    when: str


def record(topic: str, exercise: str, *, won: int, of: int) -> None:
    """Keep the best result of an exercise, if this process runs in the learner's own folder."""
    if not in_own_copy():
        return
    before = read(topic, exercise)
    if before is None or won >= before.won or before.of != of:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(_store() / "progress" / topic / f"{exercise}.json", asdict(Progress(won, of, when)))


def read(topic: str, exercise: str) -> Progress | None:
    """Return the best result so far, or None where there is none that can be read."""
    stored = read_json(_store() / "progress" / topic / f"{exercise}.json") or {}
    won, of, when = (stored.get(name) for name in ("won", "of", "when"))
    readable = isinstance(won, int) and isinstance(of, int) and isinstance(when, str)
    return Progress(won, of, when) if readable else None


def points_won(topic: str) -> int:
    """Return the points won so far in a topic, over all of its exercises."""
    stored = sorted((_store() / "progress" / topic).glob("*.json"))
    results = [read(topic, path.stem) for path in stored]
    return sum(result.won for result in results if result)


def remember_prediction(topic: str, name: str, value: float) -> None:
    write_json(_store() / "predictions" / topic / f"{name}.json", {"value": value})


def remembered_prediction(topic: str, name: str) -> float | None:
    stored = read_json(_store() / "predictions" / topic / f"{name}.json")
    value = stored.get("value") if stored else None
    return float(value) if isinstance(value, int | float) else None


def in_own_copy() -> bool:
    """Tell whether this process works in `work/`: labs, solutions and tests leave no trace."""
    try:
        return Path.cwd().is_relative_to(course.work_folder().resolve())  # work/ may be a link to a larger disk
    except FileNotFoundError:
        return False


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _store() -> Path:
    return course.work_folder() / ".qlab"
