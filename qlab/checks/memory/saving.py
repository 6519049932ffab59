"""Check of `count_saved_bytes`: small random modules, each saving something that is easily miscounted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qlab import measure
from qlab.checks import probe
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.topic import TOPIC
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.report import check, part

Layer = tuple[str | int, ...]


@dataclass(frozen=True)
class Drawn:
    """A module, as the names and sizes of its layers, and an input for it."""

    layers: tuple[Layer, ...]
    x: Tensor

    @property
    def told(self) -> str:
        """The module in words."""
        names = ", ".join(TOLD.get(layer[0], f"{layer[0]}{layer[1:] or ''}") for layer in self.layers)
        return names if self.x.dtype == torch.float32 else f"{names} in {str(self.x.dtype)[6:]}"

    def made(self) -> nn.Sequential:
        """Return the module, in the type of the input."""
        return nn.Sequential(*(LAYERS[name](*sizes) for name, *sizes in self.layers)).to(self.x.dtype)


class SquareOfFirstHalf(nn.Module):
    """Square the first half of the channels: autograd keeps a view of them, and so all of their storage."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the squares."""
        return x[:, : x.shape[1] // 2].square()


class ProductOfHalves(nn.Module):
    """Multiply the halves of the channels: autograd keeps two views, at two addresses of one storage."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the products."""
        half = x.shape[1] // 2
        return x[:, :half] * x[:, half:]


LAYERS: dict[str | int, Callable[..., nn.Module]] = {
    layer.__name__: layer for layer in (nn.Linear, nn.GELU, nn.ReLU, nn.Tanh, SquareOfFirstHalf, ProductOfHalves)
}
TOLD = {"SquareOfFirstHalf": "square of the first half", "ProductOfHalves": "product of the halves"}


@dataclass(frozen=True)
class Saved:
    """One tensor that autograd packed: which storage it lies in, and what one might take for its own."""

    storage: int
    storage_bytes: int
    own_bytes: int
    values: int
    address: int
    shape: tuple[int, ...]
    is_view: bool
    of_parameter: bool
    shaped_like_a_parameter: bool
    of_input: bool


@check(TOPIC, "count-saved-bytes", measure.SavedForBackward, measure.saved_bytes, points=4)
def check_count_saved_bytes(count_saved_bytes: LearnerFunction, draw: torch.Generator) -> None:
    """Check `count_saved_bytes(module, x)` on modules that save weights, shared storages, views and other types."""
    with part("what the layers keep, and not their weights"):
        _compare(count_saved_bytes, [_feed_forward(draw, square=square) for square in (False, True)])
    with part("a storage that two operations keep counts once"):
        _compare(count_saved_bytes, [_relu_chain(draw) for _ in range(2)])
    with part("a view keeps the whole of its storage"):
        _compare(count_saved_bytes, [_view_of_half(draw), _two_views(draw)])
    with part("values of 8 bytes and of 2"):
        _compare(count_saved_bytes, [_in_type(dtype, draw) for dtype in (torch.float64, torch.bfloat16)])


def _feed_forward(draw: torch.Generator, *, square: bool = False) -> Drawn:
    """Draw a feed-forward; with `square`, as many rows as inner channels, so that `x` is shaped like the weight."""
    rows, width, inner = drawn(3, 9, draw), drawn(10, 12, draw), drawn(13, 30, draw)
    rows = inner if square else rows
    layers = ("Linear", width, inner), ("GELU",), ("Linear", inner, width)
    return Drawn(layers, torch.randn(rows, width, generator=draw))


def _relu_chain(draw: torch.Generator) -> Drawn:
    rows, a, b, c = drawn(3, 9, draw), drawn(4, 9, draw), drawn(10, 19, draw), drawn(20, 30, draw)
    d = a + drawn(1, 5, draw)
    layers = ("Linear", a, b), ("ReLU",), ("Linear", b, c), ("Tanh",), ("Linear", c, d)
    return Drawn(layers, torch.randn(rows, a, generator=draw))


def _view_of_half(draw: torch.Generator) -> Drawn:
    rows, width, inner = drawn(3, 9, draw), drawn(4, 9, draw), 2 * drawn(5, 15, draw)
    return Drawn((("Linear", width, inner), ("SquareOfFirstHalf",)), torch.randn(rows, width, generator=draw))


def _two_views(draw: torch.Generator) -> Drawn:
    half = _view_of_half(draw)
    return Drawn((half.layers[0], ("ProductOfHalves",)), half.x)


def _in_type(dtype: torch.dtype, draw: torch.Generator) -> Drawn:
    drawn = _feed_forward(draw)
    return Drawn(drawn.layers, drawn.x.to(dtype))


def _compare(count_saved_bytes: LearnerFunction, modules: list[Drawn]) -> None:
    require_numbers(
        [count_saved_bytes.beside(counted, drawn) for drawn in modules],
        [probe.saved_bytes(drawn.made(), drawn.x) for drawn in modules],
        calls=[f"count_saved_bytes({drawn.told}; x of shape {tuple(drawn.x.shape)})" for drawn in modules],
        suspects=lambda: _suspects(modules),
    )


def counted(count_saved_bytes: LearnerFunction, drawn: Drawn) -> Any:
    """Call on a module made here."""
    return count_saved_bytes(drawn.made(), drawn.x)


def _suspects(drawn: list[Drawn]) -> Iterator[Suspect]:
    modules = [(one.made(), one.x) for one in drawn]
    records = [_saved(module, x) for module, x in modules]
    for misconception, thought, count in SLIPS:
        yield Suspect(misconception, thought, doubles([count(saved) for saved in records]))
    all_parameters = [sum(p.nbytes for p in module.parameters()) for module, _ in modules]
    for count in (_once, lambda saved: sum(s.own_bytes for s in saved)):
        values = [count(saved) - taken for saved, taken in zip(records, all_parameters, strict=True)]
        thought = "Not every parameter is saved: leave out those that come by, and do not subtract the rest."
        yield Suspect("subtracts-all-parameters", thought, doubles(values))
    outputs = [_bytes_of_outputs(module, x) for module, x in modules]
    yield Suspect(
        "counts-outputs", "Autograd does not keep every layer's output: count what it packs.", doubles(outputs)
    )


def _saved(module: nn.Module, x: Tensor) -> list[Saved]:
    found, own = [], {p.untyped_storage().data_ptr() for p in module.parameters()}
    shapes = {shape for p in module.parameters() for shape in (tuple(p.shape), tuple(p.shape[::-1]))}
    given = x.untyped_storage().data_ptr()

    def pack(tensor: Tensor) -> Tensor:
        storage, shape = tensor.untyped_storage(), tuple(tensor.shape)
        at = storage.data_ptr()
        found.append(
            Saved(
                storage=at,
                storage_bytes=storage.nbytes(),
                own_bytes=tensor.nbytes,
                values=tensor.numel(),
                address=tensor.data_ptr(),
                shape=shape,
                is_view=tensor._is_view(),
                of_parameter=at in own,
                shaped_like_a_parameter=shape in shapes,
                of_input=at == given,
            )
        )
        return tensor.detach()  # an output that is packed as itself is never freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = module(x)
    del result  # until here it kept every storage alive, so that no two had the same address
    return found


def _bytes_of_outputs(module: nn.Module, x: Tensor) -> int:
    sizes = []
    for layer in module:
        x = layer(x)
        sizes.append(x.nbytes)
    return sum(sizes)


def _once(saved: list[Saved]) -> int:
    return sum({s.storage: s.storage_bytes for s in saved}.values())


def _activations(saved: list[Saved]) -> list[Saved]:
    return [s for s in saved if not s.of_parameter]


def _largest_view(saved: list[Saved]) -> int:
    sizes: dict[int, int] = {}
    for s in _activations(saved):
        sizes[s.storage] = max(sizes.get(s.storage, 0), s.own_bytes)
    return sum(sizes.values())


TWICE = "Two operations, or two views, can keep the same storage: remember which storages you have counted."
VIEW = "A view keeps all of its storage alive, however little of it it shows: ask `untyped_storage().nbytes()`."
WEIGHTS = "A Linear keeps its weight, transposed: leave out what shares a storage with a parameter."
SLIPS: tuple[tuple[str, str, Callable[[list[Saved]], int]], ...] = (
    ("counts-weights", WEIGHTS, _once),
    ("counts-the-view", VIEW, lambda saved: sum({s.storage: s.own_bytes for s in _activations(saved)}.values())),
    ("counts-the-view", VIEW, lambda saved: sum({s.address: s.own_bytes for s in _activations(saved)}.values())),
    ("counts-the-view", VIEW, _largest_view),
    ("counts-weights", WEIGHTS, lambda saved: sum({s.storage: s.own_bytes for s in saved}.values())),
    ("counts-a-storage-twice", TWICE, lambda saved: sum(s.storage_bytes for s in _activations(saved))),
    ("counts-a-storage-twice", TWICE, lambda saved: sum(s.own_bytes for s in _activations(saved))),
    ("counts-weights", f"{WEIGHTS} Then: {TWICE}", lambda saved: sum(s.own_bytes for s in saved)),
    ("counts-weights", f"{WEIGHTS} Then: {TWICE}", lambda saved: sum(s.storage_bytes for s in saved)),
    (
        "tells-tensors-by-shape",
        "Two tensors of one shape can lie in two storages: both count.",
        lambda saved: sum({s.shape: s.storage_bytes for s in _activations(saved)}.values()),
    ),
    (
        "tells-tensors-by-shape",
        "A tensor may have the shape of a weight and be none: compare storages.",
        lambda saved: _once([s for s in saved if not s.shaped_like_a_parameter]),
    ),
    (
        "leaves-out-views",
        "A view of an activation counts: leave out only what shares a storage with a parameter.",
        lambda saved: _once([s for s in _activations(saved) if not s.is_view]),
    ),
    (
        "assumes-four-bytes",
        "A value takes 4 bytes only in FP32.",
        lambda saved: sum({s.storage: 4 * s.values for s in _activations(saved)}.values()),
    ),
    (
        "counts-values",
        "These are values, not bytes.",
        lambda saved: sum({s.storage: s.values for s in _activations(saved)}.values()),
    ),
    (
        "leaves-out-the-input",
        "Where autograd keeps the input, it counts.",
        lambda saved: _once([s for s in _activations(saved) if not s.of_input]),
    ),
)
