"""Check of `model_state_bytes`: six recipes, each with sizes drawn anew."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qlab import memory
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.topic import TOPIC
from qlab.checks.numbers import FP32_ROUNDING, doubles, drawn, require_numbers
from qlab.checks.report import check, part

WHOLE_BLOCKS = 64 * 256  # parameters come in multiples of this, so that no block of any recipe is ragged


@dataclass(frozen=True)
class Case:
    """One call: `model_state_bytes(parameters, recipe, adapters)`."""

    parameters: int
    recipe: str
    adapters: int

    @property
    def states(self) -> memory.StateBytes:
        """What the recipe keeps, part by part."""
        return memory.model_state_bytes(self.parameters, memory.named_recipe(self.recipe), adapters=self.adapters)

    @property
    def frozen(self) -> bool:
        """Whether only the adapters are trained."""
        return memory.named_recipe(self.recipe).adapter_rank > 0

    @property
    def adam(self) -> bool:
        """Whether the optimizer keeps two states."""
        return self.recipe != "sgd-momentum"


@check(
    TOPIC, "model-state-bytes", memory.model_state_bytes, memory.Recipe, points=5, forbids=("qlab.memory.state_bytes",)
)
def check_model_state_bytes(model_state_bytes: LearnerFunction, draw: torch.Generator) -> None:
    """Check `model_state_bytes(parameters, recipe, adapters)` for the six recipes of the course."""
    for name, recipes in (
        ("FP32: Adam keeps two states, SGD with momentum one", ("fp32-adam", "sgd-momentum")),
        ("mixed precision: 16 bytes a parameter", ("mixed-adam",)),
        ("8-bit Adam: a byte a state, and a constant for each block", ("adam-8bit",)),
        ("LoRA: only adapters have gradients and states", ("lora",)),
        ("QLoRA: 4-bit weights with their constants", ("qlora",)),
    ):
        with part(name):
            _compare(model_state_bytes, [_case(recipe, draw) for recipe in recipes for _ in range(2)])


def _case(recipe: str, draw: torch.Generator) -> Case:
    parameters = WHOLE_BLOCKS * drawn(10_000, 5_000_000, draw)
    frozen = memory.named_recipe(recipe).adapter_rank > 0
    return Case(parameters, recipe, parameters // drawn(50, 400, draw) if frozen else 0)


def _compare(model_state_bytes: LearnerFunction, cases: list[Case]) -> None:
    require_numbers(
        [model_state_bytes(case.parameters, case.recipe, case.adapters) for case in cases],
        [case.states.total for case in cases],
        calls=[f'model_state_bytes({c.parameters:_}, "{c.recipe}", {c.adapters:_})' for c in cases],
        within=FP32_ROUNDING,
        suspects=lambda: _suspects(cases),
    )


def _suspects(cases: list[Case]) -> Iterator[Suspect]:
    by_case = [list(_slips(case)) for case in cases]
    for same_slip in zip(*by_case, strict=True):
        misconception, thought, _ = same_slip[0]
        yield Suspect(misconception, thought, doubles([value for _, _, value in same_slip]))


def _slips(case: Case) -> Iterator[tuple[str, str, float]]:
    """List what each slip gives for one case; a slip that does not apply gives the right total."""
    states, total = case.states, case.states.total
    eight_bit, of_adapters = case.recipe == "adam-8bit", 16 * case.adapters
    master = "16-bit weights are updated in an FP32 copy: 4 more bytes."
    if case.recipe == "mixed-adam":  # without the copy, with one state, or with two of 16 bits: 12 bytes each time
        master = "4 bytes are missing: is the FP32 master copy there, and are Adam's two states in FP32, 4 bytes each?"
    yield "forgets-the-master-copy", master, total - states.master
    both = "Each trained parameter has a weight and a gradient, and both count."
    for missing in (states.gradients, states.weights, of_adapters / 4):
        yield "forgets-weights-or-gradients", both, total - missing
    yield "forgets-the-optimizer", "The optimizer keeps states from step to step.", total - states.optimizer
    yield (
        "one-state-for-adam",
        "Adam keeps two numbers for each trained parameter: a mean of gradients and one of their squares.",
        total - case.adam * states.optimizer / 2,
    )
    yield (
        "two-states-for-sgd",
        "SGD with momentum keeps one number for each parameter, the momentum.",
        total + (not case.adam) * states.optimizer,
    )
    yield "forgets-the-momentum", "SGD keeps the momentum.", total - (not case.adam) * states.optimizer
    constants = eight_bit * case.parameters * 4 / 256
    no_constants = "256 codes share an FP32 constant, in each of the two states."
    yield "forgets-absmax", no_constants, total - 2 * constants
    yield "forgets-absmax", no_constants, total - constants
    wide = 2 * case.parameters * (states.master > 0)
    yield "gradients-in-fp32", "This recipe keeps its gradients in 16 bits.", total + wide
    yield from _frozen_slips(case)
    yield "returns-gigabytes", "Return bytes, not GB.", total / memory.GB
    yield "returns-gigabytes", "Return bytes, not GiB.", total / memory.GiB
    yield "bits-for-bytes", "A byte has eight bits.", total * 8


def _frozen_slips(case: Case) -> Iterator[tuple[str, str, float]]:
    n, total = case.parameters * case.frozen, case.states.total
    training = case.states.gradients + case.states.optimizer
    of_adapters = 16 * case.adapters * case.frozen
    four_bit = case.recipe == "qlora"
    charged = "A frozen weight costs its own 16 bits, or 4, and nothing else: gradients and states are the adapters'."
    for bytes_each in (2, 4, 8, 10, 12, 14):
        yield "charges-frozen-weights", charged, total + bytes_each * n
        yield "charges-frozen-weights", charged, total - training * case.frozen + bytes_each * n
    yield "forgets-the-adapters", "The adapters are parameters too, in FP32.", total - of_adapters
    yield (
        "forgets-the-adapter-states",
        "The adapters are trained: each of their parameters has a gradient and two Adam states.",
        total - training * case.frozen,
    )
    for missing in (2, 4):
        yield (
            "narrow-adapters",
            "This recipe keeps adapters and their gradients in FP32.",
            total - missing / 16 * of_adapters,
        )
    for misconception, thought, bits in NF4_SLIPS:
        yield misconception, thought, total if not four_bit else n * bits / 8 + of_adapters


NF4_BITS = 8 * memory.NF4_DOUBLE_QUANTIZED_BYTES
NF4_SLIPS = (
    ("forgets-block-constants", "64 codes share a constant, which takes 8 bits, and those constants one in turn.", 4.0),
    ("constants-not-quantized", "Double quantization keeps each block's constant in 8 bits, not in 32.", 4.5),
    ("forgets-second-constants", "256 of the 8-bit constants share one in FP32.", 4.125),
    (
        "second-constants-for-weights",
        "256 of the 8-bit constants share one in FP32: that is one for 64 · 256 weights.",
        4 + 8 / 64 + 32 / 256,
    ),
    ("second-constants-for-weights", "Not each block has an FP32 constant: 256 of them share one.", 4 + 40 / 64),
    ("a-byte-for-four-bits", "Two 4-bit codes share a byte.", 8.0),
    ("a-byte-for-four-bits", "Two 4-bit codes share a byte.", NF4_BITS + 4),
    ("weights-in-16-bits", "QLoRA keeps the frozen weights in 4 bits.", 16.0),
    ("bits-for-bytes", "4.127 is the bits of a weight: a byte has eight.", 8 * NF4_BITS),
)
