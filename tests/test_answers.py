"""The bank: every right answer wins every point, every wrong one is refused by the name of its misconception."""

import importlib
from collections import Counter

import pytest

from tests.answers.bank import HERE, Answer, answers_of

TOPICS = sorted(path.name for path in HERE.iterdir() if path.name[:2].isdigit())
ANSWERS = [(topic, answer) for topic in TOPICS for answer in answers_of(topic)]


def check_for(topic: str, exercise: str):
    module = importlib.import_module(f"qlab.checks.{topic[3:]}")
    checks = [getattr(module, name) for name in module.__all__]
    return next(check for check in checks if check.exercise == exercise)


@pytest.mark.parametrize(
    ("topic", "answer"), ANSWERS, ids=lambda v: f"{v.exercise}:{v.name}" if isinstance(v, Answer) else v
)
def test_the_check_tells_right_from_wrong(topic, answer):
    check = check_for(topic, answer.exercise)
    for seed in range(3):
        verdict = check(*answer.functions, seed=seed)
        story = "\n".join(map(str, verdict.parts))
        assert verdict.outcome == answer.outcome, story
        assert not verdict.said or "warn" in answer.name, verdict.said
        assert verdict.misconception == answer.misconception, story
        assert verdict.max_points == len(verdict.parts)
        assert (verdict.points == verdict.max_points) == (answer.outcome == "right")


@pytest.mark.parametrize("topic", TOPICS)
def test_every_exercise_has_two_right_and_three_wrong_answers(topic):
    module = importlib.import_module(f"qlab.checks.{topic[3:]}")
    counts = Counter((answer.exercise, answer.outcome == "right") for answer in answers_of(topic))
    for exercise in (getattr(module, name).exercise for name in module.__all__):
        assert counts[exercise, True] >= 2 and counts[exercise, False] >= 3, exercise
