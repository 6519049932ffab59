"""Explorers of adapters: rank and targets against bytes and quality, and four-bit levels over a real weight."""

import ipywidgets
from jaxtyping import Float
from torch import Tensor

from qlab.config import COURSE_MODEL, NAMED_CONFIGS, ModelConfig
from qlab.plots import adapter_svg, levels_svg
from qlab.plots.adapters import BASES, TARGETS, AdapterChoice, Quality
from qlab.plots.levels import CODEBOOKS, LevelsChoice, WeightLevels
from qlab.widgets.layout import WIDE

WRAPPED = ipywidgets.Layout(flex_flow="row wrap")
SLIDER = ipywidgets.Layout(width="370px")
RANKS = tuple(2**k for k in range(11))
BLOCK_SIZES = tuple(2**k for k in range(4, 13))


class RankExplorer(ipywidgets.VBox):
    """Choose a model, a rank, the adapted matrices and the base, and see what trains, what it costs and is worth.

    `quality[targets, rank]`, and `full` with all weights trained, are recorded bits per byte of the course model; for
    another model, or where nothing is recorded, the drawing says so.
    """

    def __init__(
        self, quality: Quality | None = None, *, full: float | None = None, config: ModelConfig = COURSE_MODEL
    ) -> None:
        self._quality, self._full = dict(quality or {}), full
        self._models = NAMED_CONFIGS | {config.name: config}
        self.model = ipywidgets.Dropdown(options=list(self._models), value=config.name, description="model")
        self.base = ipywidgets.Dropdown(options=list(BASES), value=list(BASES)[-1], description="base")
        self.rank = ipywidgets.SelectionSlider(options=RANKS, value=16, description="rank", layout=SLIDER)
        self.targets = ipywidgets.Dropdown(options=TARGETS, value=TARGETS[-1], description="adapted")
        self.drawing = ipywidgets.HTML(layout=WIDE)
        for control in (self.model, self.base, self.rank, self.targets):
            control.observe(lambda _: self._show(), "value")
        self._show()
        rows = [[self.model, self.base], [self.rank, self.targets]]
        super().__init__([*(ipywidgets.HBox(row, layout=WRAPPED) for row in rows), self.drawing])

    def _show(self) -> None:
        config = self._models[self.model.value]
        choice = AdapterChoice(config, self.rank.value, self.targets.value, self.base.value)
        quality = self._quality if config == COURSE_MODEL else {}
        self.drawing.value = adapter_svg(choice, quality=quality, full=self._full)


class LevelsExplorer(ipywidgets.VBox):
    """Lay the levels of a four-bit codebook over a weight, choose the block, and quantize the constants or not.

    Errors:  ValueError if the weight is empty or holds NaN or infinity.
    """

    def __init__(self, weight: Float[Tensor, "*shape"], *, block_size: int = 64) -> None:
        self._levels = WeightLevels(weight)
        self.codebook = ipywidgets.Dropdown(options=list(CODEBOOKS), description="levels")
        self.block_size = ipywidgets.SelectionSlider(
            options=sorted({*BLOCK_SIZES, block_size}), value=block_size, description="block", layout=SLIDER
        )
        self.double = ipywidgets.Checkbox(description="double quantization", indent=False)
        self.drawing = ipywidgets.HTML(layout=WIDE)
        for size in self.block_size.options:  # a tenth of a second now, so that no event has to wait for it
            self._levels.prepare(size)
        for control in (self.codebook, self.block_size, self.double):
            control.observe(lambda _: self._show(), "value")
        self._show()
        rows = [[self.codebook, self.double], [self.block_size]]
        super().__init__([*(ipywidgets.HBox(row, layout=WRAPPED) for row in rows), self.drawing])

    def _show(self) -> None:
        choice = LevelsChoice(self.codebook.value, self.block_size.value, self.double.value)
        self.drawing.value = levels_svg(self._levels, choice)
