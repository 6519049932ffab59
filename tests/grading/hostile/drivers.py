"""Submissions that forge what is measured beside their answers, or hand in the course's own code as their own."""

from tests.grading.hostile import Hostile

EMPTY_REPLIES = """
from qlab.grading.peer import operations
replies = [{replies}]
def forged(*a, **k):
    replies.append(replies.pop(0))
    return replies[-1]
operations.FOR_THE_JUDGE['beside'] = operations._beside = forged
"""
DRIVERS = """
import sys, types
for name, module in list(sys.modules.items()):
    if name.startswith('{package}') and module:
        for key, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value.__module__ == name:
                setattr(module, key, lambda *a, **k: {reply})
"""
DONE = "([], ('done',))"
PLAIN = (
    "None",
    "0",
    "()",
    "[]",
    "([], [])",
    "([], [], [])",
    "(0, None)",
    "(True, True)",
    "(0, 0, 0)",
    DONE,
    "{}",
    "''",
    "([True] * 9, ('done',))",
    "([0.0] * 9, ('done',))",
    "([torch.zeros(1)] * 9, ('done',))",
    "(0, torch.zeros(1))",
    "([], [None, None, None])",
    "([None] * 9, ('empty',))",
)


def forges(name: str, tries: str, lab: str, opening: str, **more: object) -> Hostile:
    """Answer nothing, and forge what is measured."""
    return Hostile(name, tries, lab=lab, answered=False, opening=opening, **more)


REPLIES = tuple(
    forges(
        f"forged replies in {lab}",
        "answers for every driver with replies that need no work",
        lab,
        EMPTY_REPLIES.format(replies=", ".join(PLAIN)),
    )
    for lab in ("adapters", "replays", "scalers")
)
PATCHED = tuple(
    forges(
        f"drivers of {lab} patched, {number}",
        "replaces every function of the checks by one that reports success",
        lab,
        DRIVERS.format(package=package, reply=reply),
    )
    for lab, package in (
        ("adapters", "qlab.checks.qlora"),
        ("replays", "qlab.checks.checkpointing"),
        ("scalers", "qlab.checks.mixed_precision"),
    )
    for number, reply in enumerate(("([], [])", DONE, "0"), start=1)
)
COUNTS = (
    Hostile(
        "forged counts",
        "keeps everything, and says that nothing is kept: what its own process alone can count is "
        "self-reported, and is worth a point only beside right values",
        lab="replays",
        opening="""
import qlab.checks.checkpointing.running as running, qlab.checks.probe as probe
probe.measured_saved_bytes = running.probe.measured_saved_bytes = lambda *a: 0
""",
        answers={"checkpoint": "def checkpoint(f, *args):\n    return f(*args)"},
        at_most={"checkpoint": 5},
    ),
    Hostile(
        "forged counts of wrong values",
        "says that nothing is kept, and returns wrong values",
        lab="adapters",
        opening="""
import qlab.checks.probe as probe, qlab.measure as measure
probe.measured_saved_bytes = measure.saved_bytes = lambda *a: 0
""",
        answers={
            "qlora-linear": "def qlora_linear(x, codes, lora_a, lora_b, scaling):\n"
            "    return (x @ codes.dequantize().to(x.dtype).T) * 0 + (x @ lora_a.T) @ lora_b.T"
        },
    ),
)
USES = r"wrong.*uses-the-reference"
BORROWED = (
    Hostile(
        "the reference itself",
        "hands in qlab's own function",
        answers={"kahan-sum": "from qlab.summation import kahan_sum"},
        says={"kahan-sum": USES},
    ),
    Hostile(
        "the reference inside",
        "calls qlab's own function in its answer",
        answers={"kahan-sum": "import qlab.summation as s\ndef kahan_sum(x):\n    return s.kahan_sum(x)"},
        says={"kahan-sum": USES},
    ),
    Hostile(
        "the reference from afar",
        "calls qlab's own function through a name that is put together",
        opening="import importlib\n"
        "borrowed = getattr(importlib.import_module('qlab.' + 'summa' + 'tion'), 'kahan' + '_sum')",
        answers={"kahan-sum": "def kahan_sum(x):\n    return borrowed(x)"},
        says={"kahan-sum": USES},
    ),
)
SUBMISSIONS = (*REPLIES, *PATCHED, *COUNTS, *BORROWED)
