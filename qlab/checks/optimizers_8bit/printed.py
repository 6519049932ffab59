"""Check of `mended_adam`: the loop as it is often printed, with both of its slips found and mended."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlab import optimizers
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.handed import handed
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.optimizers_8bit.rules import RIGHT, Moments, Rule, Settings, explains, slips
from qlab.checks.optimizers_8bit.topic import TOPIC
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import check, part

NO_EPS = 1e-15
# of lr, for each step taken: what FP32 loses of a step is 1e-4 at the most; the slips change a hundredth of it
ROUNDING = 1e-4


@dataclass(frozen=True)
class Walk:
    """One call: steps down a bowl, a·(x − center)²/2, from a place on its side."""

    start: Tensor
    slope: Tensor
    center: Tensor
    steps: int
    settings: Settings

    @property
    def call(self) -> str:
        return f"mended_adam(gradient_of, x, {self.steps}, {self.settings.told})"

    def gradient_of(self, x: Tensor) -> Tensor:
        shape = tuple(self.start.shape)
        one_row = getattr(x, "ndim", 1) == 2
        return self.slope * (handed(x, (1, *shape) if one_row else shape, what="x") - self.center)

    def by(self, rule: Rule, *, fixed: bool = False) -> Tensor:
        """Return the path by a rule, the place after each step, a row each; `fixed`: with the start's gradient."""
        state, path = Moments(self.start, torch.zeros_like(self.start), torch.zeros_like(self.start)), []
        for step in range(1, self.steps + 1):
            state = rule(state, self.gradient_of(self.start if fixed else state.parameter), step, self.settings)
            path.append(state.parameter)
        return torch.stack(path)


@check(
    TOPIC,
    "adam-as-printed",
    optimizers.adam_update,
    points=3,
    forbids=(
        "torch.optim",
        "torch._fused_adam_",
        "qlab.optimizers.Adam8bit",
        "qlab.optimizers.AdamW8bit",
        "qlab.optimizers.MappedAdam",
    ),
)
def check_mended_adam(mended_adam: LearnerFunction, draw: torch.Generator) -> None:
    """Check `mended_adam(gradient_of, x, steps, lr, betas, eps)`, which returns the place after each step."""
    with part("the first step is lr long, however large the gradient"):
        _compare(mended_adam, [_walk(draw, 1) for _ in range(3)])
    with part("later steps, each with the gradient of its own place"):
        _compare(mended_adam, [_walk(draw, drawn(20, 40, draw)) for _ in range(2)])
    with part("gradients as small as ε"):
        _compare(mended_adam, [_walk(draw, drawn(6, 20, draw), tiny=True) for _ in range(2)])


def _walk(draw: torch.Generator, steps: int, *, tiny: bool = False) -> Walk:
    size = drawn(4, 7, draw)
    betas = (uniform(0.8, 0.89, (), draw).item(), uniform(0.99, 0.998, (), draw).item())
    eps = uniform(1e-4, 1e-3, (), draw).item() if tiny else NO_EPS
    settings = Settings(uniform(0.02, 0.1, (), draw).item(), betas, eps)
    slope = uniform(0.3, 3, (size,), draw).double()
    if tiny:
        slope = eps * torch.cat([slope[:1] * 0 + 0.15, slope[1:] / 3])  # the first gradient is surely below ε
    start, side = torch.randn(size, generator=draw).double(), torch.randint(0, 2, (size,), generator=draw) * 2 - 1
    return Walk(start, slope, start + side * uniform(1, 5, (size,), draw), steps, settings)


def _compare(mended_adam: LearnerFunction, walks: list[Walk]) -> None:
    got = torch.cat([_path(mended_adam, walk).flatten() for walk in walks])
    room = torch.cat([_room(walk).flatten() for walk in walks])

    def snapped(values: Tensor) -> Tensor:
        return torch.where((got - values).abs() <= room, got, values)

    def by(rule: Rule) -> Tensor:
        return torch.cat([walk.by(rule).flatten() for walk in walks])

    def suspects() -> Iterable[Suspect]:
        one = "`append` keeps the tensor, not a copy: what is then changed in place changes in every row."
        short = replace(walks[0], steps=min(3, walks[0].steps))
        few = short.steps * len(short.start)
        last = torch.cat([walk.by(RIGHT)[-1].expand(walk.steps, -1).flatten() for walk in walks])
        yield Suspect("appends-one-tensor", one, snapped(last))
        still = torch.cat([walk.by(RIGHT, fixed=True).flatten() for walk in walks])
        yield Suspect(
            "one-gradient-for-all", "Ask for the gradient at each new place, inside the loop.", snapped(still)
        )
        for misconception, thought, rule in slips():
            if explains(short.by(rule).flatten(), got[:few], room[:few]):  # most are dismissed by the first steps
                yield Suspect(misconception, thought, snapped(by(rule)))

    places = [(walk, i) for walk in walks for i in range(walk.steps * len(walk.start))]
    require_values(got, snapped(by(RIGHT)), given=lambda i: _told(*places[i]), suspects=suspects)


def _room(walk: Walk) -> Tensor:
    taken = torch.arange(1, walk.steps + 1, dtype=torch.float64)[:, None]
    return ROUNDING * walk.settings.lr * taken.expand(-1, len(walk.start))


def _told(walk: Walk, i: int) -> str:
    step, place = divmod(i, len(walk.start))
    return (
        f"x[{place}] = {walk.start[place]:.6g} with gradient {walk.gradient_of(walk.start)[place]:.4g} in"
        f" `{walk.call}`, the place after step {step + 1}"
    )


def _path(mended_adam: LearnerFunction, walk: Walk) -> Tensor:
    s = walk.settings
    path = mended_adam(walk.gradient_of, walk.start, walk.steps, s.lr, s.betas, s.eps)
    return as_tensor(path, (walk.steps, len(walk.start)), call=walk.call).double()
