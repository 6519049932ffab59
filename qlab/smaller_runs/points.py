"""A point of the Pareto picture: bytes of a file that was written, quality of what it holds, and a measured time."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from qlab.sparsity import bitmap_parts, file_bytes, prunable_weights, two_four_parts

FLOATS, FEWER, INTEGERS, UNPACKS = "float products", "fewer float products", "int8 products", "unpacks at each call"
Encode = Callable[[str, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way to store and run the course model's task.

    Units:   `bits_per_byte` on the ledger's windows; `forward_ms` and `fp32_ms` of one window of 512 bytes, on one
             thread, in turns. `arithmetic` says what was timed: rounded weights in FP32 run at the speed of FP32.
    """

    topic: str
    name: str
    arithmetic: str
    file_bytes: int
    bits_per_byte: float
    forward_ms: float
    fp32_ms: float
    seed: int | None = None

    @property
    def relative_time(self) -> float:
        """The forward pass in units of the FP32 model's."""
        return self.forward_ms / self.fp32_ms


def in_bf16(_: str, tensor: Tensor) -> dict[str, Tensor]:
    """Store a tensor as the checkpoint ships it."""
    return {"": tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor}


def as_bitmap(_: str, weight: Tensor) -> dict[str, Tensor]:
    """Store what is not zero in BF16, and a bit for each place."""
    return bitmap_parts(weight.to(torch.bfloat16))


def as_two_four(_: str, weight: Tensor) -> dict[str, Tensor]:
    """Store two of each four weights in BF16, and two bits for the place of each."""
    return two_four_parts(weight.to(torch.bfloat16))


def stored_tensors(model: nn.Module, encode: Encode = in_bf16) -> dict[str, Tensor]:
    """Return what a file of `model` holds: each linear weight as `encode` makes it, all else in BF16, tied ones once.

    The names are those of `prunable_weights`; what a layer in int8 holds as codes is stored as it is.
    """
    chosen, tied = prunable_weights(model).keys(), _tied_names(model)
    found = {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            made = encode(name, tensor) if name in chosen else in_bf16(name, tensor)
            found |= {f"{name}.{part}".rstrip("."): stored for part, stored in made.items()}
    return found


@torch.no_grad()
def rounded_as_stored(model: nn.Module) -> nn.Module:
    """Return a copy of `model` whose parameters are what comes back from a BF16 file."""
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
    return rounded.eval()


@torch.no_grad()
def forward_times(
    model: Callable[[Tensor], object], peer: Callable[[Tensor], object], tokens: Tensor, *, repeats: int = 3
) -> tuple[float, float]:
    """Return the median times of `model` and of `peer` on `tokens` in milliseconds, taken in turns.

    Errors:  ValueError if `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):  # the first round warms up
        for network, kept in zip((model, peer), times, strict=True):
            start = time.perf_counter()
            network(tokens)
            if repeat:
                kept.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


@dataclass(frozen=True)
class Way:
    """How one point is made: `make` returns the model that runs, and the tensors of its file."""

    topic: str
    name: str
    arithmetic: str
    make: Callable[[], tuple[nn.Module, Mapping[str, Tensor]]]


def take_points(
    ways: Iterable[Way],
    *,
    peer: nn.Module,
    tokens: Int[Tensor, "1 n"],
    quality: Callable[[nn.Module], float],
    seed: int | None = None,
) -> Iterator[Point]:
    """Make each way, write its file, score and time it, one after the other."""
    for way in ways:
        model, tensors = way.make()
        mine, fp32 = forward_times(model, peer, tokens)
        yield Point(
            topic=way.topic,
            name=way.name,
            arithmetic=way.arithmetic,
            file_bytes=file_bytes(tensors),
            bits_per_byte=quality(model),
            forward_ms=mine,
            fp32_ms=fp32,
            seed=seed,
        )


def frontier(points: Iterable[Point], *, cost: Callable[[Point], float]) -> list[Point]:
    """Return, by rising `cost`, each point that has fewer bits per byte than every cheaper one."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (cost(p), p.bits_per_byte)):
        if not front or point.bits_per_byte < front[-1].bits_per_byte:
            front.append(point)
    return front


def _tied_names(model: nn.Module) -> set[str]:
    distinct = {name for name, _ in model.named_parameters()}
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - distinct
