"""How a verdict looks: plain HTML that reads in light and dark themes and never speaks by color alone."""

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlab.checks.report import PartResult, Verdict

MARKS = {"right": "✓", "wrong": "✗", "crashed": "!", "empty": "·"}
COLORS = {"right": "#2e8540", "wrong": "#c9510c", "crashed": "#b3261e", "empty": "#7a7a7a"}
MEND_FIRST = "This may be the same mistake: mend what is named above, then run the check again."
HEADLINES = {
    "right": "every point won",
    "wrong": "not yet",
    "crashed": "your code stopped with an error",
    "empty": "not answered yet",
}
STRESSED = re.compile(r"(?<![\w*)])\*([A-Za-z][A-Za-z ]*[A-Za-z])\*(?![\w*(])")  # words, never a product


@dataclass(frozen=True)
class Html:
    """A piece of HTML that a notebook shows."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def card(verdict: "Verdict") -> str:
    """Return the card a learner sees under a check."""
    head = (
        f"<strong>{escape(verdict.exercise)}: {verdict.points} of {verdict.max_points} "
        f"point{'s' * (verdict.max_points != 1)}</strong> — {HEADLINES[verdict.outcome]}"
    )
    told = set[str]()
    rows = "".join(_part_row(part, told) for part in verdict.told_parts)
    return (
        f'<div class="qlab-verdict" data-outcome="{verdict.outcome}" '
        f'style="border-left:4px solid {COLORS[verdict.outcome]};padding:4px 12px;margin:4px 0">'
        f'<div>{head}</div><ul style="list-style:none;padding-left:4px;margin:4px 0">{rows}</ul>'
        f"{_foot(verdict)}</div>"
    )


def side_by_side(learners: str, reference: str) -> str:
    """Return two sources next to each other."""
    frame = "white-space:pre;overflow-x:auto;padding:8px;border:1px solid #7a7a7a"
    columns = "".join(
        f'<div style="flex:1 1 320px;min-width:0"><strong>{title}</strong>'
        f'<pre style="{frame}">{escape(source) or "(no source kept)"}</pre></div>'
        for title, source in (("Yours", learners), ("qlab's", reference))
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{columns}</div>'


def _part_row(part: "PartResult", told: set[str]) -> str:
    """Return one line; a thought that an earlier part already told is not told again."""
    detail = ""
    if part.message:
        detail += f'<div style="margin-left:1.4em;overflow-wrap:anywhere">{_code(part.message)}</div>'
    if part.misconception and part.misconception not in told:
        thought = MEND_FIRST if part.misconception == "wrong-value" and told else part.thought
        told.add(part.misconception)
        detail += (
            f'<div style="margin-left:1.4em">→ {_code(thought)} '
            f'<code class="qlab-misconception">{escape(part.misconception)}</code></div>'
        )
    elif part.outcome == "crashed" and part.thought and part.thought not in told:
        told.add(part.thought)
        detail += f'<div style="margin-left:1.4em">→ {_code(part.thought)}</div>'
    mark = f'<span style="color:{COLORS[part.outcome]};display:inline-block;width:1.2em">{MARKS[part.outcome]}</span>'
    return f"<li>{mark}{escape(part.name)} <small>({part.outcome})</small>{detail}</li>"


def _foot(verdict: "Verdict") -> str:
    foot = ""
    if verdict.said:
        foot += _folded("what your code warned of (costs no point)", f"<pre>{escape(verdict.said)}</pre>")
    if verdict.outcome == "right" and not verdict.graded:
        foot += _folded("compare with qlab's own", side_by_side(*verdict.sources))
    elif verdict.outcome in ("wrong", "crashed") and not verdict.graded:
        foot += (
            "<small>The inputs are drawn anew at every run; to repeat these, call the check in a cell of your own with "
            f"<code>seed={verdict.seed}</code>.</small>"
        )
    return foot


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>"


def _code(text: str) -> str:
    """Escape a text, set what stands between backticks as code, and words between asterisks as stressed."""
    pieces = escape(text).split("`")
    return "".join(
        f"<code>{p}</code>" if i % 2 and i < len(pieces) - 1 else STRESSED.sub(r"<em>\1</em>", p)
        for i, p in enumerate(pieces)
    )
