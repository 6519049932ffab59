"""Iterative magnitude pruning: train, prune, go back to the start, and train what is left."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from qlab.sparsity.magnitude import Masks, apply_masks, global_masks, prunable_weights, sparsity_of

State = Mapping[str, Tensor]
Train = Callable[[nn.Module, Masks], object]
Restart = Callable[[nn.Module, State], object]


@dataclass(frozen=True, eq=False)
class LotteryRound:
    """One round: the masks it trained under, the share they leave out, and the trained weights."""

    masks: dict[str, Bool[Tensor, "..."]]
    sparsity: float
    trained: dict[str, Tensor]


def rewind(model: nn.Module, initial: State) -> None:
    """Put the weights back that `model` began with, in place: a winning ticket keeps its own numbers."""
    model.load_state_dict(dict(initial))


def reinitialize(seed: int) -> Restart:
    """Return a restart that draws new weights instead, others at each call: what rewinding is compared with."""
    generator = torch.Generator().manual_seed(seed)

    def restart(model: nn.Module, _: State) -> None:
        drawn = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn)
            for module in model.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()

    return restart


def iterative_pruning(
    model: nn.Module, train: Train, *, rounds: int, share: int | float, restart: Restart = rewind
) -> list[LotteryRound]:
    """Train `model`, prune `share` of the weights that are left by global magnitude, go back to the start; repeat.

    The first round trains the whole network, and each of the `rounds` after it one more pruned. `train(model, masks)`
    trains in place and keeps pruned weights at zero (`masks_kept`). The model given is left as it was. Biases and tied
    weights are not pruned.
    Errors:  ValueError if `rounds` is below 0, `share` is not 0 to 1, or `train` lets a pruned weight move.
    Source:  Frankle and Carbin 2019, section 2, arXiv:1803.03635.
    """
    if rounds < 0:
        raise ValueError(f"rounds must be at least 0, got {rounds}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be 0 to 1, got {share}")
    trial = copy.deepcopy(model)
    initial = copy.deepcopy(dict(trial.state_dict()))
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(trial).items()}
    found = []
    for done in range(rounds + 1):
        if done:
            masks = global_masks(prunable_weights(trial), 1 - (1 - share) ** done, within=masks)
            restart(trial, initial)
        train(apply_masks(trial, masks), masks)
        _refuse_moved(trial, masks)
        found.append(LotteryRound(masks, sparsity_of(masks), copy.deepcopy(dict(trial.state_dict()))))
    return found


def _refuse_moved(model: nn.Module, masks: Masks) -> None:
    for name, weight in prunable_weights(model).items():
        if moved := int((weight[~masks[name]] != 0).sum()):
            raise ValueError(f"train must keep pruned weights at zero, and {moved} of {name} have moved")
