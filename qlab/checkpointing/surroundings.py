"""What a function's run depends on beside its arguments: random generators and autocast, noted and put back."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surroundings:
    """Autocast, and the random generators if those are to be replayed."""

    autocast: dict[str, dict[str, Any]]
    randomness: "Randomness | None"

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Run what is inside as it ran when the surroundings were noted, with gradients on."""
        with ExitStack() as stack:
            if self.randomness is not None:
                stack.enter_context(self.randomness.replayed())
            for kind, settings in self.autocast.items():
                stack.enter_context(torch.autocast(kind, **settings))
            stack.enter_context(torch.enable_grad())
            yield


@dataclass(frozen=True)
class Randomness:
    """The states of every generator that a function may draw from: the CPU's, the GPUs' of its tensors, its own."""

    cpu: Tensor
    cuda: dict[int, Tensor]
    own: list[tuple[torch.Generator, Tensor]]

    @classmethod
    def now(cls, tensors: list[Tensor], generators: list[torch.Generator]) -> "Randomness":
        """Note the present states."""
        devices = {tensor.device.index for tensor in tensors if tensor.is_cuda}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            devices.add(torch.cuda.current_device())
        cuda = {device: torch.cuda.get_rng_state(device) for device in sorted(devices)}
        return cls(torch.get_rng_state(), cuda, [(generator, generator.get_state()) for generator in generators])

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw again what was drawn from here on; afterwards, every generator goes on from where it was."""
        left = [(generator, generator.get_state()) for generator, _ in self.own]
        with torch.random.fork_rng(devices=list(self.cuda)):
            torch.set_rng_state(self.cpu)
            for device, state in self.cuda.items():
                torch.cuda.set_rng_state(state, device)
            for generator, state in self.own:
                generator.set_state(state)
            try:
                yield
            finally:
                for generator, state in left:
                    generator.set_state(state)


def autocast_settings() -> dict[str, dict[str, Any]]:
    """Note how autocast is set on each kind of device of this machine."""
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    cached = torch.is_autocast_cache_enabled()
    return {
        kind: {
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": cached,
        }
        for kind in kinds
    }
