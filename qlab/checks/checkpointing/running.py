"""Check of `checkpoint`: value, gradients and randomness of a plain run, with nothing but the arguments kept."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from qlab import checkpointing
from qlab.checks import probe
from qlab.checks.beside import require_right_too
from qlab.checks.checkpointing.passes import (
    Passed,
    Problem,
    generator_kept,
    kept_and_passed,
    passed,
    plainly,
    run_twice,
    run_twice_uncopied,
)
from qlab.checks.checkpointing.replayed import looked_up, noisy, smooth
from qlab.checks.checkpointing.rerunning import replayed
from qlab.checks.checkpointing.topic import TOPIC
from qlab.checks.learner import Crashed, LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.report import Refused, check, part, require

ROOM = 16 * 1024  # bytes beyond the arguments: a state of the generator takes 5 056, one activation 32 KiB at least
CLOSE = 1e-4  # of the largest gradient: the same operations on the same values; sums in another order give 1e-6

DROPS = "Nothing leads from the result back to this argument: return its gradient from `backward`, in its place."
DETACH = "Differentiate detached copies: through the arguments themselves the way leads on, into what made them."
SAME_DRAWS = "Note the generator's state just before the first run, and set it just before the second: same draws."
STATE = "Save `torch.get_rng_state()` before `f` runs, set it before `f` runs again: the same masks must fall."


@check(
    TOPIC,
    "checkpoint",
    checkpointing.checkpoint,
    checkpointing.replay.Replay,
    points=6,
    forbids=(
        "torch.utils.checkpoint",
        "qlab.checkpointing.checkpoint_segments",
        "qlab.checkpointing.checkpoint_binomially",
        "qlab.checkpointing.checkpoint_selectively",
    ),
)
def check_checkpoint(checkpoint: LearnerFunction, draw: torch.Generator) -> None:
    """Check `checkpoint(f, *args)`."""
    with part("it returns what f returns, and draws as many random numbers"):
        _require_forward(checkpoint, _noisy(draw))
    with part("the gradient of every argument"):
        _require_gradients(checkpoint, _smooth(draw))
        _require_shared(checkpoint, _drawn(draw, 5, 7), _drawn(draw, 7, 7) / 7**0.5)
    with part("nothing but the arguments is kept, and f runs once more"):
        _require_nothing_kept(checkpoint, _smooth(draw))
    with part("dropout: the second run draws what the first one drew"):
        _require_gradients(checkpoint, _noisy(draw))
        _require_gradients(checkpoint, _chain(draw))
    with part("the backward pass leaves the random generator where it was"):
        _require_generator_kept(checkpoint, _noisy(draw))
    with part("arguments that want no gradient"):
        _require_gradients(checkpoint, _looked_up(draw))
        nothing_wanted = _looked_up(draw)
        _require_forward(checkpoint, replace(nothing_wanted, wants=(False,) * 4))


def _drawn(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw)


def _smooth(draw: torch.Generator) -> Problem:
    rows, width = drawn(96, 112, draw), drawn(90, 100, draw)
    others = (_drawn(draw, width, width) / width**0.5, _drawn(draw, width))
    x, upstream = _drawn(draw, rows, width), _drawn(draw, rows, width)
    return Problem((smooth,), x, (others,), (True,) * 3, upstream, drawn(1, 10**6, draw))


def _noisy(draw: torch.Generator, *, layers: int = 1) -> Problem:
    rows, width = drawn(9, 16, draw), drawn(17, 24, draw)
    others = tuple((_drawn(draw, width, width) / width**0.5,) for _ in range(layers))
    x, upstream = _drawn(draw, rows, width), _drawn(draw, rows, width)
    return Problem((noisy,) * layers, x, others, (True,) * (layers + 1), upstream, drawn(1, 10**6, draw))


def _chain(draw: torch.Generator) -> Problem:
    return _noisy(draw, layers=3)


def _looked_up(draw: torch.Generator) -> Problem:
    rows, width, picked = drawn(9, 16, draw), drawn(5, 8, draw), drawn(17, 24, draw)
    numbers = torch.randint(rows, (picked,), generator=draw)
    others = (numbers, _drawn(draw, picked, width), _drawn(draw, width, 3))
    x, upstream = _drawn(draw, rows, width), _drawn(draw, picked, 3)
    return Problem((looked_up,), x, (others,), (True, False, False, True), upstream, drawn(1, 10**6, draw))


def _require_forward(checkpoint: LearnerFunction, problem: Problem) -> None:
    got, want = passed(checkpoint, problem), passed(plainly, problem)
    if not _same(got.value, want.value):
        again = replace(problem, seed=problem.seed + 1)
        reseeds = problem.layers == (noisy,) and _same(got.value, passed(checkpoint, again).value)
        require(
            False,
            f"the result differs from f(*args) by up to {(got.value.double() - want.value).abs().max():.3g}",
            misconception="reseeds-the-generator" if reseeds else "wrong-value",
            thought="The first run is `f(*args)` and nothing else: no seed, no copy in another type, no second run.",
        )
    require(
        torch.equal(got.after_forward, want.after_forward),
        "after the forward pass torch's generator is not where f leaves it",
        misconception="rewinds-the-generator"
        if torch.equal(got.after_forward, got.at_start)
        else "disturbs-the-generator",
        thought="The next layer must draw new numbers: in the forward pass save the state and leave it alone.",
    )


def _require_gradients(checkpoint: LearnerFunction, problem: Problem) -> None:
    got, want = passed(checkpoint, problem), passed(plainly, problem)
    missing = [place for place, grad in enumerate(got.grads) if grad is None or not grad.any()]
    near = [g is not None and _same(g, w) for g, w in zip(got.grads, want.grads, strict=True)]
    if all(near):
        return
    names = ("x", *(f"tensor {place}" for place in range(1, len(near))))
    require(
        not missing,
        f"no gradient arrives at {', '.join(names[place] for place in missing)}",
        misconception="drops-gradients" if len(missing) == len(near) or not near[0] else "first-argument-only",
        thought=DROPS,
    )
    first = near.index(False)
    off = (got.grads[first].double() - want.grads[first]).abs().max() / want.grads[first].abs().max()
    message = f"the gradient of {names[first]} is off by {off:.3g} of its largest value"
    for misconception, thought, grads in _slips(problem, got):
        if all(_same(g, s) for g, s in zip(got.grads, grads, strict=True)):
            raise Refused(message, misconception=misconception, thought=thought)
    compare = "Compare with `torch.autograd.grad(f(*args), args, upstream)` on a two-line f without randomness."
    thought = SAME_DRAWS if noisy in problem.layers else compare
    raise Refused(message, misconception="wrong-value", thought=thought)


def _require_shared(checkpoint: LearnerFunction, x: Tensor, weight: Tensor) -> None:
    """Run twice with the same weight: the second run's input is computed from its other argument."""
    want = run_twice(plainly, x, weight)
    told = "two runs with the same weight, the second on the first one's result"
    try:
        got = checkpoint.beside(run_twice_uncopied, x, weight)
    except Crashed as crash:
        again = "backward through the graph a second time" in str(crash)
        require(not again, f"{told}: {crash}", misconception="reaches-past-the-arguments", thought=DETACH)
        raise
    for name, grad, expected in zip(("x", "the weight"), got, want, strict=True):
        right = grad is not None and _same(grad, expected)
        message = f"{told}: the gradient of {name} is not that of a plain run"
        require(right, message, misconception="wrong-value", thought=DETACH)


def _slips(problem: Problem, got: Passed) -> Iterator[tuple[str, str, tuple[Tensor | None, ...]]]:
    """List what each slip makes of the gradients."""
    upstream = "`backward` is handed the gradient of what comes after: pass it on to `torch.autograd.grad`."
    for ones in (torch.ones_like(problem.upstream), torch.ones_like(problem.upstream) / problem.upstream.numel()):
        yield "ignores-the-upstream", upstream, passed(plainly, replace(problem, upstream=ones)).grads
    if noisy not in problem.layers:
        return
    yield "does-not-restore-rng", STATE, replayed(problem, got.before_backward)
    with generator_kept():
        torch.default_generator.manual_seed(problem.seed)
        at_seed = torch.get_rng_state()
    if len(problem.layers) == 1:
        late = "The state *before* f's first run is needed: after it, the generator has moved on."
        yield "saves-the-state-too-late", late, replayed(problem, got.after_forward)
        seed = "A seed says where the generator began, not where it is now: `torch.get_rng_state()`."
        yield "restores-the-seed", seed, replayed(problem, at_seed)


def _require_nothing_kept(checkpoint: LearnerFunction, problem: Problem) -> None:
    arguments = sum(leaf.nbytes for leaf in problem.leaves())
    plain = probe.saved_bytes(problem.layers[0], *problem.leaves())
    kept, got = checkpoint.beside(kept_and_passed, problem)
    want = passed(plainly, problem)
    right = [_same(got.value, want.value), *(g is not None and g.any() for g in got.grads)]
    require_right_too(all(right))
    everything = kept >= 0.9 * (plain - arguments)
    require(
        kept <= arguments + ROOM,
        f"{kept:,} bytes are kept for the backward pass; the arguments take {arguments:,}, a plain run keeps {plain:,}",
        misconception="keeps-the-activations" if everything else "keeps-more-than-the-arguments",
        thought="Let `f` run where autograd records nothing, and save the arguments alone.",
    )
    (forward,), (backward,) = got.forward_calls, got.backward_calls
    require(
        backward,
        "f does not run again in the backward pass",
        misconception="never-runs-f-again",
        thought="What was not kept must be computed again, in `backward`.",
    )
    require(
        (forward, backward) == (1, 1),
        f"f runs {forward} times in the forward pass and {backward} times in the backward pass, expected once each",
        misconception="runs-f-too-often",
        thought="One run gives the value; one more, differentiated once, gives all the gradients.",
    )


def _require_generator_kept(checkpoint: LearnerFunction, problem: Problem) -> None:
    got = passed(checkpoint, problem)
    _require_backward(got)
    require_right_too(_same(got.value, passed(plainly, problem).value) and all(g.any() for g in got.grads))
    require(
        torch.equal(got.before_backward, got.after_backward),
        "the backward pass moved torch's generator: what is drawn after it differs from a plain run",
        misconception="disturbs-the-generator",
        thought="`with torch.random.fork_rng(devices=[]):` puts the state back when the block ends.",
    )


def _require_backward(got: Passed) -> None:
    require(
        all(grad is not None for grad in got.grads),
        "no gradient arrives, so there is no backward pass to judge",
        misconception="drops-gradients",
        thought=DROPS,
    )


def _same(got: Tensor, want: Tensor) -> bool:
    if tuple(got.shape) != tuple(want.shape):
        return False
    got, want = got.double(), want.double()
    return bool(((got - want).abs() <= CLOSE * want.abs().max()).all())
