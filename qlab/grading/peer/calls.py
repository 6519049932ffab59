"""One side of the border: it sends requests, and answers those that come while it waits."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qlab.checks.learner import Crashed
from qlab.grading.limits import Limits
from qlab.grading.peer import failures, flags, operations, said
from qlab.grading.peer.budget import require_moderate
from qlab.grading.peer.reading import Malformed, Reader, set_state
from qlab.grading.peer.references import References
from qlab.grading.peer.writing import Writer
from qlab.grading.wire import Connection, ConnectionEnded, TimedOut

KINDS = REQUEST, REPLY, ERROR = "?", "=", "!"
DEEPEST = 30  # requests within requests


class Peer:
    """The other side of a connection, as this side sees it.

    The judge is `trusted`: it decodes plain data alone, and calls nothing but functions that it handed over itself.
    Requests go one at a time, and nest where one side calls back. Without a bound by `within`, a request of the
    judge's may take as long as a check.
    """

    def __init__(
        self, connection: Connection, *, trusted: bool, services: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        self.connection, self.trusted, self.services = connection, trusted, dict(services or {})
        self.references = References(self, trusted=trusted)
        self.ended = ""
        self._process = os.getpid()
        self._deadline: float | None = None
        self._allowed = 0.0
        self._depth = self._asked = 0
        self._one_at_a_time = threading.RLock()  # a learner may call from threads of its own

    def call(self, service: str, *args: Any, seconds: float | None = None) -> Any:
        """Run a service of the other side.

        Errors:  Crashed and NotAnswered for what it raises; Crashed with the text of `ended` once the other side is
                 gone.
        """
        with self.within(seconds):
            return self.ask("service", service, args)

    @contextlib.contextmanager
    def within(self, seconds: float | None) -> Iterator[None]:
        """Bound all waiting inside; an earlier bound around it stays."""
        before = self._deadline, self._allowed
        end = None if seconds is None else time.monotonic() + seconds
        if end is not None and (before[0] is None or end < before[0]):
            self._deadline, self._allowed = end, seconds
        try:
            yield
        finally:
            self._deadline, self._allowed = before

    def ask(self, operation: str, *details: Any) -> Any:
        """Send a request and return its answer, serving what is asked meanwhile.

        Errors:  as of `call`; TypeError and TooLarge for what cannot be handed over.
        """
        if self.ended:
            raise Crashed(self.ended)
        bounded = not self.trusted or self._deadline is not None
        with self._one_at_a_time, self.within(None if bounded else Limits().check_seconds):
            return self._ask(operation, details)

    def _ask(self, operation: str, details: tuple[Any, ...]) -> Any:
        self._asked += 1
        number = self._asked
        writer = self._written(REQUEST, number, (operation, details, flags.present()))
        with self._ending():
            self._send(writer)
            while True:
                kind, told, body = self._received()
                if kind == REQUEST:
                    self._answer(told, body)
                elif told == number:
                    break
                else:
                    raise Malformed("an answer to another question")
            answer = self._answered(kind, body, writer, operation)
        if isinstance(answer, _Raised):
            raise answer.error
        return answer

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """End the connection where the other side is late, gone or talks nonsense.

        Errors:  Crashed with the reason.
        """
        try:
            yield
            return
        except TimedOut:
            why = f"it ran for {self._allowed:g} seconds and was stopped"
        except ConnectionEnded:
            why = "its process ended"
        except Malformed as error:
            why = f"its process was stopped: it broke the protocol ({error})"
        except MemoryError:
            why = "its process was stopped: what it sent takes more memory than the judge has"
        self._end(why)
        raise Crashed(self.ended)

    def _end(self, why: str) -> None:
        self.ended = self.ended or why
        self.connection.close()

    def serve(self) -> None:
        """Answer requests until the connection ends."""
        while not self.ended:
            try:
                kind, number, body = self._received()
                if kind == REQUEST:
                    self._answer(number, body)
            except (ConnectionEnded, Malformed, MemoryError, Crashed) as error:  # the last where a call back ended it
                self._end(str(error) or "the connection ended")

    def _written(self, kind: str, number: int, body: Any) -> Writer:
        writer = Writer(self.references.write, trusted=self.trusted, most_bytes=self.connection.most_bytes)
        writer.put((kind, number, self.references.table.taken_releases()))
        writer.put(body)
        return writer

    def _send(self, writer: Writer) -> None:
        if os.getpid() != self._process:  # learner's code has forked: two must not answer on one connection
            os._exit(1)
        self.connection.send(writer.bytes, deadline=self._deadline)

    def _received(self) -> tuple[str, int, Any]:
        data = self.connection.receive(deadline=self._deadline)
        reader = Reader(data, self.references.read, trusted=self.trusted)
        try:
            kind, number, released = reader.expected(tuple)
            self.references.table.release(released)
            body = reader.expected(tuple)
        except (Malformed, MemoryError):
            raise
        except Exception as error:  # whatever a wrong layout or an overflow raises
            raise Malformed(f"{type(error).__name__}: {str(error)[:200]}") from None
        known = type(kind) is str and kind in KINDS
        if not known or type(number) is not int or reader.place != len(data):
            raise Malformed("no message")
        return kind, number, (*body, reader) if kind == REQUEST else body

    def _answer(self, number: int, body: Any) -> None:
        """Carry out a request and send what came of it."""
        if len(body) != 4:
            raise Malformed("no request")
        operation, details, there, reader = body
        heard = said.Heard()
        try:
            if self.trusted:
                require_moderate(reader.shapes)
            result = self._run(operation, details, there, heard)
            states = [g.get_state().numpy().tobytes() for g in reader.generators] if not self.trusted else []
            writer = self._written(REPLY, number, (result, heard.told(), states))
        except BaseException as error:
            if self.ended or isinstance(error, Malformed) or (self.trusted and not isinstance(error, Exception)):
                raise
            driven = not self.trusted and operation == "beside"
            told = failures.of_the_judge(error) if self.trusted else failures.of_a_learner(error, driven=driven)
            writer = self._written(ERROR, number, (told, heard.told(), []))
        self._send(writer)

    def _run(self, operation: Any, details: Any, there: Any, heard: said.Heard) -> Any:
        self._depth += 1
        try:
            if self._depth > DEEPEST:
                raise RecursionError("calls back and forth are nested too deeply")
            if type(operation) is str and operation == "service":  # what a cell sets must outlive it
                return operations.run(self, operation, details)
            with said.caught(heard) if not self.trusted else contextlib.nullcontext(), flags.as_there(there):
                return operations.run(self, operation, details)
        finally:
            self._depth -= 1

    def _answered(self, kind: str, body: Any, asked: Writer, operation: str) -> Any:
        if len(body) != 3:
            raise Malformed("no answer")
        result, told, states = body
        if not self.trusted:
            return _Raised(failures.raised_by_the_judge(result)) if kind == ERROR else result
        if operation != "service":  # which is asked outside of checks, where nobody catches what is said
            said.repeat(told)
        if type(states) is list and len(states) == len(asked.generators):
            for generator, state in zip(asked.generators, states, strict=True):
                set_state(generator, state if type(state) is bytes else b"")
        return _Raised(failures.raised_by_a_learner(result, driven=operation == "beside")) if kind == ERROR else result


class _Raised:
    """An error that the other side's answer stands for."""

    def __init__(self, error: Exception) -> None:
        self.error = error
