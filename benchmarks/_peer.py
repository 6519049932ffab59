"""What every benchmark shares: its arguments, medians side by side, and one line that names the peer."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qlab.measure import provenance

RECORDINGS = Path(__file__).parents[1] / "lessons" / "recorded"


def arguments(description: str, *, record: bool = False) -> argparse.Namespace:
    """Read `--tiny`, which only shows that the benchmark runs, and `--record` where it writes a recording."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: proves that it runs, measures nothing")
    if record:
        parser.add_argument("--record", action="store_true", help="keep the result in lessons/recorded/")
    torch.set_num_threads(1)
    return parser.parse_args()


def medians_ms(
    *functions: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Time the functions in turn, so that whatever else the machine does falls on all of them alike.

    With `time.process_time` as the clock, what it does meanwhile is not counted at all, but for the caches they share.
    """
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):  # the first round warms up
        for function, kept in zip(functions, times, strict=True):
            start = clock()
            function()
            if repeat:
                kept.append(1e3 * (clock() - start))
    return [statistics.median(kept) for kept in times]


def report(what: str, *, ours: float, peer: float, peer_name: str, target: str) -> None:
    """Print one ratio: above 1 means faster than the peer."""
    print(f"{what}: {ours:.4g} ms, {peer_name} {peer:.4g} ms: {peer / ours:.2f} times as fast (target: {target})")


def keep_recording(stem: str, part: str, results: Sequence[Any], *, command: str, **told: Any) -> None:
    """Write the records `results` as one part of a topic's recorded runs, with where and how they were made."""
    path = RECORDINGS / f"{stem}.json"
    parts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    source = asdict(provenance(seed=told.pop("seed", None), device=told.pop("device", None)))
    parts[part] = {"provenance": source, "command": command, **told, "results": [asdict(r) for r in results]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(parts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"recorded in {path}")
