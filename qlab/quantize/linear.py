"""A linear layer that keeps its weight as packed codes and dequantizes it when it is called."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qlab.packing import pack_codes, packed_bytes, unpack_codes
from qlab.quantize.grid import Grid, Quantized, code_range, quantize_symmetric
from qlab.quantize.tiles import PER_ROW, Tile


class QuantizedLinear(nn.Module):
    """A weight-only quantized `nn.Linear`: packed codes and scales are all it keeps, and all its `state_dict` holds.

    It is made empty, to load a `state_dict` into, or by `from_linear`. `scale` is in units of the weight per code step,
    and stays in FP32 whatever type the module is moved to: its error would be that of every weight in its tile.
    Shapes:  input (*batch, in_features), output (*batch, out_features).
    """

    def __init__(self, in_features: int, out_features: int, *, bits: int, tile: Tile = PER_ROW, bias: bool = True):
        super().__init__()
        code_range(bits, signed=True)
        self.in_features, self.out_features, self.bits, self.tile = in_features, out_features, bits, tile
        shape = (out_features, in_features)
        codes = torch.zeros(packed_bytes(out_features * in_features, bits=bits), dtype=torch.uint8)
        self.register_buffer("packed_codes", codes)
        self.register_buffer("scale", torch.ones(tile.count(shape)))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, bits: int, tile: Tile = PER_ROW) -> "QuantizedLinear":
        """Quantize the weight of `linear`, symmetric; its bias is kept as it is.

        Errors:  ValueError if `bits` is not 2 to 8 or the weight holds NaN or infinity.
        """
        made = cls(linear.in_features, linear.out_features, bits=bits, tile=tile, bias=linear.bias is not None)
        made.to(linear.weight.device)
        quantized = quantize_symmetric(linear.weight.detach(), bits=bits, tile=tile)
        _, largest = code_range(bits, signed=True)
        made.packed_codes.copy_(pack_codes((quantized.codes + largest).view(torch.uint8).flatten(), bits=bits))
        made.scale.copy_(quantized.scale)
        if linear.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
        return made.train(linear.training)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weight as its codes stand for it, made anew at each access."""
        _, largest = code_range(self.bits, signed=True)
        count = self.out_features * self.in_features
        codes = unpack_codes(self.packed_codes, bits=self.bits, count=count).view(torch.int8) - largest
        grid = Grid(self.scale, None, self.bits, self.tile)
        return Quantized(codes.view(self.out_features, self.in_features), grid).dequantize()

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiply by the dequantized weight, in the type of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)

    def _apply(self, *change: Any, **options: Any) -> "QuantizedLinear":
        """Move the buffers as `nn.Module` does, for `to`, `half` and their like, and keep the scales' type."""
        scale = self.scale
        super()._apply(*change, **options)
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, {self.tile}"


def quantize_linears(
    module: nn.Module, *, bits: int, tile: Tile = PER_ROW, keep: tuple[nn.Module, ...] = ()
) -> nn.Module:
    """Replace the linear layers of `module` by their quantized form, as `replace_linears` does; returns `module`."""
    return replace_linears(module, lambda _, one: QuantizedLinear.from_linear(one, bits=bits, tile=tile), keep=keep)


def replace_linears(
    module: nn.Module, make: Callable[[str, nn.Linear], nn.Module], *, keep: tuple[nn.Module, ...] = ()
) -> nn.Module:
    """Put `make(name, layer)` in the place of every `nn.Linear` inside `module` but those in `keep`; returns `module`.

    A layer whose weight another module holds too, as a tied head does, is left as it is: its weight would be stored a
    second time. One that is used in several places stays one.
    """
    holders = Counter(id(held) for inner in module.modules() for held in inner.parameters(recurse=False))
    made: dict[nn.Module, nn.Module] = {}
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if name and isinstance(layer, nn.Linear) and layer not in keep and holders[id(layer.weight)] == 1:
            made[layer] = made.get(layer) or make(name, layer)
            module.set_submodule(name, made[layer])
    return module
