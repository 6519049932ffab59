"""Distillation: the paper's loss by its definition, its gradient at high temperature, and what it refuses."""

import re

import pytest
import torch

from qlab.distill import distillation_loss

TARGETS = torch.tensor([0, 2, 1])


def logits(seed=0):
    return 3 * torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def by_definition(student, teacher, targets, temperature, weight):
    total = 0.0
    for s, t, y in zip(student.double(), teacher.double(), targets, strict=True):
        p, q = torch.softmax(t / temperature, 0), torch.softmax(s / temperature, 0)
        soft = (p * (p / q).log()).sum()
        total += weight * temperature**2 * soft - (1 - weight) * torch.softmax(s, 0)[y].log()
    return total / len(targets)


@pytest.mark.parametrize("temperature", [0.5, 1, 2, 20])
@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_it_is_the_loss_of_the_paper(temperature, weight):
    found = distillation_loss(logits(), logits(1), TARGETS, temperature=temperature, weight=weight)
    expected = by_definition(logits(), logits(1), TARGETS, temperature, weight)
    assert found.item() == pytest.approx(expected.item(), rel=2e-5)


def test_a_student_that_agrees_pays_nothing_for_the_soft_part_and_a_shift_is_no_difference():
    assert distillation_loss(logits(), logits(), TARGETS, temperature=4, weight=1).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(logits(), logits() + 5, TARGETS, temperature=4, weight=1).item() == pytest.approx(
        0, abs=1e-4
    )


def gradient(temperature):
    student = logits().requires_grad_()
    distillation_loss(student, logits(1), TARGETS, temperature=temperature, weight=1).backward()
    return student.grad


def test_at_high_temperatures_the_gradient_is_that_of_matching_centered_logits():
    student, teacher = logits(), logits(1)
    apart = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(gradient(1000.0), apart / 4 / 3, atol=2e-3, rtol=2e-2)  # section 2.1 of the paper
    assert gradient(16.0).norm() / gradient(8.0).norm() == pytest.approx(1, abs=0.2)  # without T² it would be 1/4


def test_no_gradient_reaches_the_teacher_and_any_batch_shape_will_do():
    student, teacher = (torch.randn(2, 5, 7).requires_grad_() for _ in range(2))
    targets = torch.randint(7, (2, 5))
    loss = distillation_loss(student, teacher, targets, temperature=2, weight=0.5)
    loss.backward()
    assert teacher.grad is None and student.grad.isfinite().all()
    flat = distillation_loss(student.flatten(0, 1), teacher.flatten(0, 1), targets.flatten(), temperature=2, weight=0.5)
    assert loss.item() == pytest.approx(flat.item())


def test_a_teacher_that_rules_a_class_out_and_bf16_logits_stay_finite():
    teacher = logits(1)
    teacher[:, 3] = -1e9
    assert distillation_loss(logits(), teacher, TARGETS, temperature=2, weight=0.5).isfinite()
    narrow = distillation_loss(logits().bfloat16(), teacher.bfloat16(), TARGETS, temperature=2, weight=0.5)
    assert narrow.dtype == torch.float32 and narrow.isfinite()
    wide = distillation_loss(logits().double(), teacher.double(), TARGETS, temperature=2, weight=0.5)
    assert wide.dtype == torch.float64


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"temperature": 0, "weight": 0.5}, "temperature must be above 0 and finite, got 0"),
        ({"temperature": -2.0, "weight": 0.5}, "got -2.0"),
        ({"temperature": float("inf"), "weight": 0.5}, "got inf"),
        ({"temperature": float("nan"), "weight": 0.5}, "got nan"),
        ({"temperature": 2.0, "weight": 1.1}, "weight must be 0 to 1, got 1.1"),
    ],
)
def test_impossible_settings_are_refused(told, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        distillation_loss(logits(), logits(1), TARGETS, **told)


def test_shapes_that_differ_are_refused():
    with pytest.raises((ValueError, TypeError)):  # the shape checker of the tests comes first
        distillation_loss(logits(), logits()[:, :3], TARGETS, temperature=2, weight=0.5)
    with pytest.raises(ValueError, match="not be empty"):
        distillation_loss(torch.zeros(0, 4), torch.zeros(0, 4), TARGETS[:0], temperature=2, weight=0.5)
