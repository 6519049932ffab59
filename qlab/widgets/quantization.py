"""Explorers of quantization: the grid of codes over a histogram, and where to cut the tail."""

import math
from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets
from jaxtyping import Float
from torch import Tensor

from qlab.checks.expect import as_number, as_tensor
from qlab.checks.learner import Crashed, LearnerFunction, NotAnswered
from qlab.checks.report import Refused
from qlab.plots import ClipCurves, GridChoice, GridView, TileCodes, clip_curves, clip_svg, grid_svg
from qlab.plots.grid_views import as_matrix
from qlab.plots.numbers import percent, short, short_db
from qlab.quantize import TILES, sqnr_db
from qlab.widgets.layout import WIDE

WRAPPED = ipywidgets.Layout(flex_flow="row wrap")
SLIDER = ipywidgets.Layout(width="370px")
KINDS = {"symmetric": False, "affine": True}
SAME_SCALE = 1e-5  # a scale computed in another order, or in FP64, is nearer than this
HALF_A_STEP = 0.5 + 1e-3  # FP32 division moves a value by 255 steps · 2⁻²³: of a tie, either neighbor may be taken
LARGEST_CODE = 1000  # a wrong quantizer's wild codes are told, not drawn
AS_GOOD = 1.01  # the minimum is flat: a clip that costs 1 % more than the best is found by any fair search


class GridExplorer(ipywidgets.VBox):
    """Lay a grid of codes over the histogram of a matrix, and see what bits, granularity and clip do to its error.

    `quantizer(x, bits)`, if given, is the learner's own `quantize_symmetric` or `quantize_affine`: its codes are drawn,
    and a line under the drawing says whether they are as they should be.
    """

    def __init__(self, x: Float[Tensor, "*rows columns"], quantizer: Callable[..., Any] | None = None) -> None:
        self._x = as_matrix(x)
        self._own = LearnerFunction(quantizer) if quantizer else None
        self.bits = ipywidgets.IntSlider(4, min=2, max=8, description="bits", layout=SLIDER)
        self.kind = ipywidgets.ToggleButtons(options=list(KINDS), style={"button_width": "100px"})
        self.granularity = ipywidgets.Dropdown(options=list(TILES), description="granularity")
        self.clip = ipywidgets.IntSlider(100, min=5, max=100, description="clip %", layout=SLIDER)
        self.rank = ipywidgets.IntSlider(50, min=0, max=100, description="which tile %", layout=SLIDER)
        self.drawing = ipywidgets.HTML(layout=WIDE)
        if self._own and len(_tuple_of(self._own, self._x[:1], self.bits.value)) == 3:
            self.kind.value = "affine"
        for control in (self.bits, self.kind, self.granularity, self.clip, self.rank):
            control.observe(lambda _: self._show(), "value")
        self._show()
        rows = [[self.bits, self.kind], [self.clip, self.granularity], [self.rank]]
        super().__init__([*(ipywidgets.HBox(row, layout=WRAPPED) for row in rows), self.drawing])

    def _choice(self) -> GridChoice:
        kept, rank = self.clip.value / 100, self.rank.value / 100
        return GridChoice(self.bits.value, KINDS[self.kind.value], self.granularity.value, kept, rank)

    def _show(self) -> None:
        self.rank.disabled = self.granularity.value == "per tensor"
        choice = self._choice()
        try:
            own, note = self._own_answer(choice)
            self.drawing.value = grid_svg(self._x, choice, own=own, note=note)
        except ValueError as refusal:
            self.drawing.value = f'<p role="alert">No such grid: {escape(str(refusal))}.</p>'

    def _own_answer(self, choice: GridChoice) -> tuple[TileCodes | None, str]:
        """Return the codes of the learner's function on the tile that is drawn, and what there is to say of them."""
        if self._own is None:
            return None, ""
        view, call = GridView(self._x, choice), f"quantize_{self.kind.value}"
        try:
            own = _codes_of(self._own(view.given, choice.bits), view, call=call)
        except NotAnswered:
            return None, f"your {call}: not answered yet"
        except (Crashed, Refused) as failure:
            return None, f"your {call}: {failure}"
        fault = _fault(own, view)
        said = f"✗ {fault}" if fault else "✓ as it should be"
        return own, f"your {call}: step {short(own.scale)}{_quality(own, view)}  {said}"


class ClipExplorer(ipywidgets.VBox):
    """Move the clip of a tensor's values, and see clipping error grow as rounding error shrinks.

    `clip_finder(x, bits)`, if given, is the learner's own `mse_clip`: its clip is marked, and its error compared.
    """

    def __init__(self, x: Float[Tensor, "*shape"], clip_finder: Callable[..., Any] | None = None) -> None:
        self._x = x.detach().cpu().float()
        self._own = LearnerFunction(clip_finder) if clip_finder else None
        self._measured: dict[int, tuple[ClipCurves, float | None, str]] = {}
        self.bits = ipywidgets.IntSlider(4, min=2, max=8, description="bits", layout=SLIDER)
        self.clip = ipywidgets.IntSlider(100, min=1, max=100, description="clip %", layout=SLIDER)
        self.drawing = ipywidgets.HTML(layout=WIDE)
        for control in (self.bits, self.clip):
            control.observe(lambda _: self._show(), "value")
        self._show()
        super().__init__([ipywidgets.HBox([self.bits, self.clip], layout=WRAPPED), self.drawing])

    def _show(self) -> None:
        bits = self.bits.value
        try:
            if bits not in self._measured:
                known = next(iter(self._measured.values()), None)
                curves = known[0].with_bits(bits) if known else clip_curves(self._x, bits=bits)
                self._measured[bits] = curves, *self._own_answer(curves)
            curves, found, note = self._measured[bits]
            clip = curves.largest * self.clip.value / 100
            self.drawing.value = clip_svg(curves, clip=clip, found=found, note=note)
        except ValueError as refusal:
            self.drawing.value = f'<p role="alert">No such clip: {escape(str(refusal))}.</p>'

    def _own_answer(self, curves: ClipCurves) -> tuple[float | None, str]:
        """Return the learner's clip, and how its error compares with the least."""
        if self._own is None:
            return None, ""
        try:
            found = as_number(self._own(self._x, curves.bits), call="mse_clip")
        except NotAnswered:
            return None, "your mse_clip: not answered yet"
        except (Crashed, Refused) as failure:
            return None, f"your mse_clip: {failure}"
        if not 0 < found < math.inf:
            return None, f"your mse_clip: {short(found)}  ✗ expected a number above 0, near {short(curves.best)}"
        ratio = curves.at(found).total.item() / curves.least
        good = ratio <= AS_GOOD
        said = "✓ as it should be" if good else f"✗ {short(ratio)} times the least error: expected {short(curves.best)}"
        return found, f"your mse_clip: {short(found)}  {said}"


def _tuple_of(function: LearnerFunction, x: Tensor, bits: int) -> tuple[Any, ...]:
    """Return what the function returns as a tuple, and an empty one where it returns none."""
    try:
        returned = function(x, bits)
    except (Crashed, NotAnswered):
        return ()
    return tuple(returned) if isinstance(returned, tuple | list) else ()


def _codes_of(returned: Any, view: GridView, *, call: str) -> TileCodes:
    """Read codes, scale and, of an affine grid, zero point.

    Errors:  Refused if there are more or fewer of them, or one cannot be drawn.
    """
    names = ("codes", "scale", "zero_point") if view.choice.affine else ("codes", "scale")
    wanted = f"expected ({', '.join(names)})"
    if not isinstance(returned, tuple | list) or len(returned) != len(names):
        many = f"{len(returned)} things" if isinstance(returned, tuple | list) else type(returned).__name__
        raise Refused(f"✗ returned {many}, {wanted}", misconception="returns-wrong-type", thought="")
    codes = as_tensor(returned[0], tuple(view.given.shape), call=call)
    scale, *rest = (as_number(number, call=call) for number in returned[1:])
    own = TileCodes(codes, scale, *rest)
    _refuse_what_cannot_be_drawn(own, view)
    return own


def _refuse_what_cannot_be_drawn(own: TileCodes, view: GridView) -> None:
    """Refuse a scale that is none, codes that are not whole, and wild ones."""
    codes, (first, last) = own.codes.double(), view.quantized.grid.codes
    whole, told = (codes == codes.round()) & codes.isfinite(), ""
    if not (0 < own.scale < math.inf and math.isfinite(own.zero_point)):
        told = f"expected a scale above 0 and a finite zero_point, got {short(own.scale)} and {short(own.zero_point)}"
    elif not whole.all():
        told = f"expected whole numbers as codes, got {short(codes[~whole][0].item())}"
    elif codes.abs().max() > LARGEST_CODE:
        told = f"expected codes from {short(first)} to {short(last)}, got {codes.min():,.0f} to {codes.max():,.0f}"
    if told:
        raise Refused(f"✗ {told}", misconception="wrong-value", thought="")


def _fault(own: TileCodes, view: GridView) -> str:
    """Tell the first thing that is wrong: the scale, the zero point, or codes that are not the nearest on that grid."""
    expected, (first, last) = view.expected, view.quantized.grid.codes
    if not view.given.any():
        return "expected codes that stand for 0" if own.values.any() else ""
    if abs(own.scale - expected.scale) > SAME_SCALE * expected.scale:
        return f"expected step {short(expected.scale)}"
    where = -view.kept[0] / own.scale if view.choice.affine else 0.0
    if abs(own.zero_point - where) > HALF_A_STEP or own.zero_point % 1:
        return f"expected zero_point {short(expected.zero_point)}, got {short(own.zero_point)}"
    steps = (view.given.double() / own.scale + own.zero_point).clamp(first, last)
    wrong = (own.codes.double() - steps).abs() > HALF_A_STEP
    if not wrong.any():
        return ""
    value, got, right = (one[wrong][0].item() for one in (view.given, own.codes, steps.round()))
    share = percent(wrong.float().mean().item())
    return f"{share} of the codes differ: {short(value)} got {short(got)}, expected {short(right)}"


def _quality(own: TileCodes, view: GridView) -> str:
    return f", SQNR {short_db(sqnr_db(view.tile, own.values))} dB" if view.tile.any() else ""
