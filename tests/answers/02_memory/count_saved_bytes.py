"""Answers to `count_saved_bytes`."""

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from qlab import measure
from tests.answers.bank import Bank

BANK = Bank("count-saved-bytes")
BANK.add("by_qlab", measure.saved_bytes)


def saved_by(module, x):
    """Return every tensor that autograd packs."""
    tensors = []

    def pack(tensor):
        tensors.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return tensors


def at(tensor):
    return tensor.untyped_storage().data_ptr()


def activations_of(module, x):
    own = {at(parameter) for parameter in module.parameters()}
    return [tensor for tensor in saved_by(module, x) if at(tensor) not in own]


@BANK.right
def from_a_list_of_tensors(module, x):
    return sum({at(tensor): tensor.untyped_storage().nbytes() for tensor in activations_of(module, x)}.values())


@BANK.right
def by_a_loop_over_storages(module, x):
    seen, total = [at(parameter) for parameter in module.parameters()], 0
    for tensor in saved_by(module, x):
        if at(tensor) not in seen:
            seen.append(at(tensor))
            total += tensor.untyped_storage().size()
    return torch.tensor(total)


@BANK.right
def with_the_parameters_told_by_their_base(module, x):
    sizes = {}
    for tensor in saved_by(module, x):
        base = tensor._base if tensor._base is not None else tensor
        if not isinstance(base, nn.Parameter):
            sizes[tensor.untyped_storage()._cdata] = len(tensor.untyped_storage())
    return float(sum(sizes.values()))


@BANK.right
def all_storages_less_those_of_saved_parameters(module, x):
    own = {at(parameter): parameter.nbytes for parameter in module.parameters()}
    sizes = {at(tensor): tensor.untyped_storage().nbytes() for tensor in saved_by(module, x)}
    return sum(sizes.values()) - sum(size for address, size in own.items() if address in sizes)


@BANK.right
def by_walking_the_graph(module, x):
    own, sizes = {at(parameter) for parameter in module.parameters()}, {}
    result = module(x)
    nodes, seen = [result.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        tensors = [tensor for tensor in saved if isinstance(tensor, torch.Tensor) and at(tensor) not in own]
        sizes |= {at(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
        nodes += [function for function, _ in node.next_functions]
    return sum(sizes.values())


@BANK.right
def in_a_numpy_table(module, x):
    own = [at(parameter) for parameter in module.parameters()]
    rows = np.array([(at(tensor), tensor.untyped_storage().nbytes()) for tensor in saved_by(module, x)])
    return np.unique(rows[~np.isin(rows[:, 0], own)], axis=0)[:, 1].sum()


@BANK.right
def with_an_input_that_wants_a_gradient(module, x):
    return from_a_list_of_tensors(module, x.requires_grad_())


@BANK.right
def after_a_backward_pass(module, x):
    total = from_a_list_of_tensors(module, x)
    module(x).sum().backward()
    return total


@BANK.wrong("counts-weights")
def weights_too(module, x):
    return sum({at(tensor): tensor.untyped_storage().nbytes() for tensor in saved_by(module, x)}.values())


@BANK.wrong("counts-weights")
def everything_that_comes_by(module, x):
    return sum(tensor.nbytes for tensor in saved_by(module, x))


@BANK.wrong("counts-weights")
def parameters_told_by_their_type(module, x):
    return sum(tensor.nbytes for tensor in saved_by(module, x) if not isinstance(tensor, nn.Parameter))


@BANK.wrong("counts-weights")
def parameters_told_by_identity(module, x):
    own = {id(parameter) for parameter in module.parameters()}
    kept = [tensor for tensor in saved_by(module, x) if id(tensor) not in own]
    return sum({at(tensor): tensor.untyped_storage().nbytes() for tensor in kept}.values())


@BANK.wrong("counts-a-storage-twice")
def each_tensor_once(module, x):
    return sum(tensor.untyped_storage().nbytes() for tensor in activations_of(module, x))


@BANK.wrong("counts-a-storage-twice")
def own_bytes_of_each_tensor(module, x):
    return sum(tensor.nbytes for tensor in activations_of(module, x))


@BANK.wrong("counts-the-view")
def own_bytes_of_each_python_object(module, x):
    return sum({id(tensor): tensor.nbytes for tensor in activations_of(module, x)}.values())


@BANK.wrong("counts-the-view")
def what_the_view_shows(module, x):
    return sum({at(tensor): tensor.numel() * tensor.element_size() for tensor in activations_of(module, x)}.values())


@BANK.wrong("counts-a-storage-twice")
def storages_told_by_the_address_of_a_tensor(module, x):
    sizes = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in activations_of(module, x)}
    return sum(sizes.values())


@BANK.wrong("counts-a-storage-twice")
def storages_told_by_the_python_object(module, x):
    return sum({id(tensor): tensor.untyped_storage().nbytes() for tensor in activations_of(module, x)}.values())


@BANK.wrong("counts-the-view")
def the_largest_view(module, x):
    sizes = {}
    for tensor in activations_of(module, x):
        sizes[at(tensor)] = max(sizes.get(at(tensor), 0), tensor.nbytes)
    return sum(sizes.values())


@BANK.wrong("tells-tensors-by-shape")
def storages_told_by_shape(module, x):
    return sum({t.shape: t.untyped_storage().nbytes() for t in activations_of(module, x)}.values())


@BANK.wrong("tells-tensors-by-shape")
def parameters_told_by_shape(module, x):
    own = {shape for parameter in module.parameters() for shape in (parameter.shape, parameter.shape[::-1])}
    return sum({at(t): t.untyped_storage().nbytes() for t in saved_by(module, x) if t.shape not in own}.values())


@BANK.wrong("leaves-out-views")
def no_views(module, x):
    return sum({at(t): t.untyped_storage().nbytes() for t in saved_by(module, x) if not t._is_view()}.values())


@BANK.wrong("wrong-value")
def parameters_told_by_their_rows(module, x):
    return sum({at(t): t.untyped_storage().nbytes() for t in saved_by(module, x) if len(t) == len(x)}.values())


@BANK.wrong("assumes-four-bytes")
def four_bytes_a_value(module, x):
    return sum(
        {at(t): t.untyped_storage().nbytes() // t.element_size() * 4 for t in activations_of(module, x)}.values()
    )


@BANK.wrong("counts-values")
def values(module, x):
    return sum({at(tensor): tensor.numel() for tensor in activations_of(module, x)}.values())


@BANK.wrong("leaves-out-the-input")
def without_the_input(module, x):
    kept = [tensor for tensor in activations_of(module, x) if at(tensor) != at(x)]
    return sum({at(tensor): tensor.untyped_storage().nbytes() for tensor in kept}.values())


@BANK.wrong("subtracts-all-parameters")
def all_less_all_parameters(module, x):
    return weights_too(module, x) - sum(parameter.nbytes for parameter in module.parameters())


@BANK.wrong("counts-outputs")
def outputs_of_the_layers(module, x):
    total = 0
    for layer in module:
        x = layer(x)
        total += x.nbytes
    return total


@BANK.wrong("wrong-value")
def parameters_instead(module, x):
    return sum(parameter.nbytes for parameter in module.parameters())


@BANK.wrong("wrong-value")
def nothing_is_saved_without_a_graph(module, x):
    with torch.no_grad():
        return from_a_list_of_tensors(module, x)


@BANK.wrong("returns-nothing")
def forgets_to_return(module, x):
    from_a_list_of_tensors(module, x)


@BANK.wrong("wrong-shape")
def a_list_of_sizes(module, x):
    return [tensor.nbytes for tensor in activations_of(module, x)]


@BANK.crashes
def hooks_without_unpack(module, x):
    with saved_tensors_hooks(lambda tensor: tensor):
        return module(x)
