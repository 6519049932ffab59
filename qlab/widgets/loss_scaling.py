"""An explorer of loss scaling: slide the scale, and see which gradients a narrow format loses."""

from collections.abc import Mapping
from html import escape

import ipywidgets
from jaxtyping import Float
from torch import Tensor

from qlab.formats import BF16, E5M2, FP16
from qlab.plots import GradientOctaves, gradient_octaves, gradient_svg
from qlab.widgets.layout import WIDE

CHOICES = {fmt.name: fmt for fmt in (FP16, BF16, E5M2)}
LEAST, MOST = -16, 24
WRAPPED = ipywidgets.Layout(flex_flow="row wrap")
SLIDER = ipywidgets.Layout(width="370px")
NARROW = ipywidgets.Layout(width="190px")


class LossScaleExplorer(ipywidgets.VBox):
    """Slide the loss scale under the gradients of a model, and watch them cross the borders of a format.

    Errors:  ValueError if there is no tensor of gradients.
    """

    def __init__(self, gradients: Mapping[str, Float[Tensor, "..."]], *, log2_scale: int = 0) -> None:
        if not gradients:
            raise ValueError("there must be at least one tensor of gradients, got none")
        self._gradients = dict(gradients)
        self._counted: dict[str, GradientOctaves] = {}
        self.tensor = ipywidgets.Dropdown(options=list(self._gradients), description="gradients")
        self.log2_scale = ipywidgets.IntSlider(
            log2_scale, min=LEAST, max=MOST, description="loss scale 2^", style={"description_width": "auto"}
        )
        self.log2_scale.layout = SLIDER
        self.format = ipywidgets.Dropdown(options=list(CHOICES), description="format", layout=NARROW)
        self.drawing = ipywidgets.HTML(layout=WIDE)
        controls = (self.tensor, self.format, self.log2_scale)
        for control in controls:
            control.observe(lambda _: self._show(), "value")
        self._show()
        super().__init__([ipywidgets.HBox(controls, layout=WRAPPED), self.drawing])

    def _show(self) -> None:
        name, fmt = self.tensor.value, CHOICES[self.format.value]
        try:
            if name not in self._counted:
                self._counted[name] = gradient_octaves(self._gradients[name])
            self.drawing.value = gradient_svg(self._counted[name], log2_scale=self.log2_scale.value, fmt=fmt, name=name)
        except ValueError as refusal:
            self.drawing.value = f'<p role="alert">No gradients to draw: {escape(str(refusal))}.</p>'
