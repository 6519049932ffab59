"""Adapters put into a model by the names of its layers, and taken out again."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from qlab.lora.adapted import AdaptedLinear

Make = Callable[[nn.Linear], nn.Module]
NAMES_TOLD = 4


def inject(model: nn.Module, pattern: str, make: Make) -> tuple[str, ...]:
    """Replace each linear layer whose name `pattern` finds by `make(layer)`, freeze all else, return the names.

    The pattern is a regular expression, searched for anywhere in the dotted name: "attention|ffn", r"\\.query$".
    Every layer is made before the first is put in its place: an error leaves the model's layers as they are.
    Errors:  ValueError if the pattern is no regular expression or finds no linear layer, or finds one that shares its
             weight (a head tied to the embedding), is adapted already, or is of a special kind.
    """
    chosen = _chosen(model, pattern)
    adapters = {id(parameter) for parameter in _adapter_parameters(model)}
    old = [parameter for parameter in model.parameters() if id(parameter) not in adapters]
    wanted = [parameter.requires_grad for parameter in old]
    try:
        made = {name: make(layer) for name, layer in chosen.items()}
    except BaseException:
        for parameter, trained in zip(old, wanted, strict=True):
            parameter.requires_grad_(trained)  # `make` may have frozen some
        raise
    for parameter in old:
        parameter.requires_grad_(False)
    for name, layer in made.items():
        _put(model, name, layer.train(chosen[name].training))
    return tuple(made)


def unload(model: nn.Module) -> tuple[str, ...]:
    """Replace each adapted layer by a plain linear one with the merged weight; return the names.

    Errors:  ValueError if the model has no adapted layer, or is one itself.
    """
    adapted = adapted_layers(model)
    if "" in adapted:
        raise ValueError(f"the model is a {type(model).__name__} itself: take its merged_linear() in its place")
    for name, layer in adapted.items():
        _put(model, name, layer.merged_linear())
    return tuple(adapted)


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the model's layers with an adapter by name.

    Errors:  ValueError if there is none.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}
    if not found:
        raise ValueError(f"a {type(model).__name__} without adapted layers was given: inject some first")
    return found


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that an optimizer should get: those not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def frozen_bytes(model: nn.Module) -> int:
    """Return the bytes of all frozen parameters and buffers, shared storages counted once."""
    held = [*(p for p in model.parameters() if not p.requires_grad), *model.buffers()]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in held}
    return sum(storages.values())


def _chosen(model: nn.Module, pattern: str) -> dict[str, nn.Linear]:
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise ValueError(f"pattern must be a regular expression, got {pattern!r}: {error}") from error
    linears = {name: m for name, m in model.named_modules(remove_duplicate=False) if name and isinstance(m, nn.Linear)}
    chosen = {name: layer for name, layer in linears.items() if search(name)}
    if not chosen:
        shown = ", ".join(list(linears)[:NAMES_TOLD]) + (", …" if len(linears) > NAMES_TOLD else "")
        raise ValueError(f"no linear layer matches {pattern!r}; the model has {shown or 'none'}")
    owners = _owners_of_parameters(model)
    inside = {id(m) for layer in model.modules() if isinstance(layer, AdaptedLinear) for m in layer.modules()}
    for name, layer in chosen.items():
        others = [owner for owner in owners[id(layer.weight)] if owner != name]
        if others:
            raise ValueError(f"{name} shares its weight with {', '.join(others)}: leave it out of {pattern!r}")
        if id(layer) in inside:
            raise ValueError(f"{name} has an adapter already: leave it out of {pattern!r}, or unload it first")
        if type(layer) is not nn.Linear:
            raise ValueError(f"{name} is a {type(layer).__name__}, not a plain nn.Linear: leave it out of {pattern!r}")
    return chosen


def _owners_of_parameters(model: nn.Module) -> dict[int, list[str]]:
    owners = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(name.rpartition(".")[0])
    return owners


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _adapter_parameters(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            yield from (module.lora_a, module.lora_b)
