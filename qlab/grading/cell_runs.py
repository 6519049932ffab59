"""What a cell gave, as the judge keeps it: rebuilt from what the sandbox sent, which may be anything."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

SHOWN = ("text/plain", "image/png", "image/jpeg")  # markup would run its scripts where formgrader sets grades
MOST_OUTPUTS = 2_000
EACH_OUTPUT, EACH_LINE = 1_000, 24  # bytes that one takes in a notebook besides its text
STATUSES = ("ok", "error", "timeout")


@dataclass(frozen=True)
class CellRun:
    """The outputs of one cell, and how it ended: `ok`, `error`, `timeout` or `died`.

    Units:   `seconds` of wall-clock time, as the judge measured it.
    """

    outputs: list[dict[str, Any]]
    status: str
    seconds: float = 0.0


def read(sent: Any, *, count: int, seconds: float, most_bytes: int) -> CellRun:
    """Rebuild the outputs of cell number `count` from what the sandbox sent, at most so many bytes of them."""
    sent = sent if type(sent) is dict else {}
    outputs, left = list[dict[str, Any]](), most_bytes
    entries = sent.get("outputs")
    for entry in entries[:MOST_OUTPUTS] if type(entries) is list else []:
        output = _output(entry, count) if type(entry) is dict else None
        if output is None:
            continue
        left -= _size(output)
        if left < 0:
            outputs.append(_said("[the rest is too large to be kept]\n"))
            break
        outputs.append(output)
    status = sent.get("status")
    return CellRun(outputs, status if type(status) is str and status in STATUSES else "error", seconds)


def kept(run: CellRun, most_bytes: int) -> tuple[CellRun, int]:
    """Leave out what a notebook has no room for; return the rest and the bytes that it takes, once written."""
    left, outputs = most_bytes, list[dict[str, Any]]()
    for output in run.outputs:
        size = _written_bytes(output)
        if size > left:
            outputs.append(_said("[not kept: what this notebook puts out is too large]\n"))
            break
        outputs.append(output)
        left -= size
    return replace(run, outputs=outputs), most_bytes - left


def failed(name: str, sentence: str, status: str, *, seconds: float = 0.0) -> CellRun:
    """Return the run of a cell that gave nothing but a sentence of ours."""
    error = {"output_type": "error", "ename": name, "evalue": sentence, "traceback": [f"{name}: {sentence}"]}
    return CellRun([error], status, seconds)


def error_of(run: CellRun) -> str:
    """Name the error that a cell ended with."""
    errors = [output for output in run.outputs if output["output_type"] == "error"]
    return str(errors[-1]["evalue"] if run.status == "timeout" else errors[-1]["ename"])[:200] if errors else run.status


def _output(sent: Mapping[str, Any], count: int) -> dict[str, Any] | None:
    kind = _text(sent.get("output_type"))
    if kind == "stream":
        name = "stderr" if _text(sent.get("name")) == "stderr" else "stdout"
        return {"output_type": "stream", "name": name, "text": _text(sent.get("text"))}
    if kind == "error":
        lines = sent.get("traceback")
        lines = [_text(line) for line in lines[:MOST_OUTPUTS]] if type(lines) is list else []
        name, value = _text(sent.get("ename")), _text(sent.get("evalue"))
        lines = lines if any(line.strip() for line in lines) else [f"{name}: {value}"]  # all that a page shows of it
        return {"output_type": "error", "ename": name, "evalue": value, "traceback": lines}
    data = sent.get("data")
    if kind not in ("display_data", "execute_result") or type(data) is not dict:
        return None
    shown = {mime: _text(data[mime]) for mime in SHOWN if type(data.get(mime)) is str}
    numbered = {"execution_count": count} if kind == "execute_result" else {}
    return {"output_type": kind, "data": shown, "metadata": {}, **numbered}


def _texts(output: Mapping[str, Any]) -> list[str]:
    said = [output.get(name, "") for name in ("text", "ename", "evalue")]
    return [*output.get("data", {}).values(), *output.get("traceback", []), *said]


def _size(output: Mapping[str, Any]) -> int:
    return sum(map(len, _texts(output)))


def _written_bytes(output: Mapping[str, Any]) -> int:
    """Return how much room an output takes in a notebook, where each line stands alone and letters are escaped."""
    texts = _texts(output)
    lines = sum(max(1, len(text.splitlines())) for text in texts)
    return EACH_OUTPUT + EACH_LINE * lines + sum(len(json.dumps(text)) for text in texts)


def _said(sentence: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stderr", "text": sentence}


def _text(value: Any) -> str:
    return value.encode("utf-8", "replace").decode("utf-8") if type(value) is str else ""
