"""Check of `training_bytes`: what mixed precision halves, and what it does not."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qlab import memory
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.reading import TOPIC
from qlab.checks.numbers import FP32_ROUNDING, doubles, drawn, require_numbers
from qlab.checks.report import check, part


@dataclass(frozen=True)
class Recipe:
    """Bytes of each thing that is kept for a parameter, and of a saved value."""

    weight: int
    gradient: int
    master: int
    adam: int
    cached: int
    saved: int

    @property
    def states(self) -> int:
        return self.weight + self.gradient + self.master + self.adam + self.cached


RECIPES = {
    "fp32": Recipe(weight=4, gradient=4, master=0, adam=8, cached=0, saved=4),
    "mixed": Recipe(weight=2, gradient=2, master=4, adam=8, cached=0, saved=2),
    "autocast": Recipe(weight=4, gradient=4, master=0, adam=8, cached=2, saved=2),
    "bf16": Recipe(weight=2, gradient=2, master=0, adam=4, cached=0, saved=2),
}


@dataclass(frozen=True)
class Case:
    """One call: `training_bytes(parameters, saved_values, recipe)`."""

    parameters: int
    saved_values: int
    recipe: str

    @property
    def call(self) -> str:
        return f'training_bytes({self.parameters:_}, {self.saved_values:_}, "{self.recipe}")'

    def total(self, recipe: Recipe | None = None) -> int:
        recipe = recipe or RECIPES[self.recipe]
        return recipe.states * self.parameters + recipe.saved * self.saved_values


@check(TOPIC, "training-bytes", memory.model_state_bytes, points=3)
def check_training_bytes(training_bytes: LearnerFunction, draw: torch.Generator) -> None:
    """Check `training_bytes(parameters, saved_values, recipe)`."""
    for name, recipes in (
        ("FP32, and mixed precision, whose states are as large", ("fp32", "mixed")),
        ("autocast: FP32 weights and a 16-bit copy of them beside", ("fp32", "autocast")),
        ("BF16 for everything, Adam's states as well: this is half", ("fp32", "bf16")),
    ):
        with part(name):
            _compare(training_bytes, [_case(recipe, draw) for recipe in recipes for _ in range(2)])


def _case(recipe: str, draw: torch.Generator) -> Case:
    return Case(drawn(10**6, 10**9, draw), drawn(10**6, 10**9, draw), recipe)


def _compare(training_bytes: LearnerFunction, cases: list[Case]) -> None:
    require_numbers(
        [training_bytes(c.parameters, c.saved_values, c.recipe) for c in cases],
        [c.total() for c in cases],
        calls=[c.call for c in cases],
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
    n, values, recipe, total = case.parameters, case.saved_values, RECIPES[case.recipe], case.total()
    whole = case.total(RECIPES["fp32"])
    narrow = case.recipe != "fp32"
    claim = "That is the claim itself: half of FP32's bytes. Add up weights, gradients, master and Adam's states."
    yield "halves-everything", claim, whole / 2 if narrow and case.recipe != "bf16" else total
    narrow_values = "What backward needs is saved in 16 bits: 2 bytes a value."
    yield "saves-in-fp32", narrow_values, total + (4 - recipe.saved) * values
    yield "halves-nothing", "Saved values are halved, and one recipe halves all of it.", whole
    yield "forgets-the-saved-values", "What backward needs is kept as well.", total - recipe.saved * values
    yield "forgets-the-states", "Weights, gradients and Adam's states are kept as well.", recipe.saved * values
    master = "4 bytes a parameter are missing: is the FP32 copy there, and are both of Adam's states in FP32?"
    yield "forgets-the-master-copy", master, total - recipe.master * n
    cached = "Autocast keeps 16-bit copies of its FP32 weights from the forward to the backward pass: 2 more bytes."
    yield "forgets-the-cached-copy", cached, total - recipe.cached * n
    both = "Adam keeps two numbers for each parameter."
    yield "one-state-for-adam", both, total - recipe.adam // 2 * n
    yield "forgets-the-optimizer", both, total - recipe.adam * n
    wide = "Adam's two states stay in FP32, 4 bytes each."
    yield "adam-in-16-bits", wide, total - 4 * n * (recipe.adam == 8)
    yield "adam-in-fp32", "In pure BF16 Adam's states have 2 bytes each too.", total + 4 * n * (recipe.adam == 4)
    pieces = "Weights and gradients count both."
    yield "forgets-weights-or-gradients", pieces, total - recipe.gradient * n
    yield "forgets-weights-or-gradients", pieces, total - recipe.weight * n
    yield "gradients-in-fp32", "These gradients have 16 bits.", total + 2 * n * (recipe.gradient == 2)
    autocast = "Under autocast the weights and their gradients are FP32."
    yield "autocast-halves-gradients", autocast, total - 2 * n * (case.recipe == "autocast")
    yield "bits-for-bytes", "A byte has eight bits.", 8 * total
    yield "returns-gigabytes", "Return bytes, not GB.", total / memory.GB
    yield "returns-gigabytes", "Return bytes, not GiB.", total / memory.GiB
