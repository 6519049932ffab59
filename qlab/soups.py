"""Model soups: the weights of several fine-tunings of one model, averaged into a single one."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Score = Callable[[dict[str, Tensor]], float]


def uniform_soup(states: Sequence[State]) -> dict[str, Tensor]:
    """Return the mean of every floating tensor; others, such as a batch norm's counter, are those of the first state.

    The sum is taken in FP64, and the mean is rounded once, to the tensor's own type. A batch norm's running statistics
    are floating and are averaged as well, though they are not those of the averaged weights: measure them anew
    (`torch.optim.swa_utils.update_bn`).
    Errors:  ValueError if there is no state, or their names, shapes or types differ.
    Source:  Wortsman et al. 2022, section 2, arXiv:2203.05482.
    """
    _refuse_unequal(states)
    first = states[0]
    return {
        name: _mean([state[name] for state in states]) if tensor.is_floating_point() else tensor.detach().clone()
        for name, tensor in first.items()
    }


def greedy_soup(states: Sequence[State], held_out_score: Score) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Try the states from the best to the worst, and keep each that does not lower the soup's score on held-out data.

    Higher scores are better. Returns the soup, and the numbers of the states in it in the order in which they came in.
    States of equal score are tried in the order given. The data behind `held_out_score` has then been chosen on: report
    quality on a test set that it never saw.
    Errors:  ValueError if there is no state, their names, shapes or types differ, or a score is NaN.
    Source:  Wortsman et al. 2022, recipe 1, arXiv:2203.05482.
    """
    _refuse_unequal(states)
    scores = [_not_nan(held_out_score(dict(state)), f"state {k}") for k, state in enumerate(states)]
    order = sorted(range(len(states)), key=lambda k: -scores[k])
    chosen, best = (order[0],), scores[order[0]]
    soup = uniform_soup([states[order[0]]])
    for k in order[1:]:
        trial = uniform_soup([states[other] for other in (*chosen, k)])
        score = _not_nan(held_out_score(trial), f"the soup of {(*chosen, k)}")
        if score >= best:
            soup, chosen, best = trial, (*chosen, k), score
    return soup, chosen


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor.detach().to(total.device)
    return (total / len(tensors)).to(tensors[0].dtype)


def _refuse_unequal(states: Sequence[State]) -> None:
    if not states:
        raise ValueError("a soup needs at least one state, got 0")
    first = states[0]
    for place, state in enumerate(states):
        if different := sorted(first.keys() ^ state.keys()):
            raise ValueError(f"all states must have the same names, and state {place} differs in {different[0]}")
        for name, tensor in state.items():
            found, expected = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, first[name]))
            if found != expected:
                raise ValueError(f"{name} must be {expected} in all states, got {found} in state {place}")


def _not_nan(score: float, name: str) -> float:
    if math.isnan(score):
        raise ValueError(f"a score must not be NaN, got {score} for {name}")
    return score
