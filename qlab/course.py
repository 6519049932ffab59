"""Where the course lives on disk: its root, its topics, the learner's own folder."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

TOPIC_NAME = re.compile(r"(\d\d)_[a-z0-9_]+")


@dataclass(frozen=True)
class Topic:
    """One topic, as the front page of its lesson describes it."""

    stem: str
    title: str
    promise: str
    minutes: int
    hardware: str

    @property
    def number(self) -> str:
        return self.stem[:2]


def root() -> Path:
    """Return the folder that holds `lessons/` and `labs/`: `QLAB_ROOT`, or found upward from here.

    Errors:  FileNotFoundError if there is none.
    """
    named = os.environ.get("QLAB_ROOT")
    starts = [Path(named)] if named else [Path.cwd(), Path(__file__).resolve().parent]
    for start in starts:
        for folder in [start, *start.parents]:
            if (folder / "lessons").is_dir() and (folder / "labs").is_dir():
                return folder.resolve()
    raise FileNotFoundError(f"no course here: neither {starts[0]} nor a folder above it holds lessons/ and labs/")


def work_folder() -> Path:
    """Return the folder of the learner's own copies; it may not exist yet."""
    return root() / "work"


def lesson_path(stem: str) -> Path:
    return root() / "lessons" / f"{stem}.ipynb"


def lab_path(stem: str) -> Path:
    return root() / "labs" / stem / f"{stem}.ipynb"


def copy_path(stem: str) -> Path:
    """Return where the learner's copy of a lab lies."""
    return work_folder() / stem / f"{stem}.ipynb"


def topics() -> tuple[Topic, ...]:
    """Return the topics whose lesson exists, in course order."""
    paths = sorted((root() / "lessons").glob("*.ipynb"))
    return tuple(_topic(path) for path in paths if TOPIC_NAME.fullmatch(path.stem) and not path.stem.startswith("00"))


def topic_stem(name: str) -> str:
    """Return the stem of the topic called `name`: `01`, `1`, or `01_data_types`.

    Errors:  ValueError if there is no such topic.
    """
    stems = [topic.stem for topic in topics()]
    for stem in stems:
        if name == stem or (name.isdecimal() and int(name) == int(stem[:2])):
            return stem
    raise ValueError(f"no topic {name!r}: the course has {', '.join(stems)}")


def _topic(path: Path) -> Topic:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))["metadata"]["qlab"]
        return Topic(stem=path.stem, **described)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} no longer says which topic it is: restore it with git") from None
