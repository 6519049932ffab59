"""Check of `fake_quantize`: values on the grid, and a gradient that passes straight through up to where it ends."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import calibrate
from qlab.checks.calibration.batches import TOPIC
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.probe import gradients
from qlab.checks.quantization.codes import HAIR, Rule, clamped, near, uniform
from qlab.checks.report import check, part

ROUNDING = 1e-6  # x / S · S and x + (q − x) round to 6e-8 two or three times, in units of the larger of x and q


@dataclass(frozen=True)
class Case:
    """One call, `fake_quantize(x, scale, bits)`, and the gradient that comes from above."""

    x: Tensor
    scale: Tensor
    bits: int
    upstream: Tensor

    @property
    def largest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    @property
    def step(self) -> Tensor:
        return self.scale.double().expand(self.x.shape)

    @property
    def steps(self) -> Tensor:
        return self.x.double() / self.step

    @property
    def call(self) -> str:
        shape = "()" if self.scale.ndim == 0 else tuple(self.scale.shape)
        return f"fake_quantize(x of shape {tuple(self.x.shape)}, scale of shape {shape}, {self.bits})"

    def told(self, i: int) -> str:
        """Describe one value, counted in the flat tensor."""
        x, step = self.x.flatten()[i].item(), self.step.flatten()[i].item()
        return f"x = {x:.6g} at scale {step:.6g}, {x / step:.4g} steps, bits={self.bits} (codes up to {self.largest})"


@check(
    TOPIC,
    "fake-quantize",
    calibrate.fake_quantize,
    points=4,
    forbids=(
        "qlab.calibrate.FakeQuantize",
        "qlab.calibrate.LearnedStep",
        "torch.fake_quantize_per_tensor_affine",
        "torch.fake_quantize_per_channel_affine",
        "torch.ao",
    ),
)
def check_fake_quantize(fake_quantize: LearnerFunction, draw: torch.Generator) -> None:
    """Check `fake_quantize(x, scale, bits)`, and the gradient that it lets through."""
    few = (2, 3, 5, 6)[drawn(0, 3, draw)]
    with part("one scale: each value on the nearest point of the grid, or on its last"):
        for bits in (3, 8, few):
            _values(fake_quantize, _case(draw, bits))
    with part("a scale for each row"):
        for bits in (4, few):
            _values(fake_quantize, _case(draw, bits, rows=True))
    with part("the gradient passes unchanged up to the last code"):
        for bits, rows in ((4, False), (few, True)):
            _gradient(fake_quantize, _case(draw, bits, rows=rows), clipped=False)
    with part("and is zero for what was clipped"):
        for bits, rows in ((3, False), (8, False), (few, True)):
            _gradient(fake_quantize, _case(draw, bits, rows=rows), clipped=True)


def _case(draw: torch.Generator, bits: int, *, rows: bool = False) -> Case:
    """Draw values up to twice the largest code; without rows, x is a transposed view.

    Some round to the last code, and some lie so far out that the codes of eight bits do not reach them.
    """
    largest, shape = 2 ** (bits - 1) - 1, (5, 40)
    # one scale stays below 1/4: limits of L instead of S · L are then too wide, and no other slip's
    sizes = 10.0 ** (uniform(-1.8, 0.5, (5, 1), draw) if rows else uniform(-1.8, -0.6, (), draw))
    steps = uniform(-2 * largest, 2 * largest, shape, draw)
    steps[:, :12] = uniform(-largest, largest, (5, 12), draw)
    steps[:, 12:18] = uniform(largest - 0.4, largest - 0.05, (5, 6), draw) * uniform(-1, 1, (5, 6), draw).sign()
    steps[:, 34:] = uniform(150, 900, (5, 6), draw) * uniform(-1, 1, (5, 6), draw).sign()
    x, upstream = steps * sizes, uniform(0.5, 2.0, shape, draw) * uniform(-1, 1, shape, draw).sign()
    return Case(x, sizes, bits, upstream) if rows else Case(x.T, sizes, bits, upstream.T)


def _values(fake_quantize: LearnerFunction, case: Case) -> None:
    got = as_tensor(fake_quantize(case.x, case.scale, case.bits), tuple(case.x.shape), call=case.call).double()
    room = ROUNDING * torch.maximum(case.x.double().abs(), case.largest * case.step)

    def snapped(values: Tensor) -> Tensor:
        return torch.where((got - values).abs() <= room, got, values).flatten()

    def on_grid(rule: Rule) -> Tensor:
        return snapped(near(rule, case.steps, (got / case.step).round()) * case.step)

    require_values(
        got.flatten(),
        on_grid(clamped(-case.largest, case.largest)),
        given=case.told,
        suspects=lambda: _wrong_values(case, on_grid, snapped),
    )


def _wrong_values(case: Case, on_grid: Callable[[Rule], Tensor], snapped: Callable[[Tensor], Tensor]) -> Iterator:
    largest = case.largest
    cut = "A cast to an integer cuts the fraction off: round to the nearest."
    yield Suspect("truncates", cut, on_grid(clamped(-largest, largest, torch.trunc)))
    yield Suspect("truncates", cut, on_grid(clamped(-largest, largest, torch.floor)))
    past = f"What lies beyond the grid takes its last point: clamp the codes to ±{largest}."
    yield Suspect("no-clamp", past, on_grid(torch.round))
    yield Suspect("no-clamp", past, on_grid(lambda steps: torch.round(steps).clamp(max=largest)))
    yield Suspect("no-clamp", past, on_grid(lambda steps: (torch.round(steps) + 128) % 256 - 128))
    unused = f"The grid is symmetric: its last codes are −{largest} and {largest}."
    yield Suspect("uses-the-lowest-code", unused, on_grid(clamped(-largest - 1, largest)))
    levels = f"Codes of {case.bits} bits, symmetric around zero, end at 2^(bits−1) − 1 = {largest}."
    for other in (127, 7, 3, largest + 1, 2**case.bits - 1):
        yield Suspect("wrong-number-of-codes", levels, on_grid(clamped(-other, other)))
    codes = "These are codes: fake quantization goes back to real numbers, S · code."
    yield Suspect("returns-codes", codes, snapped(torch.round(case.steps).clamp(-largest, largest)))
    nothing = "Nothing was rounded: forward, the value is S · code, also where the gradient pretends otherwise."
    yield Suspect("not-rounded", nothing, snapped(case.x.double()))
    clipped = case.steps.clamp(-largest, largest) * case.step
    yield Suspect("not-rounded", nothing, snapped(clipped))
    units = "The ends of the grid lie at ±S · L, in the units of x: clamp codes, or clamp x to ±S · L."
    yield Suspect("mask-in-the-wrong-units", units, on_grid(lambda s: _clamped_early(s, case)))
    given = "The scale is given: use it as it is, one for each row where it has rows."
    rows = case.x.double().abs().amax(-1, keepdim=True)
    for scale in (rows.max() / largest, rows / largest, case.step.max(), case.step.min(), case.step[0, 0]):
        codes = torch.round(case.x.double() / scale)
        yield Suspect("ignores-the-scale", given, snapped(codes.clamp(-largest, largest) * scale))


def _clamped_early(steps: Tensor, case: Case) -> Tensor:
    return torch.round((steps * case.step).clamp(-case.largest, case.largest) / case.step)


def _gradient(fake_quantize: LearnerFunction, case: Case, *, clipped: bool) -> None:
    """Require the gradient inside the grid, and, if `clipped`, zero outside; between the last code and half a step
    further, where a value still rounds to that code, anything from zero to all of it is right.
    """
    got = _gradient_of(fake_quantize, case)
    above = case.upstream.double()
    outside = case.steps.abs() > case.largest + 0.5 + HAIR
    border = (case.steps.abs() > case.largest - HAIR) & ~outside
    between = (got * above >= 0) & (got.abs() <= above.abs() * (1 + ROUNDING))

    def snapped(values: Tensor) -> Tensor:
        values = torch.where((got - values).abs() <= ROUNDING * values.abs().maximum(above.abs()), got, values)
        return torch.where(border & between, got, values).flatten()

    wanted = torch.where(outside, 0.0 if clipped else got, above)
    require_values(
        got.flatten(),
        snapped(wanted),
        given=lambda i: f"{case.told(i)}, and a gradient of {above.flatten()[i]:.4g} from above (the gradient to x)",
        suspects=lambda: _wrong_gradients(case, got, snapped),
    )


def _gradient_of(fake_quantize: LearnerFunction, case: Case) -> Tensor:
    """Return the gradient to x; where there is none it is zero."""
    result = fake_quantize(case.x, case.scale, case.bits)
    as_tensor(result, tuple(case.x.shape), call=case.call)
    found = gradients(fake_quantize, case.x, case.scale, case.bits, upstream=case.upstream, to=[0])[0]
    return torch.zeros(case.x.shape, dtype=torch.float64) if found is None else found.double()


def _wrong_gradients(case: Case, got: Tensor, snapped: Callable[[Tensor], Tensor]) -> Iterable[Suspect]:
    above, size, last = case.upstream.double(), case.steps.abs(), case.largest
    everywhere = torch.full_like(size, torch.inf)
    for misconception, thought, reach in (
        ("no-straight-through", FLAT, -1.0 + 0 * size),
        ("passes-gradient-where-clipped", CLIPPED, everywhere),
        ("blocks-the-end-codes", ENDS, last - 0.5 + 0 * size),
        ("blocks-the-end-codes", ENDS, last - 1.0 + 0 * size),
        ("blocks-the-end-codes", ENDS, last - 1.5 + 0 * size),
        ("mask-in-the-wrong-units", UNITS, last / case.step),
        ("mask-in-the-wrong-units", UNITS, 1.0 + 0 * size),
    ):
        yield Suspect(misconception, thought, snapped(torch.where(size <= reach, above, 0.0)))
    for low, high in ((torch.inf, last + 0.25), (last + 0.25, torch.inf)):
        one_end = (case.steps >= -low) & (case.steps <= high)
        yield Suspect("clipped-at-one-end-only", TWO_ENDS, snapped(torch.where(one_end, above, 0.0)))
    for inside in (size <= last + 0.25, size <= torch.inf):
        for factor in (case.step, 1 / case.step):
            yield Suspect("gradient-scaled", SCALED, _nearest(torch.where(inside, above * factor, 0.0), got, case))
        yield Suspect("ignores-what-comes-from-above", CHAIN, _nearest(inside.double(), got, case))
    yield Suspect("gradient-only-where-clipped", TURNED, snapped(torch.where(size > last + 0.25, above, 0.0)))


def _nearest(values: Tensor, got: Tensor, case: Case) -> Tensor:
    """Return `values`, but what was got where that is as good as equal, and at the border of clipping."""
    border = (case.steps.abs() > case.largest - HAIR) & (case.steps.abs() < case.largest + 0.5 + HAIR)
    close = (got - values).abs() <= ROUNDING * values.abs()
    return torch.where(close | border, got, values).flatten()


FLAT = (
    "Rounding is flat, so its own gradient is zero, and what is detached or cast has none: backward, let the gradient"
    " through as if nothing had been rounded."
)
CLIPPED = (
    "Moving a value that was clipped changes nothing: its gradient is zero. Straight through is for rounding only."
)
ENDS = "A value that rounds to the last code is not clipped: only what lies beyond is."
UNITS = "Compare like with like: x / S with the last code L, or x with S · L."
TWO_ENDS = "There are two ends: values below the grid are clipped, too."
SCALED = "Forward divides by S and multiplies by it again: what passes is the gradient itself, without an S."
CHAIN = "Backward gets the gradient from above and hands it on: multiply it by 1 or 0, do not replace it."
TURNED = "The wrong way round: the gradient passes inside the grid and stops where values were clipped."
