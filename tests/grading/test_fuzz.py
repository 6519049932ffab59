"""The fuzzer, briefly: some hundred changed submissions, none of which may earn more than its code is worth."""

import random

import pytest

from tests.grading import fuzz
from tests.grading.hostile import labs, mutations, running

pytestmark = pytest.mark.grading
CASES = 300
SEED = 20_261_123


@pytest.mark.skipif(running.skipped(), reason=running.why_not_isolated() or "isolated")
def test_no_changed_submission_earns_more_than_it_is_worth():
    findings, counts = fuzz.in_processes(CASES, seed=SEED, workers=2)
    assert not findings, findings
    graded = {kind: counts[f"{kind}: graded"] for kind in mutations.KINDS}
    assert all(graded.values()), f"nothing of some kind was graded: {graded}"
    assert counts["compared"] >= CASES / 4


@pytest.mark.parametrize("kind", sorted(set(mutations.KINDS)))
def test_a_case_is_the_same_each_time_and_differs_from_the_honest_one(kind: str):
    honest = labs.submission("types", answers={})
    made = [mutations.mutant(kind, honest, random.Random(f"{number}")) for number in (*range(20), *range(20))]
    assert made[:20] == made[20:]
    assert len({m.content for m in made}) > 10
