"""What an answer gets that runs layers again from another state of the random generator."""

import torch
from torch import Tensor

from qlab.checks.checkpointing.passes import Problem, generator_kept


def replayed(problem: Problem, state: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of an answer that runs each layer again from `state`, the last one first."""
    leaves = problem.leaves()
    inputs, grad = [problem.x], problem.upstream
    with generator_kept(), torch.enable_grad():
        torch.default_generator.manual_seed(problem.seed)
        torch.rand(5)
        groups = list(problem.grouped(leaves))
        for layer, others in zip(problem.layers, groups, strict=True):
            inputs.append(layer(inputs[-1], *others).detach())
        torch.set_rng_state(state)
        found: list[Tensor] = []
        for layer, x, others in zip(problem.layers[::-1], inputs[-2::-1], groups[::-1], strict=True):
            leaf = x.clone().requires_grad_()
            wanted = [leaf, *(t for t in others if t.requires_grad)]
            grad, *rest = torch.autograd.grad(layer(leaf, *others), wanted, grad)
            found = [*rest, *found]
    return (grad, *found)
