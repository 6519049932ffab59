"""Checkpointing: keep a function's inputs, drop what it saved, and run it again when the backward pass asks."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_flatten, tree_unflatten

from qlab.checkpointing.surroundings import Randomness, Surroundings, autocast_settings


def checkpoint(f: Callable[..., Any], *args: Any, preserve_rng_state: bool = True) -> Any:
    """Run `f(*args)`, keep only the tensors in `args`, and run it again when its backward pass begins.

    `args` may hold tensors, containers of tensors, and anything else; parameters that `f` uses get their gradients
    also where no input asks for one. The replay sees the random numbers (also of a `torch.Generator` in `args`) and
    the autocast settings of the first run. Calls nest. Where gradients are off, nothing is kept.
    Errors:  ValueError if `f` changes an argument in place, if an argument or a parameter has changed before the
             replay, or if the replay saves less or something else than the first run.
    Source:  Chen et al. 2016, section 4, arXiv:1604.06174; by saved-tensor hooks, as PyTorch's own without reentry.
    """
    if not torch.is_grad_enabled():
        return f(*args)
    replay = Replay(f, args, preserve_rng_state)
    with torch.autograd.graph.saved_tensors_hooks(replay.pack, replay.unpack):
        result = f(*args)
    replay.finish(args)
    return result


class Replay:
    """A function that can run again: its inputs, its surroundings, and what it saved the first time, in order."""

    def __init__(self, f: Callable[..., Any], args: tuple, preserve_rng_state: bool) -> None:
        leaves, self.structure = tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
        self.f = f
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.inputs = hold(*tensors)
        self.stamps = [Stamp.of(tensor) for tensor in tensors]
        randomness = Randomness.now(tensors, generators) if preserve_rng_state else None
        self.surroundings = Surroundings(autocast_settings(), randomness)
        self.described: list[Saved] = []
        self.again: dict[int, Any] = {}
        self.finished = False

    def pack(self, tensor: Tensor) -> int:
        """Drop a tensor that the first run saves; remember its place and what it looked like."""
        self.described.append(Saved.of(tensor))
        return len(self.described) - 1

    def finish(self, args: tuple) -> None:
        """End the first run, and refuse it if it changed its arguments."""
        self.finished = True
        self.refuse_changes([leaf for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor)], "by the function")

    def unpack(self, place: int) -> Tensor:
        """Return the tensor saved at `place`, and let it go: each is asked for once in a backward pass."""
        if not self.finished:  # the function takes a gradient inside itself
            return self.run_again()[place]
        if place not in self.again:
            saved = self.run_again()
            self.compare([Saved.of(tensor) for tensor in saved])
            self.again = {place: hold(tensor) for place, tensor in enumerate(saved)}
        return self.again.pop(place).saved_tensors[0]

    def run_again(self) -> list[Tensor]:
        """Run the function as it ran first until it has saved all, and return what it saved, in order."""
        saved: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            saved.append(as_saved(tensor))
            if self.finished and len(saved) == len(self.described):
                raise Enough  # what comes after the last saved tensor would be thrown away
            return tensor.detach()

        args, hooks = self.arguments(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with suppress(Enough), self.surroundings.put_back(), hooks:
            self.f(*args)
        return saved

    def arguments(self) -> tuple:
        """Put the arguments together again."""
        try:
            tensors = self.inputs.saved_tensors
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise changed("a tensor", "after the function ran") from error
        self.refuse_changes(tensors, "after the function ran")  # behind a hook, autograd does not look
        back = dict(zip(self.places, tensors, strict=True))
        return tree_unflatten([back.get(place, leaf) for place, leaf in enumerate(self.leaves)], self.structure)

    def refuse_changes(self, tensors: Sequence[Tensor], when: str) -> None:
        """Refuse to go on from tensors that are no longer what the first run got."""
        for index, (tensor, stamp) in enumerate(zip(tensors, self.stamps, strict=True)):
            if stamp.is_outdated(tensor):
                raise changed(f"tensor {index}", when)

    def compare(self, saved: list["Saved"]) -> None:
        """Refuse a replay that did not do what the first run did."""
        if len(saved) != len(self.described):
            raise ValueError(
                f"the replay saved {len(saved)} tensors, the first run {len(self.described)}: "
                "a checkpointed function must do the same both times"
            )
        for place, (first, second) in enumerate(zip(self.described, saved, strict=True)):
            if first.version != second.version and first.kind == second.kind:
                raise ValueError(
                    f"a parameter of shape {first.kind[0]} was changed in place between the forward pass and the "
                    "replay: step the optimizer after the backward pass"
                )
            if first != second:
                raise ValueError(
                    f"saved tensor {place} is {second} in the replay and was {first}: "
                    "a checkpointed function must do the same both times"
                )


class Enough(Exception):
    """Raised through a replay that has saved all: no error, but the way out of a function."""


def changed(which: str, when: str) -> ValueError:
    """Say that an argument was written to."""
    return ValueError(
        f"{which} of the arguments was changed in place {when}: a replay would start from the changed values; "
        "use the operation that returns a new tensor, or a clone"
    )


class Held(torch.autograd.Function):
    """Save tensors as any operation does, so that hooks around it see them: a measure's, or an outer checkpoint's."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        """Save `tensors`; the result only exists to have a node in the graph."""
        ctx.save_for_backward(*tensors)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        """Refuse: nothing is computed from the result."""
        raise RuntimeError("a held tensor has no backward pass")


ANCHOR = torch.empty(0, requires_grad=True)  # a function of nothing that wants a gradient has no node


def hold(*tensors: Tensor) -> Any:
    """Return a node whose `saved_tensors` are `tensors`; they live as long as it does."""
    with torch.enable_grad():
        return Held.apply(ANCHOR, *tensors).grad_fn


def is_parameter_or_view(tensor: Tensor) -> bool:
    """Tell whether a tensor is a leaf that wants a gradient, such as a parameter, or a view of one."""
    owner = tensor._base if tensor._is_view() and tensor._base is not None else tensor
    return owner.is_leaf and owner.requires_grad


def as_saved(tensor: Tensor) -> Tensor:
    """Cut a tensor off the graph of the replay, unless it is a parameter, which measures must recognize."""
    return tensor if is_parameter_or_view(tensor) else tensor.detach()


@dataclass(frozen=True)
class Stamp:
    """Which version of which storage an argument was; a sparse tensor has no storage, and is not watched."""

    storage: StorageWeakRef | None
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> "Stamp":
        """Note the version of a tensor; one made in inference mode has none."""
        if tensor.layout is not torch.strided or tensor.is_inference():
            return cls(None, 0)
        return cls(StorageWeakRef(tensor.untyped_storage()), tensor._version)

    def is_outdated(self, tensor: Tensor) -> bool:
        """Tell whether the storage was written to since; a copy that a hook brought back was not."""
        if self.storage is None or self.storage.expired():
            return False
        return self.storage.cdata == tensor.untyped_storage()._cdata and tensor._version != self.version


class Saved(NamedTuple):
    """What is remembered of a saved tensor: enough to notice another one in its place."""

    kind: tuple[tuple[int, ...], torch.dtype, torch.device]
    version: int | None

    @classmethod
    def of(cls, tensor: Tensor) -> "Saved":
        """Describe a tensor; the version counts only for parameters, which must not change until the replay."""
        return cls(
            (tuple(tensor.shape), tensor.dtype, tensor.device),
            tensor._version if is_parameter_or_view(tensor) else None,
        )

    def __str__(self) -> str:
        shape, dtype, device = self.kind
        return f"{str(dtype).removeprefix('torch.')} {list(shape)} on {device}"
