"""The time of every check, on one core, over the right answers of its bank; the peer is the target of 200 ms."""

import importlib
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from _peer import arguments

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.answers.bank import HERE, answers_of

SLOWEST_MS, MEDIAN_MS = 200, 30

options = arguments(__doc__)
for topic in sorted(path.name for path in HERE.iterdir() if path.name[:2].isdigit()):
    module = importlib.import_module(f"qlab.checks.{topic[3:]}")
    checks = {getattr(module, name).exercise: getattr(module, name) for name in module.__all__}
    times = defaultdict(list)
    for answer in answers_of(topic):
        if answer.outcome != "right" or answer.slow:
            continue
        for repeat in range(2 if options.tiny else 6):
            start = time.perf_counter()
            checks[answer.exercise](*answer.functions)
            if repeat:
                times[answer.exercise].append(1e3 * (time.perf_counter() - start))
    medians = {exercise: statistics.median(ms) for exercise, ms in times.items()}
    for exercise, ms in medians.items():
        print(f"{topic} {exercise}: {ms:.1f} ms, {SLOWEST_MS / ms:.0f} times within the target of {SLOWEST_MS} ms")
    middle = statistics.median(medians.values())
    print(
        f"{topic}: median {middle:.1f} ms (target {MEDIAN_MS}), slowest {max(medians.values()):.1f} ms ({SLOWEST_MS})"
    )
