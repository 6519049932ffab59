"""Distillation: a student learns from what its teacher says about every class, at a temperature."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def distillation_loss(
    student_logits: Float[Tensor, "*batch classes"],
    teacher_logits: Float[Tensor, "*batch classes"],
    targets: Int[Tensor, "*batch"],
    *,
    temperature: int | float,
    weight: int | float,
) -> Float[Tensor, ""]:
    """Return weight · T² · KL(teacher ‖ student) at temperature T, plus (1 − weight) · cross-entropy with the targets.

    The gradient of the soft part shrinks as 1/T²; the factor T² keeps the two parts in proportion when T changes. The
    divergence differs from the paper's cross-entropy by the teacher's entropy, which has no gradient: it is zero when
    both agree. No gradient passes to the teacher.
    Units:   nats, the mean over the batch.
    Errors:  ValueError if `temperature` is not above 0 and finite, `weight` is not 0 to 1, the shapes differ, or there
             is no target.
    Source:  Hinton, Vinyals and Dean 2015, section 2, arXiv:1503.02531.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be 0 to 1, got {weight}")
    shapes = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if shapes[0] != shapes[1]:
        raise ValueError(f"student and teacher must have logits of one shape, got {shapes[0]} and {shapes[1]}")
    if not targets.numel() or tuple(targets.shape) != shapes[0][:-1]:
        raise ValueError(f"targets must have the shape {shapes[0][:-1]} and not be empty, got {tuple(targets.shape)}")
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    student, teacher = (logits.to(wide).flatten(0, -2) for logits in (student_logits, teacher_logits.detach()))
    hard = F.cross_entropy(student, targets.flatten())
    log_student, log_teacher = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    soft = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return weight * temperature**2 * soft + (1 - weight) * hard
