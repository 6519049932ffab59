"""Every answer of the bank gets across the border what it gets in one process: outcome, points and misconception."""

import dataclasses
import importlib
import os
from collections import defaultdict

import pytest
import torch

from qlab.checks.learner import LearnerFunction, NotAnswered
from tests.answers.bank import HERE, answers_of
from tests.grading.pair import forked_learner

SEED = 1
WHOLE_BANK = os.environ.get("QLAB_WHOLE_BANK") == "1"
TOPICS = sorted(path.name for path in HERE.iterdir() if path.name[:2].isdigit())


def exercises():
    """List each exercise with its answers: all of them, or a right one and the first and the last wrong one."""
    for topic in TOPICS:
        found = defaultdict(list)
        for answer in answers_of(topic):
            found[answer.exercise].append(answer)
        for exercise, answers in found.items():
            right = [answer for answer in answers if answer.outcome == "right" and not answer.slow]
            wrong = [answer for answer in answers if answer.outcome == "wrong" and not answer.slow]
            some = answers if WHOLE_BANK else [right[0], wrong[0], wrong[-1]]
            yield pytest.param(topic, exercise, some, id=f"{topic}-{exercise}")


def check_for(topic, exercise):
    module = importlib.import_module(f"qlab.checks.{topic[3:]}")
    return next(c for c in (getattr(module, name) for name in module.__all__) if c.exercise == exercise)


def summary(verdict):
    parts = [(part.name, str(part.outcome), part.misconception) for part in verdict.parts]
    return str(verdict.outcome), verdict.points, parts, bool(verdict.said)


def judged(check, functions):
    torch.manual_seed(0)  # an answer may draw from the global generator, and then not what the check draws
    return check(*functions, seed=SEED)


@pytest.mark.parametrize(("topic", "exercise", "answers"), list(exercises()))
def test_answers_are_judged_alike_on_either_side_of_the_border(topic, exercise, answers):
    check = check_for(topic, exercise)
    named = {f"{i} {j}": f for i, answer in enumerate(answers) for j, f in enumerate(answer.functions)}
    with forked_learner(named) as peer:
        for i, answer in enumerate(answers):
            expected = judged(check, answer.functions)
            assert (str(expected.outcome), expected.misconception) == (answer.outcome, answer.misconception)
            found = judged(check, [peer.call("lookup", f"{i} {j}") for j in range(len(answer.functions))])
            assert not peer.ended
            story = "\n".join(map(str, (answer.name, *found.parts, *expected.parts)))
            assert summary(found) == summary(expected), story


class Forger:
    """A function whose process answers every driver without doing its work: the honest reply, each number replaced."""

    def __init__(self, honest, change):
        self.honest, self.change = LearnerFunction(honest), change

    def __call__(self, *args, **kwargs):
        raise NotAnswered

    def __qlab_beside__(self, name, args):
        module, _, path = name.partition(":")
        return self.change(getattr(importlib.import_module(module), path)(self.honest, *args), args)


def numbers_replaced(reply, number):
    if isinstance(reply, torch.Tensor):
        return torch.full_like(reply.detach(), number)
    if isinstance(reply, tuple | list):
        made = [numbers_replaced(item, number) for item in reply]
        return type(reply)(*made) if hasattr(reply, "_fields") else type(reply)(made)
    if isinstance(reply, dict):
        return {key: numbers_replaced(value, number) for key, value in reply.items()}
    if dataclasses.is_dataclass(reply):
        return dataclasses.replace(reply, **{k: numbers_replaced(v, number) for k, v in vars(reply).items()})
    return type(reply)(number) if type(reply) in (int, float) else reply


def echoed(reply, args):
    return ([*args], ("done",)) if isinstance(reply, tuple) and reply[1:] == (("done",),) else args


FORGERIES = {
    "zeros": lambda reply, args: numbers_replaced(reply, 0),
    "ones": lambda reply, args: numbers_replaced(reply, 1),
    "empty": lambda reply, args: ([], ("done",)) if isinstance(reply, tuple) else type(reply)(),
    "echo": echoed,
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize(("topic", "exercise", "answers"), list(exercises()))
def test_a_reply_that_took_no_work_wins_nothing(topic, exercise, answers, forgery):
    right = next(answer for answer in answers if answer.outcome == "right")
    verdict = judged(check_for(topic, exercise), [Forger(f, FORGERIES[forgery]) for f in right.functions])
    won = [part.name for part in verdict.parts if part.outcome == "right"]
    assert not won
