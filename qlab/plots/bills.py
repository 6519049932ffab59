"""The bill of one training step as an SVG drawing: stacked parts, the peak, and the sizes of usual GPUs."""

from collections.abc import Sequence

from qlab.activations import Run
from qlab.bill import GPU_SIZES_GB, Order, Part, both, device_bill, in_gb, parts
from qlab.config import ModelConfig
from qlab.memory import GB, Recipe
from qlab.plots.drawings import drawing, label

LEFT, RIGHT, COLUMN = 8, 752, 376
# Okabe and Ito 2008, told apart with every common kind of color blindness; the second color is the letter's on it
PART_COLORS = {
    "weights": ("#0072b2", "#fff"),
    "adapters": ("#cc79a7", "#000"),
    "master weights": ("#56b4e9", "#000"),
    "gradients": ("#d55e00", "#000"),
    "optimizer": ("#e69f00", "#000"),
    "activations": ("#009e73", "#000"),
    "temporary buffers": ("#9a9a9a", "#000"),
}
LETTERS = dict(zip(PART_COLORS, "ABCDEFG", strict=True))  # so that no part is known by its color alone
LETTER_ROOM = 16
LABEL_ROOM = 30
ZOOM = 8  # a bill this many times smaller than the smallest GPU is drawn alone


def bill_svg(
    config: ModelConfig, recipe: Recipe, run: Run, *, gpu_sizes_gb: Sequence[int] = GPU_SIZES_GB, note: str = ""
) -> str:
    """Draw the parts of a step's bill end to end, the most that is there at one moment, and the GPUs it passes.

    Units:   `gpu_sizes_gb` in GB of 10⁹ bytes, rising.
    Errors:  ValueError if the run's sequence is longer than the model's.
    """
    order = Order(config=config, recipe=recipe, run=run)
    named, peak = [part for part in parts(order) if part.bytes], device_bill(order).peak
    total = sum(part.bytes for part in named)
    scale = (RIGHT - LEFT) / _end(total, gpu_sizes_gb)
    fit = _fit(peak, gpu_sizes_gb)
    rows = [label(LEFT, 18, order.title, 15), label(LEFT, 38, fit, 14), _stack(named, scale), _peak(peak, scale)]
    rows += [_gpu_lines(scale, gpu_sizes_gb), _legend(named, peak)]
    height = 128 + 20 * (len(named) // 2 + 1)
    rows += [label(LEFT, height + 10, note, 14)] if note else []
    told = ", ".join(f"{part.name} {in_gb(part.bytes)}" for part in named)
    return drawing(rows, height=height + (22 if note else 0), told=f"{order.title}: {told}. {fit}")


def _end(total: int, sizes_gb: Sequence[int]) -> float:
    """Choose the bytes at the right edge: past the bill, and past the first GPU that holds all of its parts."""
    if ZOOM * total < sizes_gb[0] * GB:
        return 1.25 * total
    return 1.06 * max(total, next((size for size in sizes_gb if size * GB >= total), sizes_gb[-1]) * GB)


def _fit(peak: int, sizes_gb: Sequence[int]) -> str:
    size = next((size for size in sizes_gb if size * GB >= peak), None)
    if size is None:
        return (
            f"At most {in_gb(peak)} at one moment: {peak / (sizes_gb[-1] * GB):,.1f} times a GPU of {sizes_gb[-1]} GB"
        )
    return f"At most {in_gb(peak)} at one moment: fits a GPU of {size} GB, {peak / (size * GB):.2%} of it"


def _stack(named: Sequence[Part], scale: float) -> str:
    drawn, start = "", float(LEFT)
    for part in named:
        color, ink = PART_COLORS[part.name]
        wide = part.bytes * scale
        drawn += f'<rect class="part" x="{start:.2f}" y="52" width="{wide:.2f}" height="30" {_painted(color)}/>'
        if wide >= LETTER_ROOM:
            drawn += label(start + wide / 2, 72, LETTERS[part.name], 13, anchor="middle", fill=ink)
        start += wide
    return drawn


def _painted(color: str) -> str:
    return f'fill="{color}" stroke="currentColor" stroke-width="0.6"'


def _peak(peak: int, scale: float) -> str:
    return f'<rect class="peak" x="{LEFT}" y="86" width="{peak * scale:.2f}" height="6" fill="currentColor"/>'


def _gpu_lines(scale: float, sizes_gb: Sequence[int]) -> str:
    """Draw a dashed line for each GPU size within the picture; where labels would touch, the largest keeps its own."""
    drawn, free = "", float(RIGHT) + LABEL_ROOM
    for size in sorted(sizes_gb, reverse=True):
        x = LEFT + size * GB * scale
        if x > RIGHT:
            continue
        drawn += f'<line class="gpu" x1="{x:.1f}" x2="{x:.1f}" y1="46" y2="98" stroke="currentColor" '
        drawn += 'stroke-width="1.5" stroke-dasharray="4 3"/>'
        if free - x >= LABEL_ROOM:
            word = f"{size} GB" if free > RIGHT else str(size)
            at_the_edge = free > RIGHT and x < LABEL_ROOM
            drawn += label(LEFT if at_the_edge else x, 112, word, 12, anchor="start" if at_the_edge else "middle")
            free = x
    return drawn or label(
        RIGHT, 112, f"the smallest GPU here, {min(sizes_gb)} GB, is far to the right →", 12, anchor="end"
    )


def _legend(named: Sequence[Part], peak: int) -> str:
    drawn = ""
    for place, part in enumerate(named):
        x, y = LEFT + COLUMN * (place % 2), 134 + 20 * (place // 2)
        color, ink = PART_COLORS[part.name]
        drawn += f'<rect x="{x}" y="{y - 12}" width="16" height="15" {_painted(color)}/>'
        drawn += label(x + 8, y, LETTERS[part.name], 12, anchor="middle", fill=ink)
        drawn += label(x + 22, y, f"{part.name} {both(part.bytes)}", 13)
    x, y = LEFT + COLUMN * (len(named) % 2), 134 + 20 * (len(named) // 2)
    drawn += f'<rect x="{x}" y="{y - 8}" width="16" height="6" fill="currentColor"/>'
    return drawn + label(x + 22, y, f"at one moment {both(peak)}", 13)
