"""What runs beside an answer of topics 06 and 07 knows no right answers, and what it reports is not believed alone."""

import importlib
import sys
from types import ModuleType

import pytest
import torch

from qlab.checks import checkpointing, mixed_precision
from qlab.checks.learner import LearnerFunction, NotAnswered
from qlab.checks.mixed_precision import operations
from qlab.grading.forbidden import forbidden_for, named_in
from tests.grading.pair import forked_learner

DRIVERS = {
    "mixed_precision": ("descent_runs", "masters_runs", "scaler_runs", "step_runs"),
    "checkpointing": ("accumulating_runs", "passes", "stepping"),
}
KNOW_NO_ANSWER = {"mixed_precision": ("reading",), "checkpointing": ("replayed",)}
REFERENCES = ("qlab.loss_scaling", "qlab.loss_scaling.step", "qlab.loss_scaling.weights", "qlab.checkpointing")


def reached_from(name):
    """Return the modules that a module's own names lead to, one step each."""
    found, todo = set(), [importlib.import_module(name)]
    while todo:
        module = todo.pop()
        if module.__name__ in found or not module.__name__.startswith("qlab."):
            continue
        found.add(module.__name__)
        for value in vars(module).values():
            home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(home, str) and home in sys.modules:
                todo.append(sys.modules[home])
    return found


@pytest.mark.parametrize(("topic", "driver"), [(topic, name) for topic, names in DRIVERS.items() for name in names])
def test_a_driver_leads_to_no_right_answer(topic, driver):
    home = f"qlab.checks.{topic}"
    reached = reached_from(f"{home}.{driver}")
    assert not reached & set(REFERENCES)
    allowed = {f"{home}.{name}" for name in (*DRIVERS[topic], *KNOW_NO_ANSWER[topic])}
    assert {name for name in reached if name.startswith(home)} <= allowed


class Forger:
    """An answer that is never written, in a process that answers drivers for it."""

    def __init__(self, **answers):
        self.answers = answers

    def __call__(self, *args, **kwargs):
        raise NotAnswered

    def __qlab_beside__(self, name, args):
        driver = name.rpartition(":")[2]
        if driver not in self.answers:
            raise NotAnswered
        return self.answers[driver](*args), ("done",)


def stepped_as_told(settings, overflows):
    """Say what follows from the task's sentence on `step`, and keep the state that was there."""
    state = settings.scale, 0
    told = [value for inf in overflows for value in (state, 0.0 if inf else 1.0, not inf, state)]
    return [*told, [state] * len(overflows)]


def echoed_copies(weights, gradients):
    copies = [weight.float() for weight in weights]
    return [copies, copies]


def echoed_gradients(weights, rounds):
    told = [[None if g is None else g.float() for g in gradients] for gradients in rounds]
    return [*told, (weights, weights), weights]


FORGED = {
    "loss-scaler": (mixed_precision.check_loss_scaler, {"stepped_where_told": stepped_as_told}),
    "master-weights": (mixed_precision.check_master_weights, {"made": echoed_copies, "taken": echoed_gradients}),
}


@pytest.mark.parametrize("exercise", FORGED)
def test_reports_that_repeat_what_was_given_win_nothing(exercise):
    check, answers = FORGED[exercise]
    verdict = check(Forger(**answers), seed=3)
    assert verdict.points == 0
    assert "wrong" in {str(part.outcome) for part in verdict.parts}


def walks_the_stack(loss, parameters, optimizer, scaler, max_norm):
    """Look in every frame of its process for gradients, or for a class that knows what a step gives."""
    frame, shapes = sys._getframe(1), {tuple(p.shape) for p in parameters}
    while frame is not None:
        for value in list(frame.f_locals.values()):
            home = sys.modules.get(type(value).__module__)
            assert not hasattr(home, "simulated"), "found what knows the answer"
            nested = value if isinstance(value, list | tuple) else [value]
            floats = [v for v in nested if type(v) is torch.Tensor and v.any() and tuple(v.shape) in shapes]
            assert not floats, "found the gradients"
        frame = frame.f_back
    raise NotAnswered


def test_the_process_of_an_answer_holds_no_gradients_before_it_asks_for_them():
    with forked_learner({"step": walks_the_stack}) as peer:
        for check in (mixed_precision.check_training_step, mixed_precision.check_clip_order):
            assert check(peer.call("lookup", "step"), seed=1).outcome == "empty"


def test_a_check_counts_the_calls_of_the_loss_itself():
    def trains_for_long(loss_of, weights, steps, learning_rate):
        for _ in range(3 * steps):
            loss_of(weights)
        return weights

    verdict = mixed_precision.check_train_fp16(trains_for_long, seed=1)
    assert verdict.misconception == "too-many-steps"


def test_an_operation_of_a_policy_takes_casts_of_its_own_inputs_alone():
    draw = torch.Generator().manual_seed(1)
    _, scores = operations.products(draw)
    _, function, (q, k) = scores.entry
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert function(q.to(dtype), k.to(dtype)).dtype == dtype
    with pytest.raises(ValueError, match=r"`scores` takes its own inputs, of shapes .*, got \[\(30000, 558\)"):
        function(*[torch.ones(1).expand(30_000, 558)] * 2)
    with pytest.raises(ValueError, match="takes its own inputs"):
        function(q)
    with pytest.raises(TypeError, match=r"`scores` takes floating-point tensors, got torch\.int8"):
        function(q.to(torch.int8), k.to(torch.int8))
    with pytest.raises(TypeError, match="got list"):
        function(q.tolist(), k.tolist())


MEASURES = """
from qlab.measure import SavedForBackward
from qlab.model import Decoder
def predict_factor(config, lengths):
    with SavedForBackward() as saved:
        Decoder(config)(tokens).mean().backward()
    return saved.peak_bytes
"""


def test_a_factor_is_predicted_and_not_measured():
    check = checkpointing.check_predict_factor
    used = {use.name for use in named_in(MEASURES, (), forbidden_for(check), functions=["predict_factor"])}
    assert used == {"qlab.measure", "qlab.model.Decoder"}


def test_drivers_are_what_is_handed_to_the_process_of_an_answer(monkeypatch):
    named = []

    def asked(self, driver, *args):
        named.append(driver.__module__)
        raise NotAnswered

    monkeypatch.setattr(LearnerFunction, "beside", asked)
    for package in (mixed_precision, checkpointing):
        for name in package.__all__:
            getattr(package, name)(lambda *args: 0, seed=1)
    known = {f"qlab.checks.{topic}.{name}" for topic, names in DRIVERS.items() for name in names}
    assert known <= set(named) and set(named) <= {*known, "qlab.checks.probe"}
