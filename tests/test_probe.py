"""What checks take around a call: bytes saved for backward and gradients, of a learner's function and of any other."""

import pytest
import torch
from torch import nn

from qlab.checks.learner import STUB_MESSAGE, Crashed, LearnerFunction, NotAnswered
from qlab.checks.probe import gradients, peak_bytes, saved_bytes


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


def test_the_peak_is_of_what_lived_at_once_and_not_of_what_was_given():
    x = torch.randn(100)

    def two_at_once(x):
        a = x + 1
        b = a * 2  # a and b live
        del a
        return b - 1  # b and the result live

    assert peak_bytes(two_at_once, x) == 2 * 400
    assert peak_bytes(LearnerFunction(two_at_once), x) == 3 * 400  # it works on a copy
    assert peak_bytes(lambda x: (x[:50], len(x)), x) == 0


@pytest.mark.parametrize(("function", "error"), [(stub, NotAnswered), (lambda x: x / "2", Crashed)])
def test_an_answer_that_fails_has_no_peak(function, error):
    with pytest.raises(error):
        peak_bytes(LearnerFunction(function), torch.ones(2))
    assert peak_bytes(torch.exp, torch.ones(2)) == 8  # nothing of the failed call is left behind


def test_gradients_are_those_of_the_weighted_sum_for_each_floating_argument():
    x, y, index = torch.randn(3, 4), torch.randn(4), torch.tensor([2, 0])
    upstream = torch.randn(2, 4)
    slope = 2 * (x * y)[index] * upstream

    def powers(x, index, y, power):
        return (x * y)[index] ** power

    for f in (powers, LearnerFunction(powers)):
        of_x, of_y = gradients(f, x, index, y, 2, upstream=upstream)
        assert torch.allclose(of_x[index], slope * y) and of_x[1].count_nonzero() == 0
        assert torch.allclose(of_y, (slope * x[index]).sum(0))
    (plain,) = gradients(torch.square, x)
    assert torch.equal(plain, 2 * x)
    assert not x.requires_grad and x.grad is None


def test_a_view_keeps_its_layout_and_work_in_place_is_the_functions_own_affair():
    strides, x = [], torch.randn(5, 3).T

    def doubles_in_place(x):
        strides.append(x.stride())
        return x.mul_(2)

    (gradient,) = gradients(LearnerFunction(doubles_in_place), x)
    assert strides == [x.stride()] and torch.equal(gradient, torch.full((3, 5), 2.0))


def test_where_no_graph_leads_back_the_gradient_is_none():
    x, y = torch.randn(3), torch.randn(3)
    detached, compared = (lambda x: x.detach() * 2), (lambda x: x > 0)
    for f in (detached, compared, lambda x: [1.0, 2.0], lambda x: None, torch.no_grad()(torch.exp)):
        assert gradients(f, x) == (None,)
    assert gradients(lambda x, y: x * 2, x, y)[1] is None
    assert gradients(torch.round, x)[0].count_nonzero() == 0  # a gradient that is zero is one


def test_the_upstream_gradient_takes_the_type_of_the_result():
    (gradient,) = gradients(lambda x: x.double() * 3, torch.randn(4), upstream=torch.arange(4.0))
    assert gradient.dtype == torch.float32 and gradient.tolist() == [0, 3, 6, 9]


def test_gradients_are_found_where_the_answer_has_switched_them_off():
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        assert gradients(torch.neg, torch.ones(2))[0].tolist() == [-1, -1]
    finally:
        torch.set_grad_enabled(before)


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * undefined  # the learner forgot to define it


@pytest.mark.parametrize(
    ("function", "error"), [(stub, NotAnswered), (lambda x: x / "2", Crashed), (FailsBackward.apply, Crashed)]
)
def test_an_answer_whose_backward_pass_fails_has_crashed(function, error):
    with pytest.raises(error):
        gradients(LearnerFunction(function), torch.ones(2))
