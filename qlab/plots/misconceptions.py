"""What a class got wrong: for each exercise, how many answers held which misconception."""

from collections.abc import Mapping

from matplotlib.axes import Axes

from qlab.plots.figures import INK, axes

RIGHT, WRONG, CRASHED, EMPTY = "#009e73", "#d55e00", "#cc79a7", "#7f7f7f"  # Okabe and Ito 2008, and a gray
STOPPED = ("stopped: out of time", "stopped: its process ended")
COLORS = {"right": RIGHT, "crashed": CRASHED, "not answered": EMPTY} | dict.fromkeys(STOPPED, CRASHED)
HATCHES = {"right": "", "crashed": "xx", "not answered": ".."} | dict(zip(STOPPED, ("--", "++"), strict=True))
BAR_HEIGHT = 0.26  # inches


def misconception_bars(counted: Mapping[str, Mapping[str, int]], *, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw a bar for each end that the answers to each exercise came to, the most frequent first.

    Units:   the bars count answers; an exercise's bars add up to all its answers.
    """
    rows = [(exercise, name, count) for exercise, counts in counted.items() for name, count in _by_count(counts)]
    height = max(3.4, 1.2 + BAR_HEIGHT * (len(rows) + len(counted)))
    ax = ax or axes(x="answers", y="exercise, and what its answers came to", width=9.0, height=height)
    places, labels, place = [], [], 0.0
    for index, (exercise, name, count) in enumerate(rows):
        first = index == 0 or rows[index - 1][0] != exercise
        place += 1.8 if first and index else 1.0
        color, hatch = COLORS.get(name, WRONG), HATCHES.get(name, "//")
        ax.barh(place, count, height=0.8, color=color, hatch=hatch, edgecolor=INK, linewidth=0.5)
        ax.annotate(f" {count}", (count, place), va="center", color=INK, fontsize=8)
        places.append(place)
        labels.append(f"{exercise.removeprefix('check-')}: {name}" if first else name)
    ax.set_yticks(places, labels, fontsize=8)
    ax.set_ylim(place + 0.8, 0.2)  # the first on top
    ax.set_title(title, color=INK)
    ax.grid(visible=False, axis="y")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlim(left=0, right=1.1 * max((count for *_, count in rows), default=1))
    return ax


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: -pair[1])
