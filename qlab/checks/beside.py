"""Drivers that run beside the learner's code and report as they go: what came before a crash is judged first."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from torch import Tensor

from qlab.checks.learner import Crashed, LearnerFunction, NotAnswered, describe
from qlab.checks.report import Refused

Ended = tuple[str, ...]
Reported = tuple[list[Any], Ended]


def reporting(driver: Callable[..., Iterator[Any]]) -> Callable[..., Reported]:
    """Make a driver of a generator: it returns everything the generator yields, and how that ended, as plain data."""

    @wraps(driver)
    def run(*args: Any) -> Reported:
        reports = list[Any]()
        try:
            for report in driver(*args):
                reports.append(_as_it_is_now(report))
        except NotAnswered:
            return reports, ("empty",)
        except Crashed as crash:
            return reports, ("crashed", str(crash))
        except Refused as refusal:
            return reports, ("refused", str(refusal), refusal.misconception, refusal.thought)
        except Exception as error:  # whatever the answer returned could not be read
            return reports, ("unread", describe(error))
        return reports, ("done",)

    return run


def _as_it_is_now(report: Any) -> Any:
    """Return a copy, since what the answer does next may work in place."""
    if isinstance(report, Tensor):
        return report.detach().clone()
    return type(report)(map(_as_it_is_now, report)) if type(report) in (tuple, list) else report


def reports(function: LearnerFunction, driver: Callable[..., Reported], *args: Any) -> Iterator[Any]:
    """Run a driver beside the learner's code, yield what it reported, then raise what ended it.

    Errors:  NotAnswered, Crashed or Refused, as the driver met it; ValueError for what it could not read.
    """
    found, (ended, *words) = function.beside(driver, *args)
    yield from found
    if ended == "empty":
        raise NotAnswered
    if ended == "crashed":
        raise Crashed(words[0])
    if ended == "refused":
        raise Refused(words[0], misconception=words[1], thought=words[2])
    if ended != "done":
        raise ValueError(words[0])
