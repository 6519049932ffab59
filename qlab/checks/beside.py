"""Drivers that run beside the learner's code and report as they go: what came before a crash is judged first."""

import re
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from torch import Tensor

from qlab.checks.expect import as_tensor
from qlab.checks.learner import Crashed, LearnerFunction, NotAnswered, describe
from qlab.checks.report import Refused, require

LONGEST, SLUG = 4_000, re.compile(r"[a-z0-9-]{1,60}")
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


def require_right_too(condition: object) -> None:
    """Refuse a part about bytes, counts or what was left alone, if what came of the same run is not right either.

    A number that another process reports of itself must not win a point alone.
    """
    require(
        condition,
        "this part asks for a result that is right",
        misconception="wrong-value",
        thought="Win the first part before this one.",
    )


def roughly(got: Any, want: Tensor) -> bool:
    """Tell whether plain numbers are what is wanted, to a hundredth of their length."""
    try:
        tensor = as_tensor(got, tuple(want.shape), call="your function").double()
    except Refused:
        return False
    return bool((tensor - want).norm() <= 1e-2 * want.norm())


def reports(function: LearnerFunction, driver: Callable[..., Reported], *args: Any) -> Iterator[Any]:
    """Run a driver beside the learner's code, yield what it reported, then raise what ended it.

    Errors:  NotAnswered, Crashed or Refused, as the driver met it; ValueError for what it could not read.
    """
    found, told = function.beside(driver, *args)
    ended, message, misconception, thought = _words(told)
    yield from found
    if ended == "empty":
        raise NotAnswered
    if ended == "crashed":
        raise Crashed(message)
    if ended == "refused":
        raise Refused(message, misconception=misconception, thought=thought)
    if ended != "done":
        raise ValueError(message)


def _words(told: Any) -> tuple[str, str, str, str]:
    """Read how a driver ended, which is data of another process.

    Errors:  ValueError for what no driver says.
    """
    if type(told) is not tuple or not 1 <= len(told) <= 4 or not all(type(word) is str for word in told):
        raise ValueError("the end of the run could not be read")
    ended, message, misconception, thought = (word[:LONGEST] for word in (*told, *[""] * (4 - len(told))))
    if misconception and not SLUG.fullmatch(misconception):
        raise ValueError("the end of the run could not be read")
    return ended, message, misconception, thought
