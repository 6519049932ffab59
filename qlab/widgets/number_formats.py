"""Explorers of number formats: the bits of one code, and how a few bits are split."""

import math
from collections.abc import Callable
from typing import Any

import ipywidgets
import torch

from qlab import formats
from qlab.checks.expect import as_number
from qlab.checks.learner import Crashed, LearnerFunction, NotAnswered
from qlab.checks.report import Refused
from qlab.formats import FloatFormat, Specials
from qlab.plots import bits_svg, octaves_svg
from qlab.widgets.layout import WIDE


class BitExplorer(ipywidgets.VBox):
    """Set the bits of a code, its number, or a value, and see what the format makes of it.

    `decode(code, exponent_bits, mantissa_bits)`, if given, is the learner's own: its answer stands under the drawing.
    """

    def __init__(self, decode: Callable[..., Any] | None = None, *, fmt: FloatFormat = formats.FP16) -> None:
        self._decode = LearnerFunction(decode) if decode else None
        known = [f for f in formats.FORMATS.values() if decode is None or f.specials is Specials.IEEE]
        choice = [(f.name, f) for f in known]
        self.format = ipywidgets.Dropdown(options=choice, value=fmt, description="format")
        self.value = ipywidgets.FloatText(value=1.0, description="value", continuous_update=False)
        self.code = ipywidgets.IntSlider(min=0, max=2**fmt.bits - 1, description="code", layout=WIDE)
        self.bits = ipywidgets.HBox(layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.drawing = ipywidgets.HTML(layout=WIDE)
        self._moving = False
        self._new_format(fmt)
        self.format.observe(lambda change: self._new_format(change.new), "value")
        self.code.observe(lambda change: self._show(change.new), "value")
        self.value.observe(lambda change: self._encode(change.new), "value")
        super().__init__([ipywidgets.HBox([self.format, self.value]), self.code, self.bits, self.drawing])

    def _new_format(self, fmt: FloatFormat) -> None:
        self._toggles = [
            ipywidgets.ToggleButton(description="0", layout=ipywidgets.Layout(width="22px", padding="0", margin="1px"))
            for _ in range(fmt.bits)
        ]
        for toggle in self._toggles:
            toggle.observe(lambda _: self._join_bits(), "value")
        self.bits.children = self._toggles
        self._moving = True
        self.code.max = 2**fmt.bits - 1
        self._moving = False
        self._encode(self.value.value)
        self._show(self.code.value)

    def _encode(self, value: float) -> None:
        """Move to the code of the number nearest to a typed value; a format without NaN ignores one."""
        fmt = self.format.value
        if self._moving or (math.isnan(value) and not fmt.has_nan):
            return
        self.code.value = int(formats.encode(torch.tensor([value]), fmt, saturate=not fmt.has_infinity))

    def _join_bits(self) -> None:
        if not self._moving:
            self.code.value = int("".join(str(int(toggle.value)) for toggle in self._toggles), 2)

    def _show(self, code: int) -> None:
        if self._moving:
            return
        fmt = self.format.value
        value = formats.decode(torch.tensor([code]), fmt).item()
        self.drawing.value = bits_svg(code, fmt, note=self._own_answer(code, value))
        self._moving = True  # what follows mirrors the code and must not set it again
        for toggle, bit in zip(self._toggles, format(code, f"0{fmt.bits}b"), strict=True):
            with toggle.hold_sync():  # one message for both, and none for a bit that stays
                toggle.value, toggle.description = bit == "1", bit
        if math.isfinite(value):
            self.value.value = value
        self._moving = False

    def _own_answer(self, code: int, value: float) -> str:
        if self._decode is None:
            return ""
        fmt = self.format.value
        try:
            returned = self._decode(code, fmt.exponent_bits, fmt.mantissa_bits)
            answer = as_number(returned, call="decode")
        except NotAnswered:
            return "your decode: not answered yet"
        except (Crashed, Refused) as failure:
            return f"your decode: {failure}"
        same = answer == value or (math.isnan(answer) and math.isnan(value))
        return f"your decode: {answer:g}  {'✓ as it should be' if same else f'✗ expected {value:g}'}"


class FormatDesigner(ipywidgets.VBox):
    """Split a few bits between exponent and mantissa and see, on one scale for all splits, every number it gives."""

    def __init__(self, *, bits: int = 8) -> None:
        self._bits = bits
        widest = FloatFormat("widest", bits - 2, 1)
        self._octaves = (math.log2(widest.min_subnormal), math.log2(widest.max))
        self.exponent_bits = ipywidgets.IntSlider(4, min=2, max=bits - 2, description="exponent", layout=WIDE)
        self.drawing = ipywidgets.HTML(layout=WIDE)
        self.exponent_bits.observe(lambda change: self._show(change.new), "value")
        self._show(self.exponent_bits.value)
        super().__init__([self.exponent_bits, self.drawing])

    def _show(self, exponent_bits: int) -> None:
        fmt = FloatFormat(
            f"E{exponent_bits}M{self._bits - 1 - exponent_bits}", exponent_bits, self._bits - 1 - exponent_bits
        )
        self.drawing.value = octaves_svg(fmt, octaves=self._octaves)
