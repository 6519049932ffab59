"""The bill of one training step as people read it: named parts, the peak, whether it fits, what would make it fit."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from qlab.activations import Run
from qlab.budget import Bill, backward_moments, precision_for, training_bill
from qlab.config import ModelConfig, parameter_parts
from qlab.memory import GB, RECIPES, GiB, Recipe, adapter_parameters, state_bytes, zero_state_bytes

GPU_SIZES_GB = (16, 24, 40, 80, 141)
MOST_DEVICES = 1024  # the largest cluster that advice looks at
UNITS = {"gb": ("GB", GB), "gib": ("GiB", GiB)}


@dataclass(frozen=True)
class Part:
    """One part of a bill, in bytes; parts do not all live at once."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a bill is asked for: a model, a recipe, the load of each device, and how ZeRO shares states out.

    Errors:  ValueError if `stage` is not 0, 1, 2 or 3, or `devices` is below 1.
    """

    config: ModelConfig
    recipe: Recipe
    run: Run
    stage: int = 0
    devices: int = 1

    def __post_init__(self):
        zero_state_bytes(state_bytes(self.config, self.recipe), stage=self.stage, devices=self.devices)

    @property
    def title(self) -> str:
        """Model, recipe and load in one line."""
        load = f"batch {self.run.batch:,}, sequence {self.run.sequence:,}"
        words = [self.config.name, self.recipe.name, load]
        words += ["checkpointed"] if self.run.checkpointed else []
        words += [f"ZeRO stage {self.stage}"] if self.stage else []
        words += [f"on each of {self.devices:,} devices"] if self.devices > 1 else []
        return ", ".join(words)


@dataclass(frozen=True)
class Budget:
    """A device's memory in bytes, and the words it was given in."""

    bytes: int
    said: str


def run_for(recipe: Recipe, *, batch: int, sequence: int, checkpointed: bool = False) -> Run:
    """Describe a load in the precision that `recipe` multiplies in.

    Errors:  ValueError if `batch` or `sequence` is below 1.
    """
    return Run(batch=batch, sequence=sequence, precision=precision_for(recipe), checkpointed=checkpointed)


def device_bill(order: Order) -> Bill:
    """Predict what one device needs; on one device, or at stage 0, exactly `training_bill`.

    From stage 2 a gradient is whole until it is reduced, and at stage 3 one layer's weights are gathered at a time:
    both are counted as if the largest layer or table were there at the peak, so the estimate is an upper one.
    Source:  Rajbhandari et al. 2020, arXiv:1910.02054, section 5.
    """
    config, recipe = order.config, order.recipe
    bill, at = training_bill(config, recipe, order.run), backward_moments(config, recipe, order.run)
    states = zero_state_bytes(bill.states, stage=order.stage, devices=order.devices)
    spared = _spared_gradients(order) if states.gradients < bill.states.gradients else 0
    gathered = _largest_gathered(order) if states.weights < bill.states.weights else 0
    beside = max(at.loss, at.last_layer, at.first_layer - spared, at.embedding - spared)
    peak = states.weights + states.master + states.optimizer + gathered + beside
    return replace(bill, states=states, temporary=bill.temporary + gathered, peak=peak)


def _spared_gradients(order: Order) -> int:
    """Count the gradients that lie on other devices when the first layer is differentiated."""
    config, recipe = order.config, order.recipe
    gradients = state_bytes(config, recipe).gradients
    each = 0 if recipe.adapter_rank else recipe.gradient_bytes
    table = round(each * config.vocabulary * config.width)
    layer = round(each * parameter_parts(config).per_layer) or gradients // config.layers
    reduced = max(0, gradients - layer - table)
    return max(0, reduced - -(-reduced // order.devices) - max(layer, table))


def _largest_gathered(order: Order) -> int:
    config, recipe = order.config, order.recipe
    layer = recipe.matrix_bytes * parameter_parts(config).per_layer
    return round(max(layer, recipe.other_bytes * config.vocabulary * config.width))


def parts(order: Order) -> tuple[Part, ...]:
    """Name the parts of a device's bill, those of 0 bytes too, so that their sum is never below the peak."""
    config, recipe, bill = order.config, order.recipe, device_bill(order)
    adapters = round(adapter_parameters(config, rank=recipe.adapter_rank) * recipe.adapter_bytes)
    adapters = -(-adapters // order.devices) if order.stage == 3 else adapters
    activations = bill.activations.total + bill.activations.recomputed_layer
    # inside a layer's backward pass more is in use than the bill's own buffers, where they are small
    temporary = max(bill.temporary, bill.peak - bill.states.total - activations)
    return (
        Part("weights", bill.states.weights - adapters),
        Part("adapters", adapters),
        Part("master weights", bill.states.master),
        Part("gradients", bill.states.gradients),
        Part("optimizer", bill.states.optimizer),
        Part("activations", activations),
        Part("temporary buffers", temporary),
    )


def budget_of(text: str) -> Budget:
    """Read a device's memory from `48GB`, `48GiB` or `48`, which means GB.

    Errors:  ValueError, with the forms that are known, for anything else and for 0.
    """
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*([a-z]*)", text.strip(), re.ASCII | re.IGNORECASE)
    if not found or found[2].lower() not in (*UNITS, "") or not Fraction(found[1]):
        raise ValueError(f"a device's memory is a number above 0 in GB or GiB, as 48GB, 48GiB or 48, got {text!r}")
    unit, size = UNITS[found[2].lower() or "gb"]
    count = int(Fraction(found[1]) * size)
    other = f"{shown(count, GiB)} GiB" if size == GB else in_gb(count)
    return Budget(count, f"{found[1]} {unit} ({'' if found[2] else 'no unit means GB; '}= {other})")


def shown(count: int, unit: int) -> str:
    """Write bytes in units of `unit`: two decimals from 1 up, four below."""
    value = count / unit
    return f"{value:,.2f}" if value >= 1 else f"{value:.4f}"


def in_gb(count: int) -> str:
    """Write bytes in GB."""
    return f"{shown(count, GB)} GB"


def both(count: int) -> str:
    """Write bytes in GB and in GiB."""
    return f"{in_gb(count)} ({shown(count, GiB)} GiB)"


def as_table(order: Order) -> str:
    """Write the parts above 0 bytes, their sum, and the peak, in GB and GiB."""
    named = [part for part in parts(order) if part.bytes]
    rows = [(part.name, part.bytes) for part in named]
    rows += [("all parts", sum(part.bytes for part in named)), ("at one moment, at most", device_bill(order).peak)]
    lines = [f"{name:22} {shown(count, GB):>14} {shown(count, GiB):>14}" for name, count in rows]
    return "\n".join([f"{'':22} {'GB':>14} {'GiB':>14}", *lines])


def as_text(order: Order, budget: Budget | None = None) -> str:
    """Write the whole answer: what was asked, the table, whether it fits, and what else would."""
    about = f"Products in {order.run.precision.name}; activations are those of qlab.model.Decoder with fused attention"
    about += ", and an upper estimate beside adapters." if order.recipe.adapter_rank else "."
    rest = "Not counted: rounding to allocator blocks, fragmentation, matrix workspaces, the device's own context."
    also = advice(order, budget) if budget else ()
    return "\n".join([order.title, "", as_table(order), "", verdict(order, budget), *also, "", about, rest])


def fits(order: Order, budget: Budget) -> bool:
    """Tell whether the peak is within the budget."""
    return device_bill(order).peak <= budget.bytes


def verdict(order: Order, budget: Budget | None = None) -> str:
    """Say whether it fits, and by how much; without a budget, the smallest usual GPU that holds the peak."""
    peak = device_bill(order).peak
    usual = next((size for size in GPU_SIZES_GB if peak <= size * GB), GPU_SIZES_GB[-1])
    given = budget or Budget(usual * GB, f"a GPU of {usual} GB")
    if peak <= given.bytes:
        return f"It fits {given.said}, with {in_gb(given.bytes - peak)} to spare."
    return f"It does not fit {given.said}: {in_gb(peak - given.bytes)} too much."


def largest_fitting_batch(order: Order, budget: Budget) -> int:
    """Find the largest batch that fits, 0 if none does: `qlab.budget.largest_batch`, with states shared out too."""

    def peak(batch: int) -> int:
        return device_bill(replace(order, run=replace(order.run, batch=batch))).peak

    return bisect_right(range(1, 2**40), budget.bytes, key=peak)


def advice(order: Order, budget: Budget) -> Iterator[str]:
    """Say, one sentence each and with its number, what fits: a batch, checkpointing, another recipe, ZeRO."""
    largest = largest_fitting_batch(order, budget)
    if largest:
        yield f"Batch: {largest:,} is the largest that fits."
    else:
        single = device_bill(replace(order, run=replace(order.run, batch=1))).peak
        over = f"{in_gb(single - budget.bytes)} more than the {in_gb(budget.bytes)} given"
        yield f"Batch: none fits, batch 1 needs {in_gb(single)}, {over}."
    if fits(order, budget):
        return
    if not order.run.checkpointed:
        yield f"Checkpointing: the peak would be {_told(_checkpointed(order), budget)}."
    yield f"Recipe: {_other_recipes(order, budget)}."
    yield f"ZeRO: {_more_devices(order, budget)}."


def _other_recipes(order: Order, budget: Budget) -> str:
    """Name the recipes that fit; where none does, those that fit with checkpointing, else the smallest."""
    others = [_with_recipe(order, recipe) for recipe in RECIPES.values() if recipe != order.recipe]
    frugal = [_checkpointed(other) for other in others]
    for candidates, how in ((others, ""), (frugal, ", with checkpointing")):
        fitting = [f"{c.recipe.name} ({in_gb(device_bill(c).peak)})" for c in candidates if fits(c, budget)]
        if fitting:
            return f"{', '.join(fitting)} would fit{how}"
    smallest = min(frugal, key=lambda c: device_bill(c).peak)
    return f"no other fits; the smallest, {smallest.recipe.name} with checkpointing, needs {_told(smallest, budget)}"


def _more_devices(order: Order, budget: Budget) -> str:
    """Name the fewest devices, by doubling, and the first stage on them that fit; if need be with checkpointing."""
    counts = [order.devices * 2**k for k in range(1, 11) if order.devices * 2**k <= MOST_DEVICES]
    larger = [replace(order, devices=devices, stage=stage) for devices in counts for stage in (1, 2, 3)]
    alone = fits(_checkpointed(order), budget)  # then more devices are not what is missing
    candidates = larger + [_checkpointed(c) for c in larger if not alone]
    if not candidates:
        return f"advice ends at {MOST_DEVICES:,} devices"
    best = next((c for c in candidates if fits(c, budget)), candidates[-1])
    how = " with checkpointing" if best.run.checkpointed else ""
    return f"on each of {best.devices:,} devices stage {best.stage}{how} needs {_told(best, budget)}"


def _told(order: Order, budget: Budget) -> str:
    peak = device_bill(order).peak
    return f"{in_gb(peak)}, {'which fits' if peak <= budget.bytes else f'still {in_gb(peak - budget.bytes)} too much'}"


def _checkpointed(order: Order) -> Order:
    return replace(order, run=replace(order.run, checkpointed=True))


def _with_recipe(order: Order, recipe: Recipe) -> Order:
    return replace(order, recipe=recipe, run=replace(order.run, precision=precision_for(recipe)))
