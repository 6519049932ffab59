"""Submissions that mean to make the judge's own process fail, fill up, or speak in its own name."""

from tests.grading.hostile import Hostile, labs

LOUD = "print('\\x01' * 150_000)"
PATCHED = "import numpy as np, qlab.grading.peer.calls as calls\n"
SERVICE = (
    PATCHED + "old = calls.Peer._run\n"
    "def run(self, operation, details, there, heard):\n"
    "    told = old(self, operation, details, there, heard)\n"
    "    return {} if operation == 'service' and details[0] == {!r} else told\n"
    "calls.Peer._run = run"
)


def loud(exercise: str) -> str:
    return f"{labs.right_answers('types')[exercise]}\n{LOUD}"


SUBMISSIONS = (
    Hostile(
        "output in every cell",
        "prints in each cell what takes six bytes a letter in a notebook",
        opening=LOUD,
        closing=LOUD,
        answers={exercise: loud(exercise) for exercise in labs.EXERCISES["types"]},
        keeps=frozenset(labs.EXERCISES["types"]),
    ),
    Hostile(
        "empty outputs",
        "reports cells of 300 errors with 100 empty lines each",
        opening=SERVICE.format(
            "{'status': 'ok', 'outputs': [{'output_type': 'error', 'traceback': [''] * 99 + ['-']}] * 300}", "run_cell"
        ),
    ),
    Hostile(
        "an array for the kind of an output",
        "reports an output whose kind equals each other kind in parts",
        opening=SERVICE.format("{'status': np.zeros(2), 'outputs': [{'output_type': np.zeros(2)}]}", "run_cell"),
    ),
    Hostile(
        "an array for a name",
        "reports the use of a name that equals each other name in parts",
        opening=SERVICE.format("[(np.zeros(2), 'x')]", "uses"),
    ),
    Hostile(
        "an array for the kind of a message",
        "sends messages whose kind equals each other kind in parts",
        opening=PATCHED + "old = calls.Peer._written\n"
        "def written(self, kind, number, body):\n    return old(self, np.zeros(2), number, body)\n"
        "calls.Peer._written = written",
    ),
    Hostile(
        "an array for a request",
        "asks for an operation that equals each other operation in parts",
        opening=PATCHED + "peer = next(o for o in __import__('gc').get_objects() if type(o) is calls.Peer)\n"
        "peer.ask(np.zeros(2), 1)",
    ),
)
