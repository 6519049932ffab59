"""One forward and one backward pass through a learner's `checkpoint`, with what each did to the random generator."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlab.checks import probe
from qlab.checks.expect import as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import require

Function = Callable[..., Tensor]
LIBRARY = "torch.utils.checkpoint"


class Watched:
    """A function of tensors that counts its calls, and notes whether the library's checkpointing runs it."""

    def __init__(self, function: Function) -> None:
        self.function, self.calls, self.by_library = function, 0, False

    def __call__(self, *args: Any) -> Tensor:
        """Run the function."""
        self.calls += 1
        self.by_library |= _called_by(LIBRARY)
        return self.function(*args)


def _called_by(module: str) -> bool:
    """Tell whether a function of `module` is under way: whoever may call it, its frame is on the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class Problem:
    """Layers that run one after another: each takes what the one before returned, and tensors of its own.

    `wants` says of the input, and of each further tensor in order, whether it asks for a gradient.
    """

    layers: tuple[Function, ...]
    x: Tensor
    others: tuple[tuple[Tensor, ...], ...]
    wants: tuple[bool, ...]
    upstream: Tensor
    seed: int

    def leaves(self) -> list[Tensor]:
        """Return fresh copies of all arguments, which ask for their gradients where wanted."""
        tensors = [self.x, *(t for group in self.others for t in group)]
        return [t.clone().requires_grad_(wanted) for t, wanted in zip(tensors, self.wants, strict=True)]

    def grouped(self, leaves: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the further arguments of each layer."""
        rest = iter(leaves[1:])
        for group in self.others:
            yield tuple(next(rest) for _ in group)


@dataclass(frozen=True)
class Passed:
    """What came of both passes; each state is that of torch's global generator on the CPU."""

    value: Tensor
    grads: tuple[Tensor | None, ...]
    at_start: Tensor
    after_forward: Tensor
    before_backward: Tensor
    after_backward: Tensor
    forward_calls: tuple[int, ...]
    backward_calls: tuple[int, ...]


@contextmanager
def generator_kept() -> Iterator[None]:
    """Put torch's global generator on the CPU back to where it was."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def plainly(f: Function, *args: Any) -> Tensor:
    """Run `f(*args)`; autograd keeps what it wants."""
    return f(*args)


def passed(run: Callable[..., Any], problem: Problem) -> Passed:
    """Take both passes through `run`, a `LearnerFunction` or any other, in the process where it lives."""
    return run.beside(passed_here, problem) if isinstance(run, LearnerFunction) else passed_here(run, problem)


def passed_here(run: Callable[..., Any], problem: Problem) -> Passed:
    """Run the layers through `run(f, *args)` from the problem's seed, then differentiate the result.

    Errors:  NotAnswered and Crashed for a learner's function; Refused if it returns no tensor of the right shape, or
             hands the work to the library.
    """
    watched, leaves = [Watched(layer) for layer in problem.layers], problem.leaves()
    with generator_kept(), torch.enable_grad():
        torch.default_generator.manual_seed(problem.seed)
        torch.rand(5)  # so that the seed alone does not bring this state back
        at_start = torch.get_rng_state()
        result: Any = leaves[0]
        for layer, others in zip(watched, problem.grouped(leaves), strict=True):
            result = run(layer, result, *others)
        after_forward = torch.get_rng_state()
        forward_calls = tuple(layer.calls for layer in watched)
        _require_own_work(watched)
        value = as_tensor(result, tuple(problem.upstream.shape), call="checkpoint(f, *args)").clone()
        torch.rand(7)  # what follows in the network draws numbers too
        before_backward = torch.get_rng_state()
        grads = _gradients(result, leaves, problem.upstream)
        after_backward = torch.get_rng_state()
    backward_calls = tuple(w.calls - before for w, before in zip(watched, forward_calls, strict=True))
    value = value.detach()
    return Passed(value, grads, at_start, after_forward, before_backward, after_backward, forward_calls, backward_calls)


def _require_own_work(layers: list[Watched]) -> None:
    require(
        not any(layer.by_library for layer in layers),
        "your function hands `f` to `torch.utils.checkpoint`",
        misconception="calls-torch-checkpoint",
        thought="The task asks for one of your own: an autograd function, or hooks on what autograd saves.",
    )


def _gradients(result: Any, leaves: list[Tensor], upstream: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted or not isinstance(result, Tensor) or not result.requires_grad:
        return (None,) * len(wanted)
    # an autograd function of the learner's own runs only now, and its errors are the learner's
    return LearnerFunction(lambda: torch.autograd.grad(result, wanted, upstream.to(result), allow_unused=True))()


def kept_and_passed(checkpoint: LearnerFunction, problem: Problem) -> tuple[int, Passed]:
    """Return the bytes that autograd keeps of one layer, run on leaves made here, and what both passes give."""
    kept = probe.measured_saved_bytes(checkpoint, problem.layers[0], *problem.leaves())
    return kept, passed_here(checkpoint, problem)


def run_twice_uncopied(checkpoint: LearnerFunction, x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    """Run twice on the tensors themselves, not on copies."""
    return run_twice(lambda *call: checkpoint.map([call])[0], x, weight)


def run_twice(run: Callable[..., Any], x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and of a weight that two runs in a row share."""

    def mixed(x: Tensor, weight: Tensor) -> Tensor:
        return x + torch.tanh(x @ weight)

    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    with generator_kept(), torch.enable_grad():
        result = run(mixed, run(mixed, *leaves), leaves[1])
        return _gradients(result, leaves, torch.ones_like(x))
