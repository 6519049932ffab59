"""The small network of this topic: a perceptron on handwritten digits, trained in a fraction of a second."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlab.digits import LabeledImages
from qlab.sparsity import masks_kept

WIDTHS = (64, 128, 64, 10)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, labels, and the numbers of the images in the batch


@dataclass(frozen=True, kw_only=True)
class DigitsRecipe:
    """How long, how fast, and in which order of the images."""

    steps: int = 300
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")


def digits_network(widths: Sequence[int] = WIDTHS, *, seed: int) -> nn.Sequential:
    """Build a perceptron with ReLU between its linear layers, its weights drawn from `seed`.

    Errors:  ValueError if there are fewer than two widths.
    """
    if len(widths) < 2:
        raise ValueError(f"a network has at least two widths, got {len(widths)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [module for pair in pairwise(widths) for module in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def plain_loss(logits: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    """Return the cross-entropy with the labels."""
    return F.cross_entropy(logits, labels)


def train_network(
    network: nn.Module,
    data: LabeledImages,
    recipe: DigitsRecipe,
    *,
    masks: Mapping[str, Tensor] | None = None,
    loss: Loss = plain_loss,
) -> nn.Module:
    """Train `network` in place with AdamW and a learning rate that falls to zero; what `masks` prune stays zero.

    Errors:  ValueError if there are fewer images than one batch takes.
    """
    if len(data.labels) < recipe.batch:
        raise ValueError(f"a batch takes {recipe.batch} images, and there are {len(data.labels)}")
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    with masks_kept(optimizer, network, masks) if masks else nullcontext():
        for step in range(recipe.steps):
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - step / recipe.steps)
            chosen = torch.randint(len(data.labels), (recipe.batch,), generator=generator)
            loss(network(data.images[chosen]), data.labels[chosen], chosen).backward()
            optimizer.step()
            optimizer.zero_grad()
    return network


@torch.no_grad()
def accuracy(network: nn.Module, data: LabeledImages) -> float:
    """Return the share of images on which the largest logit is the label's."""
    return (network(data.images).argmax(-1) == data.labels).float().mean().item()
