"""The options of `qlab grade`, and what it prints; imports nothing heavy until it is run."""

import argparse
import contextlib
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qlab import course

if TYPE_CHECKING:
    from qlab.grading.places import Places
    from qlab.grading.run import Ended, Mapper, Order
    from qlab.grading.work import Judged

INTERRUPTED = 130
BAR_WIDTH = 30
EPILOG = """What is handed in belongs at submitted/NAME/ASSIGNMENT/ASSIGNMENT.ipynb. The CSV file holds what the judge
gave; final grades, with what was changed by hand in formgrader, come from `nbgrader export`."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give `command` the options of a grading run."""
    command.epilog = EPILOG
    command.add_argument("assignment", nargs="?", help="such as 01_data_types (default: the only one handed in)")
    command.add_argument("--course", type=Path, metavar="FOLDER", help="that holds submitted/ (default: this course)")
    command.add_argument("--student", metavar="NAME", help="grade this one only")
    command.add_argument("--again", action="store_true", help="judge anew what was graded before")
    command.add_argument("--workers", type=int, default=_cores(), metavar="N", help="at once (default: %(default)s)")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write what the judge gave, a row for each exercise")
    command.add_argument("--picture", type=Path, metavar="FILE", help="draw what the class got wrong, as .svg or .png")
    command.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler whose workers judge")
    command.add_argument(
        "--unsafe", action="store_true", help="judge without isolation: the learners' code runs as you, and can do all"
    )


def run(parsed: argparse.Namespace) -> int:
    """Grade, print what was found, and return 0 if every submission was graded."""
    from qlab.grading import cluster, faults, journal, places, sandbox  # noqa: PLC0415 - only this command needs them
    from qlab.grading.run import Order  # noqa: PLC0415

    refusals = (faults.NoGradebook, faults.NotKept, journal.Taken, sandbox.NoIsolation, cluster.NoCluster)
    try:
        _refuse_odd(parsed)
        found = places.places_of(parsed.course or course.root())
        assignment = places.named(parsed.assignment, found) if parsed.assignment else _only_assignment(found)
        if parsed.unsafe:
            print(
                "qlab grade: without isolation: the learners' code runs as you, and can do all you can", file=sys.stderr
            )
        order = Order(assignment, found, _mapper(parsed), student=parsed.student, again=parsed.again)
        return _graded(order, parsed)
    except refusals as error:
        print(f"qlab grade: {error}", file=sys.stderr)
        return 1


def _graded(order: "Order", parsed: argparse.Namespace) -> int:
    from qlab.grading.faults import NotKept  # noqa: PLC0415 - only this command needs them
    from qlab.grading.run import count, grade  # noqa: PLC0415

    total, ended = count(order), []
    if not order.student:
        _tell_misplaced(order)
    if not total:
        raise ValueError(_nothing(order))
    try:
        progress = _Progress(total)
        with contextlib.closing(grade(order)) as ends:
            for one in ends:
                ended.append(one)
                progress.tell(one)
    except KeyboardInterrupt:
        print(f"\nstopped: {_safe(ended, total, again=order.again)}", file=sys.stderr)
        return INTERRUPTED
    except NotKept as error:
        if not ended:
            raise NotKept(f"{error}, and run the same command again") from None
        progress.leave()
        raise NotKept(f"{error}; {_safe(ended, total, again=order.again)}") from None
    return _told(ended, order, parsed)


def _safe(ended: "list[Ended]", total: int, *, again: bool) -> str:
    """Say what a run that was broken off has done, and how to go on."""
    graded = sum(not one.judged.reason for one in ended)
    without = " without --again" if again and ended else ""
    return f"{graded} of {total} are graded and safe; the same command{without} goes on with the rest"


def _told(ended: "list[Ended]", order: "Order", parsed: argparse.Namespace) -> int:
    """Print what was found and write what was asked for; the files do not wait for who reads what is printed."""
    from qlab.grading.run import ordered  # noqa: PLC0415 - only this command needs it

    judged = [one.judged for one in ordered(ended)]
    try:
        _print_summary(judged, before=sum(one.before for one in ended))
    finally:
        _write_files(judged, order, parsed)
    return 1 if any(one.reason for one in judged) else 0


def _print_summary(judged: "list[Judged]", *, before: int) -> None:
    from qlab.grading import summary  # noqa: PLC0415 - only this command needs it

    print(summary.table(judged), end="\n\n")
    if counted := summary.misconceptions(judged):
        print(f"what the answers came to:\n{summary.histogram(counted)}\n")
    failed = sum(bool(one.reason) for one in judged)
    earlier = f", {before} of them by an earlier run" if before else ""
    print(f"{len(judged) - failed} graded{earlier}{f'; {failed} not graded' if failed else ''}")


def _write_files(judged: "list[Judged]", order: "Order", parsed: argparse.Namespace) -> None:
    from qlab.grading import faults, summary  # noqa: PLC0415 - only this command needs them

    written = []
    try:
        for path, write in (
            (parsed.csv, partial(summary.write_csv, judged)),
            (parsed.picture, partial(summary.write_picture, judged, order.assignment)),
        ):
            if path:
                with faults.keeping(path):
                    write(path)
                written.append(f"written: {path}\n")
    except faults.NotKept as error:
        without = " without --again" if order.again else ""
        raise faults.NotKept(f"{error}; every grade is safe, and the same command{without} writes it") from None
    finally:
        print("".join(written), end="")


def _tell_misplaced(order: "Order") -> None:
    from qlab.grading.places import misplaced, releases_of  # noqa: PLC0415 - only this command needs them

    for sentence in misplaced(order.assignment, set(releases_of(order.assignment, order.places)), order.places):
        print(f"qlab grade: {sentence}", file=sys.stderr)


def _nothing(order: "Order") -> str:
    from qlab.grading.places import home, releases_of  # noqa: PLC0415 - only this command needs them

    who = f" by {order.student}" if order.student else ""
    notebook = min(releases_of(order.assignment, order.places))
    belongs = home(order.student or "NAME", order.assignment, notebook, order.places)
    return f"nothing was handed in for {order.assignment}{who}: it belongs at {belongs}"


def _cores() -> int:
    """Return how many cores this process may use, which in a container is not how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _mapper(parsed: argparse.Namespace) -> "Mapper":
    """Return what judges: the workers of this machine, or those of a cluster."""
    if parsed.cluster:
        from qlab.grading.cluster import map_submissions  # noqa: PLC0415 - needs the extra `cluster`

        return partial(map_submissions, address=parsed.cluster, unsafe=parsed.unsafe)
    from qlab.grading.workers import map_locally  # noqa: PLC0415 - only this command needs it

    return partial(map_locally, workers=parsed.workers, unsafe=parsed.unsafe)


def _refuse_odd(parsed: argparse.Namespace) -> None:
    if not hasattr(os, "fork"):
        raise ValueError(
            f"{sys.platform} has no namespaces: grade on Linux, or in a Linux container or virtual machine"
        )
    if parsed.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {parsed.workers}")
    if parsed.picture and parsed.picture.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"--picture writes .svg or .png, got {parsed.picture}")
    from qlab.grading.summary import refuse_unwritable  # noqa: PLC0415 - only this command needs it

    for option, path in (("--csv", parsed.csv), ("--picture", parsed.picture)):
        if path:
            refuse_unwritable(path, option)


def _only_assignment(places: "Places") -> str:
    from qlab.grading.places import assignments_with_submissions, home  # noqa: PLC0415 - only this command needs them

    names = assignments_with_submissions(places)
    if len(names) != 1:
        nothing = f"nothing was handed in: it belongs at {home('NAME', 'ASSIGNMENT', 'ASSIGNMENT', places)}"
        raise ValueError(f"say which one: {', '.join(names)}" if names else nothing)
    return names[0]


class _Progress:
    """How far it is: a bar in a terminal, lines of text elsewhere."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._started = total, 0, time.monotonic()
        self._bar = sys.stderr.isatty()

    def tell(self, one: "Ended") -> None:
        """Show that one more has ended; what was not graded is said at once."""
        self._done += 1
        if self._bar and not one.judged.reason:
            sys.stderr.write(f"\r{self._shown()}")
        else:
            cleared = "\r\x1b[K" if self._bar else f"{self._done}/{self._total} "
            print(f"{cleared}{_line(one)}", file=sys.stderr)
        if self._bar and self._done == self._total:
            sys.stderr.write("\n")
        sys.stderr.flush()

    def leave(self) -> None:
        """Leave the line of the bar, where there is one: something else is to be said."""
        if self._bar and self._done < self._total:
            sys.stderr.write("\n")

    def _shown(self) -> str:
        filled = round(BAR_WIDTH * self._done / self._total)
        each = (time.monotonic() - self._started) / self._done
        left = round(each * (self._total - self._done))
        bar = "█" * filled + "·" * (BAR_WIDTH - filled)
        return f"{bar} {self._done}/{self._total}, {each:.2f} s each, {left} s to go \x1b[K"


def _line(one: "Ended") -> str:
    from qlab.grading.summary import counted_as, plain, remark  # noqa: PLC0415 - only this command needs it

    said = remark(one.judged)
    if not one.judged.reason:
        won = counted_as(sum(result.points for result in one.judged.results), "point")
        said = f"{won}{' (graded before)' if one.before else ''}{f'; {said}' if said else ''}"
    return f"{plain(one.judged.student)}: {said}"
