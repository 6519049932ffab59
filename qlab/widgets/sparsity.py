"""The explorer of pruning: a pattern and a sparsity on real weights, what is gone, and what is left to store."""

from collections.abc import Mapping
from html import escape

import ipywidgets
from jaxtyping import Float
from torch import Tensor

from qlab.plots import PrunableLayers, sparsity_svg
from qlab.plots.sparsity import GLOBAL, PATTERNS, TWO_FOUR
from qlab.widgets.layout import WIDE

WRAPPED = ipywidgets.Layout(flex_flow="row wrap")
SLIDER = ipywidgets.Layout(width="370px")


class SparsityExplorer(ipywidgets.VBox):
    """Choose a layer, a pattern and a sparsity; see which weights go, what each layer keeps, and the bytes.

    Errors:  ValueError if there is no weight, one is no matrix, or its width is no multiple of 4.
    """

    def __init__(self, weights: Mapping[str, Float[Tensor, "..."]], *, sparsity: float = 0.5) -> None:
        self._layers = PrunableLayers(weights)
        self.pattern = ipywidgets.ToggleButtons(options=PATTERNS, value=GLOBAL, description="pattern")
        self.pattern.style.button_width = "110px"
        self.sparsity = ipywidgets.FloatSlider(
            value=sparsity, min=0, max=1, step=0.01, description="sparsity", readout_format=".0%", layout=SLIDER
        )
        self.layer = ipywidgets.Dropdown(options=tuple(weights), description="layer", layout=SLIDER)
        self.drawing = ipywidgets.HTML(layout=WIDE)
        for control in (self.pattern, self.sparsity, self.layer):
            control.observe(lambda _: self._show(), "value")
        self._show()
        chosen = ipywidgets.HBox([self.sparsity, self.layer], layout=WRAPPED)
        super().__init__([self.pattern, chosen, self.drawing])

    def _show(self) -> None:
        self.sparsity.disabled = self.pattern.value == TWO_FOUR
        try:
            self.drawing.value = sparsity_svg(
                self._layers, shown=self.layer.value, pattern=self.pattern.value, sparsity=self.sparsity.value
            )
        except ValueError as refusal:
            self.drawing.value = f'<p role="alert">Nothing to draw: {escape(str(refusal))}.</p>'
