"""Values in blocks for `quantize_blocks`, and the codes that slips give them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qlab import codebooks
from qlab.checks.expect import Suspect
from qlab.checks.numbers import drawn
from qlab.checks.qlora.nearest import admitted, evenly, level_above, level_below, nearest, toward_zero


@dataclass(frozen=True)
class Blocks:
    """Values and how they are to be coded; blocks differ a hundredfold in size, and their largest may be negative."""

    x: Tensor
    codebook: Tensor
    size: int

    @property
    def rows(self) -> Tensor:
        """The values as rows of a block each, the last one filled up with zeros."""
        return F.pad(self.x, (0, -len(self.x) % self.size)).double().view(-1, self.size)

    @property
    def absmax(self) -> Tensor:
        return self.rows.abs().amax(1)

    def divided(self, by: Tensor) -> Tensor:
        """Return the values, each over its block's number in `by`; 0 where that is 0."""
        return (self.rows / torch.where(by == 0, 1.0, by)[:, None]).flatten()[: len(self.x)]

    def told(self, index: int) -> str:
        block = index // self.size
        rest = "" if len(self.x) % self.size == 0 else f", the last one of {len(self.x) % self.size}"
        return f"{len(self.x)} values in blocks of {self.size}{rest}: x[{index}] = {self.x[index]:.5g} of block {block}"


def _codebook(draw: torch.Generator, *, unknown: bool = False) -> Tensor:
    """Return NF4, or levels nobody knows: -1, 0 and 1 among them, none closer to another than 0.03."""
    if drawn(0, 1, draw) and not unknown:
        return codebooks.NF4.clone()
    steps = 0.5 + torch.rand(15, generator=draw)
    low, high = steps[:7].cumsum(0) / steps[:7].sum(), steps[7:].cumsum(0) / steps[7:].sum()
    return torch.cat([-low.flip(0), torch.zeros(1), high])


def drawn_blocks(draw: torch.Generator, *, ragged: bool = False) -> Blocks:
    """Draw blocks of sizes that differ a hundredfold; with a last one that is shorter NF4 is not the codebook."""
    size, count = 2 * drawn(5, 12, draw), drawn(5, 8, draw)
    x = torch.randn(count, size, generator=draw) * 10.0 ** torch.empty(count, 1).uniform_(-2, 0, generator=draw)
    x[::2].mul_(-x[::2].sum(1, keepdim=True).sign() + 0.0)  # half of the blocks lean to the negative side
    x[0, drawn(0, size - 1, draw)] = -x[0].abs().max() - 0.1
    flat = 4 * x.flatten()  # the largest of all far from 1: not dividing and dividing by it are two slips
    x = flat[: len(flat) - 2 * drawn(1, size // 2 - 1, draw)] if ragged else flat
    return Blocks(x, _codebook(draw, unknown=ragged), size)


def at_midpoints(draw: torch.Generator) -> Blocks:
    """Return values exactly between two levels, as far as FP32 can be exact, and just beside: ties go either way."""
    codebook = _codebook(draw)
    middles = (codebook[1:] + codebook[:-1]) / 2
    near = torch.cat([middles, middles.nextafter(torch.tensor(2.0)), middles + 1e-4, middles - 1e-4])
    near = near[torch.randperm(len(near), generator=draw)]
    rows = torch.cat([near.view(-1, 15), torch.ones(len(near) // 15, 1)], dim=1)
    return Blocks((rows * torch.rand(len(rows), 1, generator=draw)).flatten(), codebook, 16)


def with_zeros(draw: torch.Generator) -> Blocks:
    """Draw blocks, one of them all zeros."""
    blocks = drawn_blocks(draw)
    blocks.x[blocks.size * 2 : blocks.size * 3] = 0.0
    return blocks


def code_suspects(blocks: Blocks, got: Tensor) -> Iterator[Suspect]:
    """List the codes that slips give, ties as they were got."""
    x, levels = blocks.x.double(), blocks.codebook
    values = blocks.divided(blocks.absmax)
    near = "Rounding is to the *nearest* level: compare with the midpoints of neighbors."
    for rule in (level_below, level_above, toward_zero):
        yield Suspect("floors", near, admitted(got, values, levels, rule))
    lookup = "The levels are not evenly spaced: compare with all 16, or with their midpoints."
    yield Suspect("even-steps", lookup, admitted(got, values, levels, evenly))
    yield Suspect("own-codebook", "Use the codebook you are given.", admitted(got, values, codebooks.NF4))
    divide = "Divide each value by the absmax of its own block first."
    for divided, misconception in (
        (x / x.abs().max(), "one-absmax-for-all"),
        (x, "forgets-to-normalize"),
        (blocks.divided(blocks.rows.amax(1).clamp(min=1e-30)), "forgets-the-sign"),
    ):
        for rule in (nearest, level_below):
            yield Suspect(misconception, divide, admitted(got, divided, levels, rule))
    magnitudes = "Keep the sign: negative values have levels of their own."
    yield Suspect("forgets-the-sign", magnitudes, admitted(got, values.abs(), levels))
    zero = "A block of zeros has absmax 0: divide it by 1, so that its codes are those of the level 0."
    for code in (0, 15):
        values_of_zeros = torch.where(blocks.divided(blocks.absmax) == 0, code, admitted(got, values, levels))
        if not blocks.absmax.all():
            yield Suspect("wrong-code-for-zeros", zero, values_of_zeros)
