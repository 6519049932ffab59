"""Explorers of outliers: drag one value away from the others, and see what each remedy leaves of the damage."""

from collections.abc import Mapping
from html import escape

import ipywidgets
from jaxtyping import Float
from torch import Tensor

from qlab.plots import outlier_svg, remedies_svg
from qlab.widgets.layout import WIDE

WRAPPED = ipywidgets.Layout(flex_flow="row wrap")
SLIDER = ipywidgets.Layout(width="370px")


class OutlierExplorer(ipywidgets.VBox):
    """Make one of some ordinary values larger and larger, and watch what is left of the others."""

    def __init__(self, ordinary: Float[Tensor, " n"], *, bits: int = 8) -> None:
        self._ordinary = ordinary
        self.strength = ipywidgets.FloatLogSlider(
            value=1.0, base=2, min=0, max=8, step=0.25, description="outlier ×", readout_format=".3g", layout=SLIDER
        )
        self.bits = ipywidgets.IntSlider(bits, min=2, max=8, description="bits", layout=SLIDER)
        self.drawing = ipywidgets.HTML(layout=WIDE)
        for control in (self.strength, self.bits):
            control.observe(lambda _: self._show(), "value")
        self._show()
        super().__init__([ipywidgets.HBox([self.strength, self.bits], layout=WRAPPED), self.drawing])

    def _show(self) -> None:
        try:
            self.drawing.value = outlier_svg(self._ordinary, strength=self.strength.value, bits=self.bits.value)
        except ValueError as refusal:
            self.drawing.value = f'<p role="alert">No such outlier: {escape(str(refusal))}.</p>'


class RemedyExplorer(ipywidgets.VBox):
    """Slide the planted strength and see what is lost with each remedy; `lost[remedy][strength]` is in bits per byte.

    Errors:  ValueError if there is no remedy, or not every one has a loss at the same strengths.
    """

    def __init__(self, lost: Mapping[str, Mapping[int, float]]) -> None:
        if not lost or not all(lost.values()):
            raise ValueError("there must be at least one remedy with a loss at one strength, got none")
        self._lost = lost
        strengths = sorted(next(iter(lost.values())))
        for name, by_strength in lost.items():
            if sorted(by_strength) != strengths:
                raise ValueError(f"{name} must have a loss at the strengths {strengths}, got {sorted(by_strength)}")
        self.strength = ipywidgets.SelectionSlider(options=strengths, description="planted s", layout=SLIDER)
        self.drawing = ipywidgets.HTML(layout=WIDE)
        self.strength.observe(lambda _: self._show(), "value")
        self._show()
        super().__init__([self.strength, self.drawing])

    def _show(self) -> None:
        chosen = {name: by_strength[self.strength.value] for name, by_strength in self._lost.items()}
        self.drawing.value = remedies_svg(chosen, title=f"planted with s = {self.strength.value}")
