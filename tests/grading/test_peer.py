"""A learner's functions in another process: called like those of this one, and trusted with nothing."""

import gc
import os
import random
import socket
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from qlab.checks import probe
from qlab.checks.learner import Crashed, LearnerFunction, NotAnswered, Said, caught_stderr
from qlab.checks.report import Outcome, Refused
from qlab.grading.peer import Peer
from qlab.grading.peer.writing import Writer
from qlab.grading.wire import Connection
from tests.grading.pair import forked_learner


def add(a, b):
    return a + b


def stub(x):
    raise NotImplementedError("replace this line with your answer")


def crashes(x):
    return 1 / 0


def leaves(x):
    sys.exit(3)


def dies(x):
    os._exit(7)


def sleeps(x):
    time.sleep(60)


async def awaited(x):
    return x


def in_place(x):
    return x.mul_(2)


def draws(generator):
    return torch.rand(2, generator=generator)


def calls_back(f, *args):
    return f(*args)


def catches(f):
    try:
        return f()
    except ValueError as error:
        return repr(error)


def curried(a):
    return lambda b: a + b


def looks_into(f):
    return [name for name in ("__globals__", "__closure__", "__code__", "__self__") if hasattr(f, name)]


def warns(x):
    warnings.warn("mind the step", RuntimeWarning, stacklevel=2)
    print("and the gap", file=sys.stderr)
    return x


class Odd:
    def __eq__(self, other):
        return True

    __hash__ = object.__hash__

    def __float__(self):
        return 1.0

    def __array__(self, *args, **kwargs):
        raise AssertionError


def odd():
    return Odd()


def forever(f):
    return f(forever, f)


def too_much():
    return bytes(2**28)


def refuses(x):
    raise Refused("mine", misconception="of-my-own", thought="and my thought")


def forks(x):
    os.fork()
    return x


def squared(x):
    return x * x


FUNCTIONS = {name: value for name, value in globals().items() if callable(value) and not name.startswith("_")}


@pytest.fixture(scope="module")
def learner():
    with forked_learner(FUNCTIONS) as peer:
        yield lambda name: LearnerFunction(peer.call("lookup", name))


def test_calls_and_keywords(learner):
    assert learner("add")(1, 2) == 3 and learner("add")(a="x", b="y") == "xy"
    assert torch.equal(learner("add")(torch.ones(2), torch.eye(2)), torch.ones(2) + torch.eye(2))


def test_failures_have_the_names_that_they_have_in_one_process(learner):
    for name in ("crashes", "leaves", "stub", "awaited"):
        heard = []
        for function in (learner(name), LearnerFunction(FUNCTIONS[name])):
            with pytest.raises((Crashed, NotAnswered)) as caught:
                function(1)
            heard.append((caught.type, str(caught.value)))
        assert heard[0] == heard[1]


def test_what_is_no_function_is_said_to_be_none(learner):
    with pytest.raises(Crashed, match="which is not a function"):
        LearnerFunction(learner("odd")())(1)


def test_arguments_are_copies_and_may_be_worked_on_in_place(learner):
    x, wants = torch.ones(2), torch.ones(2, requires_grad=True)
    assert learner("in_place")(x).tolist() == learner("in_place")(wants).tolist() == [2, 2]
    assert x.tolist() == wants.tolist() == [1, 1]


def test_a_generator_goes_on(learner):
    ours, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for _ in range(3):
        assert torch.equal(learner("draws")(theirs), torch.rand(2, generator=ours))


def test_the_judges_functions_run_in_the_judge(learner):
    seen = []

    def note(x, *, more=0):
        seen.append((os.getpid(), x, more))
        return x + 1

    assert learner("calls_back")(note, 4) == 5 and seen == [(os.getpid(), 4, 0)]
    assert learner("calls_back")(torch.sin, torch.zeros(2)).tolist() == [0, 0]


def test_errors_of_the_judges_functions_are_pythons_own(learner):
    def refuse():
        raise ValueError("not 7")

    assert learner("catches")(refuse) == "ValueError('not 7')"
    with pytest.raises(Crashed, match=r"^ValueError: not 7 in `calls_back`"):
        learner("calls_back")(refuse)


def hollow(*shape):
    return torch.zeros((1,) * len(shape), dtype=torch.int8).expand(*shape)


@pytest.mark.parametrize(
    "arguments",
    [
        [hollow(2_000, 1_000)],
        [hollow(3_000, 1), hollow(1, 3_000)],
        [{"a": [hollow(3_000, 1)]}, ({"b": hollow(3_000)},)],
        [hollow(600_000), hollow(600_000)],
        [np.zeros((3_000, 1)), np.zeros(3_000)],
    ],
)
def test_the_judges_functions_take_nothing_that_is_or_becomes_large(learner, arguments):
    seen = []
    with pytest.raises(Crashed, match="TooLarge: the arguments are too large: "):
        learner("calls_back")(seen.append, *arguments)
    assert not seen
    assert learner("calls_back")(lambda *shown: len(shown), hollow(1_000, 900), torch.ones(900, 64)) == 2


@pytest.mark.parametrize("hungry", [lambda: bytearray(2**60), lambda: torch.empty(2**44)])
def test_a_lack_of_memory_costs_the_call_that_asked_for_it(learner, hungry):
    with pytest.raises(Crashed, match="MemoryError: what it was given takes more memory than the judge has"):
        learner("calls_back")(hungry)
    assert learner("add")(1, 1) == 2


def test_a_message_that_there_is_no_memory_for_ends_its_process(hostile, monkeypatch):
    def take(reader):
        raise MemoryError

    peer, send, _ = hostile
    send(("=", 1, []), (1, None, []))
    monkeypatch.setattr("qlab.grading.peer.calls.Reader.take", take)
    with peer.within(5), pytest.raises(Crashed, match="its process was stopped: what it sent takes more memory"):
        peer.call("ready")


def test_an_interrupt_of_the_judge_is_not_swallowed():
    def interrupt():
        raise KeyboardInterrupt

    with forked_learner(FUNCTIONS) as peer, pytest.raises(KeyboardInterrupt):
        peer.call("lookup", "calls_back")(interrupt)


def test_a_function_that_is_returned_can_be_called(learner):
    one, two = (LearnerFunction(learner("curried")(a)) for a in (1, 2))
    assert (two(10), one(10)) == (12, 11)


def test_many_calls_are_one_message(learner):
    calls = [(i, i) for i in range(1_000)]
    function = learner("add")
    assert function.map(calls) == [2 * i for i in range(1_000)]
    with pytest.raises(Crashed, match="ZeroDivisionError"):
        learner("crashes").map([(1,)])


def test_a_driver_runs_beside_the_function(learner):
    x = torch.arange(3.0)
    assert probe.gradients(learner("squared"), x)[0].tolist() == [0, 2, 4]
    with pytest.raises(NotAnswered):
        probe.gradients(learner("stub"), x)


def test_objects_of_the_learners_own_tell_nothing(learner):
    thing = learner("odd")()
    assert type(thing).__name__ == "Odd" and not callable(thing)
    assert thing != 1 and thing != learner("odd")()
    for act in (float, len, iter, lambda x: x + 1, lambda x: x.__array__()):
        with pytest.raises((TypeError, AttributeError)):
            act(thing)
    assert getattr(thing, "weight", None) is None


def test_nothing_of_the_judges_functions_but_calls(learner):
    secret = 12345
    assert learner("looks_into")(lambda: secret) == []


def test_objects_of_the_judge_do_not_cross(learner):
    for thing in (object(), torch.nn.Linear(1, 1), [iter([])]):
        with pytest.raises((TypeError, Crashed), match="cannot be handed"):
            learner("add")(thing, 1)


def test_warnings_and_stderr_come_back(learner):
    said = Said()
    with caught_stderr(said):
        assert learner("warns")(1) == 1
    assert "RuntimeWarning: mind the step" in said.text and "and the gap" in said.text


def test_too_much_is_a_crash_and_not_the_end(learner):
    with pytest.raises(Crashed, match="was not read"):
        learner("too_much")()
    assert learner("add")(1, 1) == 2


def test_calls_back_and_forth_end(learner):
    def again(f, g):
        return f(g)

    with pytest.raises(Crashed):
        learner("forever")(again)
    assert learner("add")(1, 1) == 2


def test_handles_are_let_go():
    with forked_learner(FUNCTIONS) as peer:
        make = peer.call("lookup", "curried")
        for i in range(50):
            assert make(i)(1) == i + 1
        gc.collect()
        assert len(peer.references.table.imports) < 5


@pytest.mark.parametrize(
    ("name", "why"), [("dies", "its process ended"), ("sleeps", "it ran for 0.3 seconds and was stopped")]
)
def test_an_end_is_told_at_every_later_use(name, why):
    with forked_learner(FUNCTIONS) as peer:
        add, ending = peer.call("lookup", "add"), peer.call("lookup", name)
        started = time.monotonic()
        with peer.within(0.3 if name == "sleeps" else 20), pytest.raises(Crashed, match=why):
            ending(1)
        assert time.monotonic() - started < 10
        assert peer.ended == why
        for _ in range(2):
            with pytest.raises(Crashed, match=why):
                add(1, 2)


def test_an_inner_bound_does_not_move_an_outer_one():
    with forked_learner(FUNCTIONS) as peer:
        sleeps = peer.call("lookup", "sleeps")
        with peer.within(0.2), peer.within(50), pytest.raises(Crashed, match=r"0\.2 seconds"):
            sleeps(1)


@pytest.fixture
def hostile():
    """Yield the judge's peer, and a function that sends it anything, as a sandbox would."""
    ours, theirs = socket.socketpair()
    peer, other = Peer(Connection(ours), trusted=True), Connection(theirs)

    def send(*values):
        writer = Writer(lambda w, value: w.bytes.extend(value.data), trusted=False, most_bytes=2**20)
        for value in values:
            writer.put(value)
        other.send(writer.bytes)

    yield peer, send, other
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "values",
    [
        (("=", 2, []), (1, None, [])),
        (("=", 1, [{}]), (1, None, [])),
        (("=", 1, []), (1, None)),
        (("=", 1, []), [1, None, []]),
        (("=", 1, []), (1, None, []), 5),
        (("!", 1, []), (7, None, [])),
        (("!", 1, []), ((), None, [])),
        (("x", 1, []), (1, None, [])),
        ((np.zeros(2), 1, []), (1, None, [])),
        (("=", np.zeros(2), []), (1, None, [])),
        (("?", 1, []), (np.zeros(2), (1, (), {}), None)),
        (("?", 1, []), ("service", ("lookup", ("x",)), None)),
        (("?", 1, []), ("get", (1, "__globals__"), None)),
        (("?", 1, []), ("beside", (1, "qlab.checks.probe:gradients", ()), None)),
        (("?", 1, []), ("map", (1, [(1,)]), None)),
        (("?", 1, []), ("call", (99, (), {}), None)),
        (("?", 1, []), ("call", (1, {}, ()), None)),
        ("junk",),
    ],
)
def test_what_breaks_the_protocol_ends_it(hostile, values):
    peer, send, _ = hostile
    peer.references.table.export(abs)
    send(*values)
    with peer.within(5), pytest.raises(Crashed, match="broke the protocol"):
        peer.call("ready")
    assert peer.ended.startswith("its process was stopped")


def test_only_functions_that_were_handed_over_are_called(hostile):
    peer, send, other = hostile
    number = peer.references.table.export(len)
    send(("?", 1, []), ("call", (number, ([1, 2],), {}), None))
    send(("=", 1, []), ("done", None, []))
    with peer.within(5):
        assert peer.call("ready") == "done"
    other.receive()
    assert b"=" in other.receive()


def test_an_error_that_is_told_is_text_and_no_more(hostile):
    peer, send, _ = hostile
    send(
        ("!", 1, []),
        (("refused", "m" * 9_000, "an-id", "why"), ("text", [("OSError", "x"), ("SystemExit", "y"), 3]), []),
    )
    said = Said()
    with caught_stderr(said), peer.within(5), pytest.raises(Refused) as caught:
        peer.ask("beside", 1, "qlab.checks.probe:gradients_to", ())
    assert len(str(caught.value)) == 4_000 and caught.value.misconception == "an-id"
    assert "SystemExit: y" in said.text


def test_what_is_said_reaches_no_terminal(hostile, capfd):
    peer, send, _ = hostile
    told = ("\x1b[2J\x1b]0;mine\x07said\tof\r it\n", [("UserWarning", "\x9b31mwarned")])
    send(("=", 1, []), ("done", told, []))
    send(("=", 2, []), ("done", told, []))
    with peer.within(5):
        assert peer.call("ready") == "done"
    assert capfd.readouterr() == ("", "")
    said = Said()
    with caught_stderr(said), peer.within(5):
        assert peer.ask("call", 1, (), {}) == "done"
    assert said.text == "UserWarning: 31mwarned\n[2J]0;minesaid\tof it\n"


def test_what_is_kept_of_stderr_is_text_that_a_terminal_shows():
    said = Said()
    said.add("\x1b[31mred\x1b[0m\r50%\n")
    assert said.text == "[31mred[0m50%\n"


@pytest.mark.parametrize("slug", ["right", "crashed", "wrong", "empty"])
def test_no_misconception_is_called_like_an_end_of_a_check(hostile, slug):
    peer, send, _ = hostile
    send(("!", 1, []), (("refused", "m", slug, "why"), None, []))
    with peer.within(5), pytest.raises(Crashed, match="m"):
        peer.ask("beside", 1, "qlab.checks.probe:gradients_to", ())


def test_a_learner_names_no_misconceptions(hostile, learner):
    with pytest.raises(Crashed, match=r"^Refused: mine"):
        learner("refuses")(1)
    peer, send, _ = hostile
    send(("!", 1, []), (("refused", "m", "<b>Not an id</b>", "why"), None, []))
    with peer.within(5), pytest.raises(Crashed):
        peer.ask("beside", 1, "qlab.checks.probe:gradients_to", ())


def test_a_fork_of_the_learners_process_is_silent(learner):
    assert learner("forks")(1) == 1
    assert learner("add")(1, 2) == 3


def test_damaged_answers_end_in_a_crash_and_nothing_else():
    writer = Writer(lambda w, value: None, trusted=False, most_bytes=2**20)
    writer.put(("=", 1, []))
    writer.put(
        ([1, {"a": (2.0, None)}, torch.ones(2, 3), Outcome.RIGHT, "text", {1}], ("said", [("UserWarning", "w")]), [])
    )
    chance, ends = random.Random(9), 0
    for _ in range(1_500):
        data = bytearray(writer.bytes)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        ours, theirs = socket.socketpair()
        Connection(theirs).send(bytes(data))
        theirs.close()
        peer = Peer(Connection(ours), trusted=True)
        with caught_stderr(Said()):
            try:
                peer.call("ready", seconds=5)
            except (Crashed, NotAnswered):
                ends += 1
        ours.close()
    assert ends > 500
