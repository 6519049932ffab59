"""Building `labs/` from `solutions/` with nbgrader's own converters, the same bytes every time."""

import logging
import shutil
import tempfile
from pathlib import Path

from qlab import course
from qlab.labs import notebooks
from qlab.labs.notebooks import NotALab


class CannotBuild(RuntimeError):
    """The labs could not be built; the text says why in one sentence."""


def build() -> tuple[Path, ...]:
    """Build every lab and return those that changed; a solution that fails leaves all labs as they were.

    Errors:  CannotBuild if nbgrader is missing or refuses a solution; NotALab if a solution is no lab.
    """
    changed = []
    for path, content in _built().items():
        if not path.exists() or path.read_bytes() != content:
            notebooks.write_whole(content, path)
            changed.append(path)
    return tuple(changed)


def differing() -> tuple[Path, ...]:
    """Return the labs that a build would change, changing nothing."""
    return tuple(path for path, content in _built().items() if not path.exists() or path.read_bytes() != content)


def _built() -> dict[Path, bytes]:
    """Return the bytes of every lab, converted in a folder of its own: no gradebook is opened or made."""
    root = course.root()
    folders = [folder for folder in (root / "solutions").iterdir() if folder.is_dir()]
    stems = sorted(folder.name for folder in folders if course.TOPIC_NAME.fullmatch(folder.name))
    for stem in stems:
        solution = root / "solutions" / stem / f"{stem}.ipynb"
        if not notebooks.graded_cells(notebooks.read(solution)):
            raise NotALab(f"{solution} has no graded cells: it is not a solution of this course")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(root / "solutions", Path(folder) / "solutions")
        for stem in stems:
            _convert(stem, Path(folder), root / "nbgrader_config.py")
        return {course.lab_path(stem): (Path(folder) / "labs" / stem / f"{stem}.ipynb").read_bytes() for stem in stems}


def _convert(stem: str, folder: Path, settings: Path) -> None:
    try:
        from nbgrader.converters import GenerateAssignment  # noqa: PLC0415 - only instructors have nbgrader
        from nbgrader.converters.base import NbGraderException  # noqa: PLC0415
        from nbgrader.coursedir import CourseDirectory  # noqa: PLC0415
    except ImportError:
        raise CannotBuild('building labs needs nbgrader: pip install -c constraints.txt -e ".[teach]"') from None
    from traitlets.config import PyFileConfigLoader  # noqa: PLC0415

    if not settings.exists():
        raise CannotBuild(f"{settings} is missing: it says how nbgrader makes a lab of a solution")
    config = PyFileConfigLoader(settings.name, path=str(settings.parent)).load_config()
    config.CourseDirectory.root = str(folder)
    config.CourseDirectory.assignment_id = stem
    config.GenerateAssignment.no_database = True
    config.SaveCells.enabled = False
    told: list[str] = []
    log = logging.getLogger(f"qlab.build.{stem}")
    log.propagate = False
    log.handlers = [_Listener(told)]
    converter = GenerateAssignment(coursedir=CourseDirectory(config=config, log=log), config=config, log=log)
    try:
        converter.start()
    except (NbGraderException, SystemExit) as error:
        raise CannotBuild(f"nbgrader refused solutions/{stem}: {_reason(told) or error}") from None


def _reason(told: list[str]) -> str:
    """Return what went wrong: the end of the last traceback that was logged, or else the last message."""
    tracebacks = [message for message in told if message.startswith("Traceback")]
    return tracebacks[-1].splitlines()[-1] if tracebacks else " ".join("".join(told[-1:]).split())


class _Listener(logging.Handler):
    """Keeps the errors that nbgrader logs, for the one sentence that a failure gets."""

    def __init__(self, told: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.append(record.getMessage().strip())
