"""The bank of answers: what a right or wrong answer looks like, and how the files of a topic are read."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Answer:
    """One answer to an exercise: its functions, and the misconception it must get, empty if it is right.

    A `slow` one takes longer than a check may: it is tried, but the time of the check is not judged by it.
    """

    exercise: str
    name: str
    functions: tuple[Callable[..., Any], ...]
    misconception: str = ""
    outcome: str = "right"
    slow: bool = False


class Bank:
    """The answers of one exercise, in the order they are written."""

    def __init__(self, exercise: str) -> None:
        self.exercise = exercise
        self.answers: list[Answer] = []

    def right(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self.add(function.__name__, function)
        return function

    def right_but_slow(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self.answers.append(Answer(self.exercise, function.__name__, (function,), slow=True))
        return function

    def wrong(self, misconception: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def keep(function: Callable[..., Any]) -> Callable[..., Any]:
            self.add(function.__name__, function, misconception=misconception)
            return function

        return keep

    def crashes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self.answers.append(Answer(self.exercise, function.__name__, (function,), outcome="crashed"))
        return function

    def add(self, name: str, *functions: Callable[..., Any], misconception: str = "") -> None:
        outcome = "wrong" if misconception else "right"
        self.answers.append(Answer(self.exercise, name, functions, misconception, outcome))


def answers_of(topic: str) -> list[Answer]:
    """Read the bank of a topic: every `BANK` in its files."""
    answers: list[Answer] = []
    for path in sorted((HERE / topic).glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"bank_{topic}_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        answers += module.BANK.answers
    return answers
