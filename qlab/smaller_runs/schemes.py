"""Every quantization scheme of topics 03 to 05 as a way to store and run the course model."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qlab import outliers, qat
from qlab.calibrate import DynamicLinear, LearnedStep, StaticLinear, calibrate
from qlab.codebooks import FP4, NF4, dynamic_map, kmeans_codebook, quantile_codebook, quantize_blockwise
from qlab.damage import all_schemes, rounded_copy
from qlab.model import Decoder
from qlab.outliers.trials import Hidden, Remedy, RoundedLinear
from qlab.packing import pack_codes
from qlab.quantize import (
    PER_ROW,
    PER_TENSOR,
    TILES,
    Grid,
    Quantized,
    Tile,
    per_group,
    quantize_affine,
    quantize_linears,
    quantize_symmetric,
    quantize_with,
    replace_linears,
)
from qlab.smaller_runs.points import FLOATS, INTEGERS, UNPACKS, Encode, Way, stored_tensors

OUTLIER_DIMENSIONS, STRENGTH = (3, 40, 77, 120, 181, 240), 64
LEARNING_RATES = {4: 3e-4, 3: 3e-4, 2: 1e-3}  # as benchmarks/qat_recovery.py trains
AFFINE = {"affine per row": PER_ROW, "affine groups of 64": per_group(64)}
FITTED = {"k-means per tensor": kmeans_codebook, "quantiles per tensor": quantile_codebook}
FIXED = {"NF4 blocks of 64": NF4, "FP4 blocks of 64": FP4, "dynamic blocks of 64": dynamic_map(signed=True)}
REMEDY_TILES = {"a scale a token and a row": PER_ROW, "blocks of 64": per_group(64), "Hadamard rotation": PER_ROW}


def encoded(family: str, bits: int) -> Encode:
    """Return what a scheme of topic 03 writes for a weight: packed codes, and every constant they need.

    Errors:  ValueError if there is no such family.
    """
    if family in TILES:
        return lambda _, weight: _parts(quantize_symmetric(weight, bits=bits, tile=TILES[family]))
    if family in AFFINE:
        return lambda _, weight: _parts(quantize_affine(weight, bits=bits, tile=AFFINE[family]))
    if family in FITTED:
        return lambda _, weight: _blockwise(weight, FITTED[family](weight, bits=bits), None)
    if family in FIXED:
        return lambda _, weight: _blockwise(weight, FIXED[family], 64)
    raise ValueError(f"families must be among {', '.join([*TILES, *AFFINE, *FITTED, *FIXED])}, got {family}")


def rounding_ways(model: Decoder, *, widths: Collection[int] = range(2, 9)) -> Iterator[Way]:
    """Yield FP32, the checkpoint's BF16, topic 03's schemes of some bits with rounded weights, and two kept packed."""
    yield Way("03", "FP32", FLOATS, lambda: (model, stored_tensors_fp32(model)))
    yield Way("03", "BF16", "BF16 products", lambda: (copy.deepcopy(model).bfloat16(), stored_tensors(model)))
    for scheme in (one for one in all_schemes() if one.bits in widths):
        yield Way("03", scheme.name, FLOATS, partial(_rounded, model, scheme.round_trip, scheme.family, scheme.bits))
    for bits in (8, 4):
        yield Way("03", f"packed per row, {bits} bits", UNPACKS, partial(_packed, model, bits))


def trained_ways(model: Decoder, text: UInt8[Tensor, " n"], *, steps: int, seed: int) -> Iterator[Way]:
    """Yield topic 04's weights trained on a coarse grid with a learned step."""
    for granularity, bits in (("per tensor", 4), ("per tensor", 3), ("per row", 2)):
        recipe = qat.QatRecipe(steps=steps, learning_rate=LEARNING_RATES[bits], seed=seed)
        make = partial(_trained, model, text, recipe, granularity, bits)
        yield Way("04", f"learned step {granularity}, {bits} bits", FLOATS, make)


def int8_ways(model: Decoder, windows: Int[Tensor, "n sequence"]) -> Iterator[Way]:
    """Yield topic 04's layers that multiply in int8: inputs rounded token by token, and to ranges calibrated before."""
    yield Way("04", "int8, dynamic", INTEGERS, partial(_int8, model, lambda _, layer: DynamicLinear(layer)))
    yield Way("04", "int8, calibrated", INTEGERS, partial(_calibrated, model, windows))


def remedy_ways(model: Decoder, windows: Int[Tensor, "n sequence"]) -> Iterator[Way]:
    """Yield topic 05's remedies on the model with planted outliers, whose FP32 output is that of the course model."""
    planted = outliers.plant_outliers(copy.deepcopy(model), torch.tensor(OUTLIER_DIMENSIONS), strength=STRENGTH)
    hidden = outliers.norm_outputs(planted, [windows])
    for name, remedy in outliers.REMEDIES.items():
        tile = REMEDY_TILES.get(name, PER_ROW if name.startswith("clipping") else PER_TENSOR)
        yield Way("05", f"outliers: {name}", FLOATS, partial(_remedied, planted, remedy, hidden, tile))


def stored_tensors_fp32(model: Decoder) -> dict[str, Tensor]:
    """Return what a file of `model` in FP32 holds."""
    kept = stored_tensors(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name in kept}


def _parts(quantized: Quantized) -> dict[str, Tensor]:
    lowest, _ = quantized.grid.codes
    codes = (quantized.codes.to(torch.int16) - lowest).to(torch.uint8)
    parts = {"codes": pack_codes(codes.flatten(), bits=quantized.grid.bits), "scale": quantized.scale}
    return parts if quantized.zero_point is None else parts | {"zero_point": quantized.zero_point}


def _blockwise(weight: Tensor, codebook: Tensor, block_size: int | None) -> dict[str, Tensor]:
    codes = quantize_blockwise(weight, codebook, block_size=block_size)
    constants = {"codebook": codes.codebook} if codes.absmax is None else {"absmax": codes.absmax}
    return {"codes": codes.packed} | constants


def _rounded(model: Decoder, round_trip: Callable, family: str, bits: int) -> tuple[nn.Module, Mapping[str, Tensor]]:
    rounded, _ = rounded_copy(model, round_trip, keep=(model.head,))
    return rounded, stored_tensors(model, encoded(family, bits))


def _packed(model: Decoder, bits: int) -> tuple[nn.Module, Mapping[str, Tensor]]:
    packed = quantize_linears(copy.deepcopy(model), bits=bits)
    return packed, _codes_as_they_are(packed)


def _trained(
    model: Decoder, text: Tensor, recipe: qat.QatRecipe, granularity: str, bits: int
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    torch.manual_seed(recipe.seed)
    trial, tile = copy.deepcopy(model).train(), TILES[granularity]
    qat.prepare(trial, lambda weight: LearnedStep(weight, bits=bits, tile=tile), keep=(trial.head,))
    qat.train(trial, text, recipe)
    layers = {name: layer for name, layer in trial.named_modules() if parametrize.is_parametrized(layer, "weight")}
    grids = {
        f"{name}.weight": Grid(layer.parametrizations.weight[0].scale.detach().abs(), None, bits, tile)
        for name, layer in layers.items()
    }
    qat.convert(trial)
    return trial.eval(), stored_tensors(trial, lambda name, weight: _parts(quantize_with(weight, grids[name])))


def _int8(model: Decoder, make: Callable[[str, nn.Linear], nn.Module]) -> tuple[nn.Module, Mapping[str, Tensor]]:
    replaced = replace_linears(copy.deepcopy(model), make)
    return replaced, _codes_as_they_are(replaced)


def _calibrated(model: Decoder, windows: Tensor) -> tuple[nn.Module, Mapping[str, Tensor]]:
    ranges = calibrate(model, windows.split(1))
    return _int8(model, lambda name, layer: StaticLinear(layer, ranges[name].grid(bits=8)))


def _remedied(model: Decoder, remedy: Remedy, hidden: Hidden, tile: Tile) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """Make the remedy; a weight that it rounded is on its grid, so that its codes are found by rounding once more."""
    made = outliers.apply_remedy(model, remedy, hidden)
    tensors = stored_tensors(made)
    for name, layer in made.named_modules():
        if isinstance(layer, RoundedLinear):
            del tensors[f"{name}.weight"]
            parts = _parts(quantize_symmetric(layer.weight, bits=8, tile=tile))
            tensors |= {f"{name}.weight.{part}": stored for part, stored in parts.items()}
    return made, tensors


def _codes_as_they_are(model: nn.Module) -> dict[str, Tensor]:
    """Store the codes and the FP32 constants of layers in integers as they are, and all else in BF16."""
    state, constants = model.state_dict(), (".scale", ".input_scale")
    return {n: state[n] if n.endswith(constants) else tensor for n, tensor in stored_tensors(model).items()}
