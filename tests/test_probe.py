"""What checks take around a call: bytes saved for backward, of a learner's function and of any other."""

import pytest
import torch
from torch import nn

from qlab.checks.learner import STUB_MESSAGE, Crashed, LearnerFunction, NotAnswered
from qlab.checks.probe import saved_bytes


def stub(x):
    raise NotImplementedError(STUB_MESSAGE)


def test_a_module_is_charged_for_what_it_keeps_and_not_for_its_weights():
    module = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    assert saved_bytes(module, torch.randn(5, 4)) == 4 * 5 * (4 + 6 + 6)


def test_a_learners_function_is_charged_as_the_function_itself_is():
    x = torch.randn(7, requires_grad=True)
    for function, kept in ((torch.sigmoid, 1), (lambda x: x * torch.sigmoid(x), 2), (torch.neg, 0)):
        assert saved_bytes(LearnerFunction(function), x) == saved_bytes(function, x) == 4 * 7 * kept


def test_what_is_dropped_before_the_end_does_not_count():
    x = torch.randn(7, requires_grad=True)
    assert saved_bytes(lambda x: (2 * x).square().detach().sum(), x) == 0


@pytest.mark.parametrize(("function", "error"), [(stub, NotAnswered), (lambda x: x / "2", Crashed)])
def test_an_answer_that_fails_fails_as_in_a_plain_call(function, error):
    with pytest.raises(error):
        saved_bytes(LearnerFunction(function), torch.ones(2))
    assert saved_bytes(torch.exp, torch.ones(2, requires_grad=True)) == 8  # nothing of the failed call is left behind
