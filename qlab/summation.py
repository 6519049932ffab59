"""Summation: what a running sum in few bits loses, and two ways to keep it."""

import torch
from jaxtyping import Float
from torch import Tensor


def running_sum(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return every partial sum of `x`, added left to right, each rounded to the dtype of `x`.

    Shapes:  `x` is (n,); the partial sums are (n,).
    """
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    partial = []
    for value in x:
        total = total + value
        partial.append(total)
    return torch.stack(partial) if partial else x.clone()


def kahan_sum(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Sum `x` left to right in its own dtype, carrying what each addition rounded away into the next.

    Units:   |error| <= (2u + O(n u²)) sum(|x|), with u half the gap above 1: the n of a plain sum is gone.
    Source:  Kahan 1965, doi:10.1145/363707.363723; bound: Higham 1993, doi:10.1137/0914050.
    """
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    lost = torch.zeros_like(total)
    for value in x:
        corrected = value - lost
        grown = total + corrected
        lost = (grown - total) - corrected
        total = grown
    return total


def pairwise_sum(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Sum `x` in its own dtype as a binary tree, so that each number is rounded log2(n) times, not n.

    Source:  Higham 1993, doi:10.1137/0914050.
    """
    if x.numel() == 0:
        return torch.zeros((), dtype=x.dtype, device=x.device)
    while x.numel() > 1:
        x = torch.nn.functional.pad(x, (0, x.numel() % 2))
        x = x[0::2] + x[1::2]
    return x[0]
