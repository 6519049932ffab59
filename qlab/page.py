"""What a page is furnished with: predictions, shown sources, tables, try-outs, and recordings."""

import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import HTML, Markdown, display

from qlab import course
from qlab.checks import progress
from qlab.checks.learner import describe, is_stub


class Prediction:
    """A number the learner commits to before the page measures it; it survives a restart of the kernel."""

    def __init__(self, topic: str, name: str, question: str, *, unit: str = "") -> None:
        self._topic, self._name, self._unit = topic, name, unit
        self._question = question
        self._measured: float | None = None
        self._shown: Any = None
        self.value = progress.remembered_prediction(topic, name)
        self.field = ipywidgets.FloatText(value=self.value or 0.0, layout={"width": "140px"})
        self.button = ipywidgets.Button(description="I commit to this", layout={"width": "160px"})
        self.said = ipywidgets.HTML(self._state())
        self.button.on_click(lambda _: self.commit(self.field.value))

    def commit(self, value: float) -> None:
        """Keep the learner's number; the reconciliation already on the page follows."""
        self.value = value
        progress.remember_prediction(self._topic, self._name, value)
        self.said.value = self._state()
        if self._shown is not None:
            self._shown.update(HTML(self._reconciled()))

    def reconcile(self, measured: float) -> None:
        """Show what was measured beside what was predicted, and how far apart they are."""
        self._measured = measured
        self._shown = display(HTML(self._reconciled()), display_id=True)

    def _ipython_display_(self) -> None:
        display(
            ipywidgets.VBox(
                [
                    ipywidgets.HTML(f"<strong>Predict:</strong> {self._question}"),
                    ipywidgets.HBox([self.field, ipywidgets.Label(self._unit), self.button]),
                    self.said,
                ]
            )
        )

    def _state(self) -> str:
        return "" if self.value is None else f"You committed to {self.value:,.6g}{self._spaced_unit()}."

    def _spaced_unit(self) -> str:
        return f" {escape(self._unit)}" if self._unit else ""

    def _reconciled(self) -> str:
        measured = f"<strong>Measured: {self._measured:,.6g}{self._spaced_unit()}.</strong>"
        if self.value is None:
            return f"{measured} You made no prediction: commit to one above, and this line compares."
        guess, truth = self.value, self._measured
        if guess == truth:
            gap = "exactly as you said"
        elif guess * truth > 0:
            factor = max(guess / truth, truth / guess)
            gap = (
                f"you were off by a factor of {factor:.3g}"
                if factor >= 2
                else f"you were {abs(guess / truth - 1):.1%} off"
            )
        else:
            gap = f"you were off by {abs(guess - truth):,.6g}"
        return f"{measured} You predicted {guess:,.6g}: {gap}."


def show_source(*functions: Callable[..., Any]) -> None:
    """Show the source of qlab's own functions, with the file each one lives in."""
    for function in map(inspect.unwrap, functions):
        path = Path(inspect.getsourcefile(function)).relative_to(Path(__file__).parents[1])
        line = inspect.getsourcelines(function)[1]
        display(Markdown(f"`{path.as_posix()}`, line {line}\n```python\n{inspect.getsource(function)}```"))


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """Return a table; numbers are shown with at most four digits."""
    lines = ["| " + " | ".join(headers) + " |", "|" + " --- |" * len(headers)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return Markdown("\n".join(lines))


@contextmanager
def attempt() -> Iterator[None]:
    """Run a try-out of the learner's function: what it raises becomes one line, and Run All goes on."""
    figures = set(plt.get_fignums())
    try:
        yield
    except Exception as error:
        for half_drawn in set(plt.get_fignums()) - figures:
            plt.close(half_drawn)
        print(
            "Not answered yet: run this cell again when it is." if is_stub(error) else f"It stopped: {describe(error)}"
        )


def missing(*modules: str) -> list[str]:
    """Return which of `modules` are not installed; none of them is imported."""
    return [module for module in modules if importlib.util.find_spec(module) is None]


def how_to_get(extra: str, absent: Sequence[str]) -> Markdown:
    """Say which packages a cell needs and has not, and the command that brings them."""
    return Markdown(
        f"**Not run here**: {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed. "
        f'`pip install -c constraints.txt -e ".[{extra}]"` in the course\'s folder brings what this cell needs.'
    )


def recorded(stem: str, part: str = "gpu") -> dict[str, Any] | None:
    """Return one part of a topic's recorded runs, or None if it is not recorded yet."""
    path = course.root() / "lessons" / "recorded" / f"{stem}.json"
    return json.loads(path.read_text(encoding="utf-8")).get(part) if path.exists() else None


def provenance_line(recording: dict[str, Any] | None, *, command: str, needs: str = "a CUDA GPU") -> Markdown:
    """Say where a recorded figure comes from, or that there is none and which command makes one."""
    if recording is None:
        return Markdown(f"**Not recorded yet.** On a machine with {needs}, `{command}` runs this and keeps the result.")
    source = recording["provenance"]
    on_gpu = source["driver"] != "none"
    seed = "" if source["seed"] is None else f"seed {source['seed']}, "
    device = f"{source['device']}, driver {source['driver']}" if on_gpu else source["processor"]
    return Markdown(
        f"**Recorded, not measured here**: {device}, torch {source['torch']}, {seed}{source['date']}, by `{command}`."
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
