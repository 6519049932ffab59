"""What a saved and loaded 8-bit optimizer must be: the same one, and no larger."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qlab.checks.beside import reporting, reports, require_right_too
from qlab.checks.learner import LearnerFunction
from qlab.checks.optimizers_8bit import regression as trial
from qlab.checks.optimizers_8bit.held import optimizer_bytes, tensor_bytes
from qlab.checks.optimizers_8bit.regression import Regression
from qlab.checks.optimizers_8bit.rules import Settings
from qlab.checks.optimizers_8bit.running import (
    BYTES_A_VALUE,
    FP32_COPY,
    budget,
    copied,
    drawn_gradients,
    made,
    require_moved,
    require_went_down,
    row,
    two_steps_taken,
    walked,
)
from qlab.checks.report import Refused, require

NOTHING = "`super().load_state_dict(state_dict)` puts the saved state in place; after it, mend the types alone."
LOADED = "Loading has changed values: only codes are put back to bytes, absmaxes and the step stay as they came."
SAVED = "All that a step reads must be saved: the step count too."


def require_restart(adam8bit: LearnerFunction, problem: Regression) -> None:
    steps, middle = len(problem.batches), len(problem.batches) // 2
    found = reports(adam8bit, restarted, problem)
    name, is_state = next(found)
    require(
        is_state,
        f"`optimizer.state_dict()` returned a {name}",
        misconception="returns-nothing" if name == "NoneType" else "returns-wrong-type",
        thought="torch's own `state_dict` returns what is in `self.state` and `self.param_groups`: leave it as it is.",
    )
    weights, adam = next(found), problem.path_end()
    require_moved(weights)
    require_right_too((row(weights) - adam).norm() <= adam.norm() / 2)
    loaded, changed = next(found)
    if torch.equal(row(weights), row(loaded)):
        return
    fresh, kept = next(found)
    anew = torch.equal(row(loaded), row(fresh))
    inside = kept >= row(weights).numel()
    outside = "Keep codes, absmaxes and the step in `self.state[p]`: only what is there is saved."
    raise Refused(
        f"saved after {middle} steps and loaded, the parameters after {steps - middle} more differ by up to"
        f" {(row(weights) - row(loaded)).abs().max():.2g} from those of the optimizer that was saved"
        + (", and equal those of a new one" if anew else ""),
        misconception=("loads-nothing" if inside else "keeps-its-state-elsewhere") if anew else "goes-on-differently",
        thought=(NOTHING if inside else outside) if anew else f"{LOADED} ({changed})" if changed else SAVED,
    )


@reporting
def restarted(adam8bit: LearnerFunction, problem: Regression) -> Iterator[Any]:
    """Save halfway and load into another optimizer: tell what was saved, and where both end.

    If they end apart, tell as well where a new optimizer ends, and how many bytes of state were saved.
    """
    steps, middle = len(problem.batches), len(problem.batches) // 2
    weights = trial.parameters()
    first = made(adam8bit, weights.parameters(), problem.settings)
    walked(first, weights, problem, range(middle))
    saved = copy.deepcopy(LearnerFunction(first.state_dict)())
    yield type(saved).__name__, isinstance(saved, dict) and {"state", "param_groups"} <= set(saved)
    others = [copied(weights) for _ in range(2)]
    walked(first, weights, problem, range(middle, steps))
    yield list(weights)
    loaded, fresh = (made(adam8bit, other.parameters(), problem.settings) for other in others)
    LearnerFunction(lambda: loaded.load_state_dict(copy.deepcopy(saved)))()
    changed = _changed(saved["state"], LearnerFunction(loaded.state_dict)())
    walked(loaded, others[0], problem, range(middle, steps))
    yield list(others[0]), changed
    if not torch.equal(row(weights), row(others[0])):
        walked(fresh, others[1], problem, range(middle, steps))
        yield list(others[1]), tensor_bytes(saved["state"])


def _changed(saved: Any, loaded: Any) -> str:
    """Name the entries of the state that loading gave other values, if both states are read alike."""
    state = loaded.get("state") if isinstance(loaded, dict) else None
    if not isinstance(saved, dict) or not isinstance(state, dict):
        return ""
    pairs = [(name, v, state.get(p, {}).get(name)) for p, own in saved.items() for name, v in own.items()]
    other = {
        str(name)
        for name, before, after in pairs
        if isinstance(before, Tensor) and isinstance(after, Tensor) and not torch.equal(before.double(), after.double())
    }
    return ", ".join(sorted(other))


@reporting
def bytes_once_loaded(adam8bit: LearnerFunction, gradients: Sequence[Tensor]) -> Iterator[Any]:
    """Tell the parameters after two steps; then the bytes kept before saving, and after loading."""
    source, before = two_steps_taken(adam8bit, gradients)
    saved = copy.deepcopy(LearnerFunction(source.state_dict)())
    yield list(before)
    weights = copied(before)
    other = made(adam8bit, weights.parameters(), Settings(0.01, (0.9, 0.999), 1e-8))
    LearnerFunction(lambda: other.load_state_dict(saved))()
    yield optimizer_bytes(source, before), optimizer_bytes(other, weights)


def require_small_once_loaded(adam8bit: LearnerFunction, draw: torch.Generator) -> None:
    gradients = drawn_gradients(draw, 30_000)
    found = reports(adam8bit, bytes_once_loaded, gradients)
    before = next(found)
    require_moved(before)
    require_went_down(before, gradients)
    own, kept = next(found)
    require(
        own <= budget(30_000),
        f"{own / 30_000:.2f} bytes a value are kept before saving, at most {BYTES_A_VALUE}",
        misconception="keeps-an-fp32-copy" if own > FP32_COPY * 30_000 else "keeps-too-much",
        thought="Nothing was gained before it was saved: keep codes and absmaxes.",
    )
    require(
        own >= 30_000,
        f"the optimizer's own attributes hold {own} bytes for 30,000 values",
        misconception="keeps-its-state-elsewhere",
        thought="Keep codes and absmaxes in `self.state[p]`: only what is there is saved.",
    )
    require(
        kept >= 30_000,
        f"after loading, {kept} bytes are kept for 30,000 values",
        misconception="loads-nothing",
        thought=NOTHING,
    )
    require(
        kept <= budget(30_000),
        f"after loading, {kept / 30_000:.2f} bytes a value are kept, before saving it was {own / 30_000:.2f}",
        misconception="codes-become-floats",
        thought="torch's `load_state_dict` gives each tensor of the state its parameter's type: put the codes back,"
        " `.to(torch.uint8)`, which changes no value.",
    )
