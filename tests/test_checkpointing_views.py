"""The timeline of a schedule as a drawing, as a figure, and in the hand."""

import re
import xml.etree.ElementTree as ET

import pytest

from qlab.checkpointing import binomial, in_segments, keep_all, keep_none, simulate
from qlab.plots import timeline_figure, timeline_svg
from qlab.plots.drawings import EXPONENT, MANTISSA
from qlab.plots.timelines import lifetimes
from qlab.widgets import TimelineExplorer
from qlab.widgets.checkpointing import POLICIES

SCHEDULES = {
    "all": keep_all(9),
    "segments": in_segments(9, 3),
    "last": in_segments(9, 3, keep_last=True),
    "binomial": binomial(9, 3),
    "none": keep_none(9),
    "one": keep_all(1),
}


def told(svg: str) -> str:
    return ET.fromstring(svg).get("aria-label")


@pytest.mark.parametrize("name", SCHEDULES)
def test_lifetimes_are_what_lives_at_each_step(name):
    timeline = simulate(SCHEDULES[name])
    for kind in ("boundaries", "insides"):
        spans = list(lifetimes(timeline.live, kind))
        for step, moment in enumerate(timeline.live):
            alive = {layer for layer, first, after in spans if first <= step < after}
            assert alive == getattr(moment, kind)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_can_be_drawn(name):
    timeline = simulate(SCHEDULES[name])
    for step in range(len(timeline.schedule)):
        svg = timeline_svg(timeline, step=step, title="<this> & that")
        assert f"step {step + 1} of {len(timeline.schedule)}" in told(svg)
        assert f"peak {timeline.peak_units} units, {timeline.forwards} forward runs" in told(svg)
        assert f"saved now {timeline.units[step]} of at most" in told(svg)


def test_what_was_is_drawn_strongly_and_what_will_be_faintly():
    timeline = simulate(in_segments(9, 3))
    last = len(timeline.schedule) - 1

    def bars(step: int, color: str) -> list[ET.Element]:
        drawn = ET.fromstring(timeline_svg(timeline, step=step)).iter()
        return [e for e in drawn if e.tag.endswith("rect") and e.get("fill") == color and e.get("opacity")]

    for color, kind in ((MANTISSA, "boundaries"), (EXPONENT, "insides")):
        spans = list(lifetimes(timeline.live, kind))
        assert {bar.get("opacity") for bar in bars(last, color)} == {"0.85"}
        assert len(bars(last, color)) == len(spans)
        begun = sum(first == 0 for _, first, _ in spans)
        assert sum(bar.get("opacity") == "0.85" for bar in bars(0, color)) == begun


@pytest.mark.parametrize("step", [-1, 18])
def test_a_step_that_is_none_is_refused(step):
    with pytest.raises(ValueError, match=f"step must be 0 to 17, got {step}"):
        timeline_svg(simulate(keep_all(9)), step=step)


def test_the_figure_shows_every_policy_with_its_bill():
    panels = timeline_figure({name: simulate(schedule) for name, schedule in SCHEDULES.items()})
    assert [ax.get_title().split("\n")[0] for ax in panels] == list(SCHEDULES)
    assert "18 units, 9 runs" in panels[0].get_title()
    assert panels[0].get_ylabel() == "layer" and all(ax.get_xlabel() == "step" for ax in panels)
    picture = panels[0].images[0].get_array()
    colored = picture[..., 3] > 0
    assert colored.sum() == sum(simulate(keep_all(9)).units)


def test_the_explorer_follows_policy_depth_and_setting():
    explorer = TimelineExplorer(depth=16, measured={("segments", 16, 4): 11, ("keep all", 16, 1): 32})
    assert "peak 11 units, 32 forward runs" in told(explorer.drawing.value)
    assert "measured peak 11 units" in explorer.said.value
    explorer.setting.value = 2
    assert "peak 17 units" in told(explorer.drawing.value) and "measured" not in explorer.said.value
    explorer.policy.value = "keep all"
    assert explorer.setting.disabled and "peak 32 units, 16 forward runs" in told(explorer.drawing.value)
    assert "measured peak 32 units" in explorer.said.value
    explorer.policy.value = "binomial"
    assert not explorer.setting.disabled and explorer.setting.description == "slots"
    assert "binomial, 2 slots" in told(explorer.drawing.value)
    explorer.depth.value = 1
    assert explorer.setting.max == 1 and "1 forward runs of 1 layers" in told(explorer.drawing.value)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_choice_can_be_drawn_and_played(policy):
    explorer = TimelineExplorer()
    explorer.policy.value = policy
    for depth in (1, 5, 64):
        explorer.depth.value = depth
        for setting in {1, depth}:
            explorer.setting.value = setting
            for step in {0, explorer.step.max // 2, explorer.step.max}:
                explorer.step.value = step
                assert re.search(rf"step {step + 1} of {explorer.step.max + 1}:", told(explorer.drawing.value))
            assert explorer.play.max == explorer.step.max
