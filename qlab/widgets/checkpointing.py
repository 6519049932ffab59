"""The explorer of schedules: a chain of layers in time, what is saved at each step, and the bill of each policy."""

from collections.abc import Mapping
from html import escape

import ipywidgets

from qlab.checkpointing import Schedule, binomial, in_segments, keep_all, keep_none, simulate
from qlab.plots import timeline_svg
from qlab.widgets.layout import WIDE

KEEP_ALL, SEGMENTS, LAST_KEPT, BINOMIAL, KEEP_NONE = (
    "keep all",
    "segments",
    "segments, last one kept",
    "binomial",
    "keep none",
)
POLICIES = (KEEP_ALL, SEGMENTS, LAST_KEPT, BINOMIAL, KEEP_NONE)
WRAPPED = ipywidgets.Layout(flex_flow="row wrap")
SLIDER = ipywidgets.Layout(width="370px")
DEEPEST = 64


class TimelineExplorer(ipywidgets.VBox):
    """Choose a policy and a depth, play the schedule, and read its peak and its forward runs.

    `measured[policy, depth, setting]` are peaks in units that were really measured; the setting of "keep all" and of
    "keep none" is 1. Where the chosen one is there, it is shown beside the simulated peak.
    """

    def __init__(self, *, depth: int = 16, measured: Mapping[tuple[str, int, int], int | float] | None = None) -> None:
        self._measured = measured or {}
        self.policy = ipywidgets.Dropdown(options=POLICIES, value=SEGMENTS, description="policy", layout=SLIDER)
        self.depth = ipywidgets.IntSlider(depth, min=1, max=DEEPEST, description="layers", layout=SLIDER)
        self.setting = ipywidgets.IntSlider(4, min=1, max=depth, description="segments", layout=SLIDER)
        self.step = ipywidgets.IntSlider(0, min=0, max=1, description="step", layout=SLIDER)
        self.play = ipywidgets.Play(min=0, max=1, interval=120, description="play")
        ipywidgets.jslink((self.play, "value"), (self.step, "value"))
        self.drawing, self.said = ipywidgets.HTML(layout=WIDE), ipywidgets.HTML(layout=WIDE)
        for control in (self.policy, self.depth, self.setting):
            control.observe(lambda _: self._choose(), "value")
        self.step.observe(lambda _: self._show(), "value")
        self._choose()
        choices = ipywidgets.HBox([self.policy, self.depth, self.setting], layout=WRAPPED)
        time = ipywidgets.HBox([self.step, self.play], layout=WRAPPED)
        super().__init__([choices, time, self.drawing, self.said])

    def _choose(self) -> None:
        self.setting.max = self.depth.value  # clamps the value, which then comes back here
        self.setting.disabled = self.policy.value in (KEEP_ALL, KEEP_NONE)
        self.setting.description = "slots" if self.policy.value == BINOMIAL else "segments"
        self._timeline = simulate(self._schedule())
        last = len(self._timeline.schedule) - 1
        self.step.max = self.play.max = last
        self.play.interval = max(20, 6000 // (last + 1))  # the whole schedule in about six seconds
        peak = self._timeline.units.index(self._timeline.peak_units)
        self.step.value = min(peak, last)
        self._show()

    def _schedule(self) -> Schedule:
        n, setting = self.depth.value, self.setting.value
        return {
            KEEP_ALL: lambda: keep_all(n),
            SEGMENTS: lambda: in_segments(n, setting),
            LAST_KEPT: lambda: in_segments(n, setting, keep_last=True),
            BINOMIAL: lambda: binomial(n, setting),
            KEEP_NONE: lambda: keep_none(n),
        }[self.policy.value]()

    def _show(self) -> None:
        policy, n = self.policy.value, self.depth.value
        setting = 1 if self.setting.disabled else self.setting.value
        named = policy if self.setting.disabled else f"{policy}, {setting} {self.setting.description}"
        step = min(self.step.value, len(self._timeline.schedule) - 1)
        self.drawing.value = timeline_svg(self._timeline, step=step, title=named)
        told = f"simulated peak {self._timeline.peak_units} units, {self._timeline.forwards} forward runs"
        if (policy, n, setting) in self._measured:
            told += f"; <strong>measured peak {self._measured[policy, n, setting]:.4g} units</strong>"
        self.said.value = f"<p>{escape(policy)}, {n} layers: {told}.</p>"
