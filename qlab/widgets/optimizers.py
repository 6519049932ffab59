"""An explorer of 8-bit moments: choose a map and a block size, and see what a second moment loses."""

from collections.abc import Mapping
from html import escape

import ipywidgets
from jaxtyping import Float
from torch import Tensor

from qlab.plots import moment_svg
from qlab.plots.moments import MOMENT_MAPS
from qlab.widgets.layout import WIDE

WHOLE = 0  # a selection of None is none
BLOCK_SIZES = {"64": 64, "256": 256, "2,048": 2048, "the whole tensor": WHOLE}
WRAPPED = ipywidgets.Layout(flex_flow="row wrap")
SLIDER = ipywidgets.Layout(width="420px")
WORDS = {"description_width": "auto"}


class MomentExplorer(ipywidgets.VBox):
    """Lay the levels of a map under a real second moment, and watch what becomes zero.

    Errors:  ValueError if there is no moment.
    """

    def __init__(self, moments: Mapping[str, Float[Tensor, "..."]], *, map_name: str = "linear, unsigned") -> None:
        if not moments:
            raise ValueError("there must be at least one second moment, got none")
        self._moments = dict(moments)
        self.tensor = ipywidgets.Dropdown(options=list(self._moments), description="moment", style=WORDS)
        self.map = ipywidgets.Dropdown(options=list(MOMENT_MAPS), value=map_name, description="map", style=WORDS)
        self.block_size = ipywidgets.SelectionSlider(
            options=list(BLOCK_SIZES.items()), value=256, description="block size", style=WORDS, layout=SLIDER
        )
        self.drawing = ipywidgets.HTML(layout=WIDE)
        controls = (self.tensor, self.map, self.block_size)
        for control in controls:
            control.observe(lambda _: self._show(), "value")
        self._show()
        super().__init__([ipywidgets.HBox(controls, layout=WRAPPED), self.drawing])

    def _show(self) -> None:
        name, block_size = self.tensor.value, self.block_size.value or None
        try:
            drawn = moment_svg(self._moments[name], map_name=self.map.value, block_size=block_size, name=name)
        except ValueError as refusal:
            drawn = f'<p role="alert">No moment to draw: {escape(str(refusal))}.</p>'
        self.drawing.value = drawn
