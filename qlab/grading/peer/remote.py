"""Stand-ins for what lives on the other side: its functions can be called, and nothing else can be asked of them."""

from typing import Any

from qlab.checks.learner import Crashed


class Remote:
    """An object of the other side, of which nothing is known but the name of its class."""

    def __init__(self, peer: Any, number: int) -> None:
        self._qlab_peer, self._qlab_number = peer, number

    def __deepcopy__(self, memo: dict[int, Any]) -> "Remote":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("an object of another process cannot be copied")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class RemoteFunction(Remote):
    """A function of the other side; a call runs it there, on copies."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._qlab_peer.ask("call", self._qlab_number, args, kwargs)

    def __qlab_map__(self, calls: list[tuple[Any, ...]]) -> Any:
        """Call once for each tuple of arguments, all in one message."""
        results = self._qlab_peer.ask("map", self._qlab_number, calls)
        if type(results) is not list or len(results) != len(calls):
            raise Crashed("its process broke the protocol")
        return results

    def __qlab_beside__(self, name: str, args: tuple[Any, ...]) -> Any:
        """Run a driver of a check, `module:name`, beside the function."""
        return self._qlab_peer.ask("beside", self._qlab_number, name, args)


MOST_CLASSES = 1_000
_classes: dict[tuple[str, bool], type[Remote]] = {}


def stand_in(peer: Any, number: int, name: str, *, called: bool) -> Remote:
    """Make a stand-in of a class with the original's name."""
    name = name if name.isidentifier() and len(name) <= 80 else "object"
    name = name if (name, called) in _classes or len(_classes) < MOST_CLASSES else "object"
    cls = _classes.setdefault((name, called), type(name, (RemoteFunction if called else Remote,), {}))
    thing = cls(peer, number)
    if called:
        thing.__name__ = thing.__qualname__ = name  # type: ignore[attr-defined]
    return thing
