"""What a byte-level model is worth in bits per byte, and what it writes."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn


def bits_per_token(
    logits: Float[Tensor, "batch sequence vocabulary"], targets: Int[Tensor, "batch sequence"]
) -> Float[Tensor, "batch sequence"]:
    """Return the cost in bits of each target under the model; its mean is the loss in bits per byte."""
    nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (nats / math.log(2)).view(targets.shape)


@torch.no_grad()
def held_out_bits(
    model: nn.Module, text: UInt8[Tensor, " n"], *, sequence: int, batch: int = 16
) -> Float[Tensor, " w"]:
    """Return the bits per byte of each window of `text`; no two overlap, so that means and paired differences are fair.

    Shapes:  `text` is (n,); the result is (floor((n - 1) / sequence),), a ragged end is left out.
    Errors:  ValueError if `text` is too short for one window.
    """
    windows = (len(text) - 1) // sequence
    if windows < 1:
        raise ValueError(f"a window of {sequence} needs at least {sequence + 1} bytes, got {len(text)}")
    device = next(model.parameters()).device
    inputs = text[: windows * sequence].view(windows, sequence)
    targets = text[1 : windows * sequence + 1].view(windows, sequence)
    bits = [
        bits_per_token(model(x.long().to(device)), y.long().to(device)).mean(1)
        for x, y in zip(inputs.split(batch), targets.split(batch), strict=True)
    ]
    return torch.cat(bits)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: bytes,
    *,
    new_bytes: int,
    temperature: int | float = 0.8,
    generator: torch.Generator | None = None,
) -> bytes:
    """Continue `prompt` by `new_bytes` bytes, each drawn from the model's distribution at `temperature`.

    Errors:  ValueError if `prompt` is empty or `temperature` is not above 0.
    """
    if not prompt:
        raise ValueError("prompt must hold at least one byte, got none")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    tokens = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    for _ in range(new_bytes):
        logits = model(tokens[:, -model.config.sequence :])[0, -1].float()
        probabilities = torch.softmax(logits / temperature, dim=-1)
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        tokens = torch.cat([tokens, drawn[None]], dim=1)
    return bytes(tokens[0].tolist())
