"""What one side may ask of the other: the judge lets the functions be called that it handed over, and no more."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from qlab.checks.learner import Crashed, LearnerFunction, plain_torch
from qlab.grading.peer import classes
from qlab.grading.peer.reading import Malformed


def run(peer: Any, operation: Any, details: Any) -> Any:
    """Carry out one request.

    Errors:  Malformed for what this side never answers, and whatever the function that is called raises.
    """
    allowed = FOR_ALL if peer.trusted else FOR_THE_JUDGE
    if type(details) is not tuple or type(operation) is not str or operation not in allowed:
        raise Malformed(f"{str(operation)[:40]!r} is not answered here")
    return allowed[operation](peer, *details)


def _call(peer: Any, number: int, args: Any, kwargs: Any) -> Any:
    function = _function(peer, number)
    if type(args) is not tuple or type(kwargs) is not dict or not all(type(key) is str for key in kwargs):
        raise Malformed("no arguments")
    if peer.trusted:
        return function(*args, **kwargs)
    with plain_torch():
        result = function(*map(_own, args), **{key: _own(value) for key, value in kwargs.items()})
    if inspect.iscoroutine(result):
        result.close()
        raise Crashed("your function is an `async def`: write `def`")
    return result


def _function(peer: Any, number: Any) -> Callable[..., Any]:
    function = peer.references.mine(number)
    if not callable(function):
        raise Malformed("what is called is no function")
    return function


def _own(value: Any) -> Any:
    """Return an argument that wants its gradient as the result of an operation, as a copy in one process is."""
    if isinstance(value, Tensor):
        return value.clone() if value.requires_grad else value
    if type(value) in (tuple, list):
        return type(value)(map(_own, value))
    return value


def _map(peer: Any, number: int, calls: Any) -> list[Any]:
    function = _function(peer, number)
    with plain_torch():
        return [function(*args) for args in calls]


def _beside(peer: Any, number: int, name: str, args: Any) -> Any:
    driver = classes.found(name, importing=True) if name.startswith("qlab.checks.") else None
    if driver is None:
        raise Malformed(f"no driver is called {name[:80]}")
    with plain_torch():
        return driver(LearnerFunction(_function(peer, number)), *args)


def _service(peer: Any, name: str, args: Any) -> Any:
    if name not in peer.services:
        raise LookupError(f"there is no service called {name!r}")
    return peer.services[name](*args)


FOR_ALL: dict[str, Callable[..., Any]] = {"call": _call}
FOR_THE_JUDGE = FOR_ALL | {"map": _map, "beside": _beside, "service": _service}
