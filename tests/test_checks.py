"""The contract of a check: four outcomes, parts worth a point, black-box calls, and what grader and learner read."""

import asyncio
import logging
import os
import sys
import warnings

import numpy as np
import pytest
import torch

from qlab.checks import verdict_html
from qlab.checks.expect import Suspect, as_number, as_tensor, require_values
from qlab.checks.learner import STUB_MESSAGE, LearnerFunction, describe
from qlab.checks.report import VERDICT_MIME, Outcome, Refused, check, part, require


def reference(x):
    return x + 1


@check("99_nothing", "add-one", reference, points=2)
def check_add_one(add_one, draw):
    """Check `add_one(x)`."""
    x = torch.randn(8, generator=draw)
    with part("tensors"):
        require_values(as_tensor(add_one(x), (8,), call="add_one(x)"), x + 1, given=lambda i: f"x={x[i]}")
    with part("numbers"):
        got = as_number(add_one(2), call="add_one(2)")
        require(got == 3, f"given 2, got {got}", misconception="off", thought="Add `1`, <exactly>.")


def test_right_wrong_empty_and_crashed():
    def stub(x):
        raise NotImplementedError(STUB_MESSAGE)

    def half(x):
        return x + 1 if isinstance(x, torch.Tensor) else x

    outcomes = {f: check_add_one(f) for f in (reference, half, stub, lambda x: x / 0 if x == 2 else x["a"])}
    assert [v.outcome for v in outcomes.values()] == ["right", "wrong", "empty", "crashed"]
    assert [v.points for v in outcomes.values()] == [2, 1, 0, 0]
    assert outcomes[half].misconception == "off"


def test_a_failed_part_does_not_stop_the_next():
    verdict = check_add_one(lambda x: 3)
    assert [p.outcome for p in verdict.parts] == [Outcome.WRONG, Outcome.RIGHT]
    assert verdict.parts[0].misconception == "wrong-shape"


def test_what_nbgrader_the_learner_and_qlab_check_read():
    bundle = check_add_one(reference, seed=5)._repr_mimebundle_()
    assert bundle["text/plain"] == "2"
    assert bundle[VERDICT_MIME]["points"] == 2 and bundle[VERDICT_MIME]["seed"] == 5
    assert "2 of 2 points" in bundle["text/html"] and "return x + 1" in bundle["text/html"]


def test_the_same_seed_draws_the_same_inputs_and_no_seed_draws_new_ones():
    seen = []

    def spy(x):
        seen.append(x)
        return x + 1

    for seed in (1, 1, None, None):
        check_add_one(spy, seed=seed)
    tensors = [x for x in seen if isinstance(x, torch.Tensor)]
    assert torch.equal(tensors[0], tensors[1])
    assert not torch.equal(tensors[2], tensors[3])


def test_a_graded_run_hides_the_inputs_and_shows_the_thought(monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    verdict = check_add_one(lambda x: x)
    html = verdict_html.card(verdict)
    assert "given" not in html and "given" not in str(verdict.as_json())
    assert "seed" not in html and verdict.as_json()["seed"] is None
    assert "exactly" in html and "off" in html


def test_a_graded_run_names_an_error_of_pythons_own_and_nothing_that_the_learner_wrote(monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")

    def fails(x):
        raise ValueError(f"seen {x}")

    def fails_by_a_name(x):
        raise type(f"Seen{x}", (Exception,), {})

    told = [check_add_one(answer) for answer in (fails, fails_by_a_name)]
    shown = [verdict_html.card(verdict) + str(verdict.as_json()) for verdict in told]
    assert "It stopped with a <code>ValueError</code>." in shown[0]
    assert not any("een" in text for text in shown)


def test_text_from_an_answer_cannot_break_out_of_the_card():
    html = verdict_html.card(check_add_one(lambda x: "<script>alert(1)</script>"))
    assert "<script>" not in html and "&lt;script&gt;" in html
    thought = verdict_html.card(check_add_one(lambda x: x))
    assert "Add <code>1</code>, &lt;exactly&gt;." in thought


def test_work_in_place_does_not_change_what_is_expected():
    assert check_add_one(lambda x: x.add_(1) if isinstance(x, torch.Tensor) else x + 1).outcome == "right"


def test_warnings_and_stderr_cost_nothing_and_are_shown(capsys):
    handler = logging.StreamHandler(sys.stderr)  # made before the check: it holds the stream of the cell
    logger = logging.getLogger("noisy")
    logger.addHandler(handler)

    def noisy(x):
        warnings.warn("this is slow", stacklevel=1)
        print("to stderr", file=sys.stderr)
        logger.warning("logged")
        return x + 1

    verdict = check_add_one(noisy)
    logger.removeHandler(handler)
    assert verdict.outcome == "right"
    assert capsys.readouterr().err == ""
    assert "this is slow" in verdict.said and "to stderr" in verdict.said
    assert "costs no point" in verdict_html.card(verdict)


@pytest.mark.parametrize("thing", [None, 3, "text", [], object()])
def test_what_is_not_a_function_is_one_sentence(thing):
    verdict = check_add_one(thing)
    assert verdict.outcome == "crashed" and "is not a function" in verdict.parts[0].message


def test_a_crash_names_the_learners_line_and_nothing_of_ours():
    def divides(x):
        return 1 / (x - x)

    try:
        divides(2)
    except ZeroDivisionError as error:
        told = describe(error)
    assert told.startswith("ZeroDivisionError: division by zero in `divides`, line ")
    assert "`return 1 / (x - x)`" in told


def test_an_object_that_misbehaves_when_looked_at_does_not_end_the_check():
    class Awkward:
        def __repr__(self):
            raise RuntimeError("no")

        def __eq__(self, other):
            raise RuntimeError("no")

        __hash__ = None

    verdict = check_add_one(lambda x: Awkward())
    assert verdict.outcome == "wrong" and verdict.points == 0


def test_torchs_own_not_implemented_is_a_crash_and_not_an_empty_answer():
    def runs_into_torch(x):
        raise NotImplementedError("'add' not implemented for 'Float4'")

    assert check_add_one(runs_into_torch).outcome == "crashed"


def test_the_reference_is_shown_after_a_pass_only():
    assert "Win every point first" in check_add_one(lambda x: x).show_reference().html
    assert "return x + 1" in check_add_one(reference).show_reference().html


def test_a_suspect_is_named_only_if_it_explains_every_value():
    got, expected = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 2.0, 3.0])
    partial = Suspect("partial", "no", torch.tensor([9.0, 2.0, 0.0]))
    whole = Suspect("whole", "yes", torch.tensor([1.0, 2.0, 0.0]))
    with pytest.raises(Refused) as refusal:
        require_values(got, expected, given=str, suspects=lambda: [partial, whole])
    assert refusal.value.misconception == "whole"
    assert "given 2, got 0, expected 3 (wrong on 1 of 3 inputs)" in str(refusal.value)


@pytest.mark.parametrize(
    "value",
    [
        2,
        2.0,
        torch.tensor(2),
        torch.tensor([2.0], requires_grad=True),
        [2],
        (2.0,),
        torch.tensor(2.0).numpy(),
        True + 1,
    ],
)
def test_numbers_are_read_from_whatever_holds_one(value):
    assert as_number(value, call="f()") == 2


@pytest.mark.parametrize(
    ("value", "misconception"),
    [(None, "returns-nothing"), ("2", "returns-wrong-type"), ({}, "returns-wrong-type"), ([1, 2], "wrong-shape")],
)
def test_what_is_no_number_is_refused_by_name(value, misconception):
    with pytest.raises(Refused) as refusal:
        as_number(value, call="f()")
    assert refusal.value.misconception == misconception


def test_map_guards_many_calls_at_once():
    assert LearnerFunction(lambda a, b: a + b).map([(1, 2), (3, 4)]) == [3, 7]


def test_what_compiled_code_writes_to_stderr_costs_nothing(capfd):
    def writes(x):
        os.write(2, b"from C\n")
        return x + 1

    verdict = check_add_one(writes)
    assert verdict.outcome == "right" and "from C" in verdict.said
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, asyncio.CancelledError, BaseException])
def test_nothing_an_answer_raises_ends_the_notebook(error):
    def raises(x):
        raise error

    assert check_add_one(raises).outcome == "crashed"


def test_the_learner_can_still_interrupt():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_add_one(interrupted)


def test_a_coroutine_is_named():
    async def later(x):
        return x + 1

    assert "async def" in check_add_one(later).parts[0].message


def test_defaults_that_an_answer_changes_do_not_reach_the_check():
    def meddles(x):
        torch.set_default_dtype(torch.float64)
        return x + 1

    assert check_add_one(meddles).outcome == "right"
    assert torch.get_default_dtype() == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert check_add_one(reference).outcome == "right"
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_complex_numbers_are_refused_without_a_warning():
    for value in (complex(3, 1), torch.tensor([1 + 1j]), np.array([1j])):
        verdict = check_add_one(lambda x, value=value: value)
        assert verdict.misconception == "returns-wrong-type" and verdict.said == ""


def test_words_between_asterisks_are_stressed_and_products_are_not():
    assert verdict_html._code("the largest *of the row* first") == "the largest <em>of the row</em> first"
    assert verdict_html._code("`2 *a* 3` and 2*n*d, a * b * c") == "<code>2 *a* 3</code> and 2*n*d, a * b * c"
