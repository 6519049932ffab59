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


def add_options(command: argparse.ArgumentParser) -> None:
    """Give `command` the options of a grading run."""
    command.add_argument("assignment", nargs="?", help="such as 01_data_types (default: the only one handed in)")
    command.add_argument("--course", type=Path, metavar="FOLDER", help="that holds submitted/ (default: this course)")
    command.add_argument("--student", metavar="NAME", help="grade this one only")
    command.add_argument("--again", action="store_true", help="judge anew what was graded before")
    command.add_argument("--workers", type=int, default=_cores(), metavar="N", help="at once (default: %(default)s)")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each exercise of each submission")
    command.add_argument("--picture", type=Path, metavar="FILE", help="draw what the class got wrong, as .svg or .png")
    command.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler whose workers judge")
    command.add_argument(
        "--unsafe", action="store_true", help="judge without isolation: the learners' code runs as you, and can do all"
    )


def run(parsed: argparse.Namespace) -> int:
    """Grade, print what was found, and return 0 if every submission was graded."""
    from qlab.grading import cluster, gradebook, journal, places, sandbox  # noqa: PLC0415 - only this command needs them
    from qlab.grading.run import Order  # noqa: PLC0415

    refusals = (gradebook.NoGradebook, journal.Taken, sandbox.NoIsolation, cluster.NoCluster)
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
    from qlab.grading.run import count, grade, ordered  # noqa: PLC0415 - only this command needs it

    total, ended = count(order), []
    if not total:
        who = f" by {order.student}" if order.student else ""
        raise ValueError(f"nothing was handed in for {order.assignment}{who} under {order.places.submitted}")
    try:
        progress = _Progress(total)
        with contextlib.closing(grade(order)) as ends:
            for one in ends:
                ended.append(one)
                progress.tell(one)
    except KeyboardInterrupt:
        print(
            f"\nstopped: {len(ended)} of {total} are graded and safe; the same command goes on with the rest",
            file=sys.stderr,
        )
        return INTERRUPTED
    judged = [one.judged for one in ordered(ended)]
    _print_summary(judged, before=sum(one.before for one in ended))
    _write_files(judged, parsed)
    return 1 if any(one.reason for one in judged) else 0


def _print_summary(judged: "list[Judged]", *, before: int) -> None:
    from qlab.grading import summary  # noqa: PLC0415 - only this command needs it

    print(summary.table(judged))
    print(f"\nwhat the answers came to:\n{summary.histogram(summary.misconceptions(judged))}\n")
    failed = sum(bool(one.reason) for one in judged)
    earlier = f", {before} of them by an earlier run" if before else ""
    print(
        f"{len(judged) - failed} graded{earlier}; {failed} not graded" if failed else f"{len(judged)} graded{earlier}"
    )


def _write_files(judged: "list[Judged]", parsed: argparse.Namespace) -> None:
    from qlab.grading import summary  # noqa: PLC0415 - only this command needs it

    if parsed.csv:
        summary.write_csv(judged, parsed.csv)
        print(f"written: {parsed.csv}")
    if parsed.picture:
        import matplotlib as mpl  # noqa: PLC0415 - only a picture needs it

        mpl.use("agg")
        from qlab.plots.misconceptions import misconception_bars  # noqa: PLC0415

        axes = misconception_bars(summary.misconceptions(judged))
        axes.figure.savefig(parsed.picture)
        print(f"written: {parsed.picture}")


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
    if parsed.picture and parsed.picture.suffix not in (".svg", ".png"):
        raise ValueError(f"--picture writes .svg or .png, got {parsed.picture}")


def _only_assignment(places: "Places") -> str:
    from qlab.grading.places import assignments_with_submissions  # noqa: PLC0415 - only this command needs it

    names = assignments_with_submissions(places)
    if len(names) != 1:
        told = f"say which one: {', '.join(names)}" if names else f"nothing was handed in under {places.submitted}"
        raise ValueError(told)
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

    def _shown(self) -> str:
        filled = round(BAR_WIDTH * self._done / self._total)
        each = (time.monotonic() - self._started) / self._done
        left = round(each * (self._total - self._done))
        bar = "█" * filled + "·" * (BAR_WIDTH - filled)
        return f"{bar} {self._done}/{self._total}, {each:.2f} s each, {left} s to go \x1b[K"


def _line(one: "Ended") -> str:
    from qlab.grading.summary import plain, remark  # noqa: PLC0415 - only this command needs it

    won = sum(result.points for result in one.judged.results)
    said = remark(one.judged) or f"{won} points{' (graded before)' if one.before else ''}"
    return f"{plain(one.judged.student)}: {said}"
