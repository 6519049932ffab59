"""Say what this machine has and what of the course runs on it: a preflight that never fails and never guesses."""

import html
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from qlab.doctor import gpu, host, libraries
from qlab.doctor.machine import THIS_MACHINE, Finding, Machine, first_line

PROBES = (
    ("Python", host.python),
    ("PyTorch", libraries.pytorch),
    ("Jupyter", libraries.jupyter),
    ("CPU", host.cpu),
    ("CPU low precision", host.low_precision),
    ("Memory", host.memory),
    ("Disk", host.disk),
    ("GPU", gpu.gpu),
    ("NVIDIA driver", gpu.driver),
    *gpu.DATA_TYPES,
    ("Other accelerators", gpu.other_accelerators),
    ("bitsandbytes", libraries.bitsandbytes),
    ("Triton", libraries.triton),
    ("Other runtimes", libraries.other_runtimes),
)
MARKS = {"ok": "✓", "missing": "–", "unknown": "?"}  # beside the word, so that no color has to be seen
COLORS = {"ok": "--jp-success-color1", "missing": "--jp-warn-color1", "unknown": "--jp-info-color1"}
TEXT_WIDTH = 110


def findings(machine: Machine = THIS_MACHINE) -> tuple[Finding, ...]:
    """Run every probe; one that fails becomes an `unknown` with the reason."""
    found = []
    for topic, probe in PROBES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(probe(machine))
        except Exception as error:  # whatever a broken driver or build raises, the other probes go on
            found.append(Finding(topic, "unknown", f"could not be found out ({first_line(error)})"))
    return tuple(found)


def as_text(found: Sequence[Finding]) -> str:
    """Write the findings as lines of a terminal: mark, status, topic, sentence."""
    topic_width = max((len(finding.topic) for finding in found), default=0)
    lines = []
    for finding in found:
        head = f"{MARKS[finding.status]} {finding.status:<8} {finding.topic:<{topic_width}}  "
        filled = textwrap.wrap(head + finding.sentence, TEXT_WIDTH, subsequent_indent=" " * len(head))
        lines.extend(filled)
    return "\n".join(lines)


def as_html(found: Sequence[Finding]) -> str:
    """Write the findings as a table that is readable in JupyterLab's light and dark themes."""
    cell = "padding: 2px 12px 2px 0; text-align: left; vertical-align: top"
    text = "color: var(--jp-ui-font-color1, currentColor)"
    head = "".join(f'<th scope="col" style="{cell}">{name}</th>' for name in ("Status", "What", "Here"))
    rows = []
    for finding in found:
        mark = f'<span style="color: var({COLORS[finding.status]}, currentColor)">{MARKS[finding.status]}</span>'
        rows.append(
            f'<tr><td style="{cell}; white-space: nowrap">{mark} {finding.status}</td>'
            f'<th scope="row" style="{cell}; white-space: nowrap">{html.escape(finding.topic)}</th>'
            f'<td style="{cell}">{html.escape(finding.sentence)}</td></tr>'
        )
    caption = '<caption style="text-align: left">What this machine runs of the course</caption>'
    return f'<table style="{text}">{caption}<thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


@dataclass(frozen=True, repr=False)
class Report:
    """The findings, shown as a table in a notebook and as lines elsewhere."""

    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        return as_text(self.findings)

    def _repr_html_(self) -> str:
        return as_html(self.findings)


def report(machine: Machine = THIS_MACHINE) -> Report:
    """Examine the machine, for the last line of a notebook cell."""
    return Report(findings(machine))
