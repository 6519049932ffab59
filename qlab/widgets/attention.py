"""The explorer of tiled attention: choose a chip and a length, and let the tiles walk."""

from collections.abc import Callable
from functools import lru_cache
from html import escape
from threading import RLock

import ipywidgets
import torch

from qlab.attention import Trace, blocks_for_sram, trace_row
from qlab.plots import tiles_svg
from qlab.widgets.layout import WIDE

HEAD_WIDTH = 32
LENGTHS = (32, 64, 128, 256, 512)
SRAM_KIB = (10, 20, 40, 80, 160)
WRAPPED = ipywidgets.Layout(flex_flow="row wrap")
SLIDER = ipywidgets.Layout(width="340px")
TICK_MS = 250


@lru_cache(maxsize=64)
def walk(*, length: int, sram_kib: int, is_causal: bool) -> Trace:
    """Walk over one head of drawn queries and keys, of a width of 32, and follow the row at three quarters."""
    g = torch.Generator().manual_seed(3)
    q, k = (torch.randn(length, HEAD_WIDTH, generator=g) for _ in range(2))
    blocks = blocks_for_sram(sram_kib * 1024, head_width=HEAD_WIDTH)
    return trace_row(q, k, row=length * 3 // 4, blocks=blocks, is_causal=is_causal)


class TileExplorer(ipywidgets.VBox):
    """Let tiles walk over the scores of one head; watch one row's maximum and sum, and the bytes that move."""

    def __init__(self, *, length: int = 128, sram_kib: int = 20, is_causal: bool = False) -> None:
        self._drawing_now = RLock()  # callbacks may come in several threads at once
        self.sram = ipywidgets.SelectionSlider(options=SRAM_KIB, value=sram_kib, description="SRAM, KiB", layout=SLIDER)
        self.length = ipywidgets.SelectionSlider(options=LENGTHS, value=length, description="N", layout=SLIDER)
        self.is_causal = ipywidgets.Checkbox(is_causal, description="causal", indent=False)
        self.step = ipywidgets.IntSlider(1, min=0, max=1, description="tile", layout=SLIDER)
        self.play = ipywidgets.Play(value=1, min=0, max=1, interval=TICK_MS, show_repeat=False)
        self._link = ipywidgets.jslink((self.play, "value"), (self.step, "value"))
        self.drawing = ipywidgets.HTML(layout=WIDE)
        for control in (self.sram, self.length, self.is_causal):
            control.observe(lambda _: self._alone(self._walk_anew), "value")
        self.step.observe(lambda _: self._alone(self._show), "value")
        self._walk_anew()
        trace = self._trace()
        self.step.value = 1 + next(i for i, tile in enumerate(trace.tiles, 1) if trace.row < tile.rows.stop)
        choices = ipywidgets.HBox([self.sram, self.length, self.is_causal], layout=WRAPPED)
        super().__init__([choices, ipywidgets.HBox([self.play, self.step], layout=WRAPPED), self.drawing])

    def _alone(self, draw: Callable[[], None]) -> None:
        with self._drawing_now:
            draw()

    def _walk_anew(self) -> None:
        tiles = len(self._trace().tiles)
        self.step.max = self.play.max = tiles
        self.step.value = min(self.step.value, tiles)
        self._show()

    def _trace(self) -> Trace:
        return walk(length=self.length.value, sram_kib=self.sram.value, is_causal=self.is_causal.value)

    def _show(self) -> None:
        trace = self._trace()
        rows, columns = trace.tiling.block_rows, trace.tiling.block_columns
        note = (
            f"{self.sram.value} KiB of SRAM hold five tiles: blocks of {rows} queries × {columns} keys, head width 32"
        )
        try:
            self.drawing.value = tiles_svg(trace, step=self.step.value, note=note)
        except ValueError as refusal:
            self.drawing.value = f'<p role="alert">No such tile: {escape(str(refusal))}.</p>'
