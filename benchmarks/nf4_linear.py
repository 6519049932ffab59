"""4-bit weights dequantized and multiplied, against bitsandbytes at 1, 16 and 256 tokens; `--record` keeps it.

Every way is held to FP64 before it is timed. The share of bandwidth counts the bytes that must move, each once, over
the time, against what a large copy reaches on the same machine. On a CPU, one thread, with two of bitsandbytes' ways:
the layer it makes for inference, which packs the weight anew and computes in BF16, and the one it trains through.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from _peer import arguments, keep_recording, medians_ms, report
from torch import Tensor

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import tells of a package it can do without

import bitsandbytes as bnb  # noqa: E402 - the logger must be quiet first

from qlab.attention_triton import INSTALLED, INTERPRETED, triton  # noqa: E402
from qlab.codebooks import NF4, double_quantize, quantize_blockwise  # noqa: E402
from qlab.codebooks.blockwise import new_values  # noqa: E402
from qlab.codebooks.linear import codes_linear, codes_linear_backward  # noqa: E402
from qlab.codebooks_triton import dequantize_4bit, linear_4bit, linear_4bit_backward  # noqa: E402
from qlab.measure import median_ms  # noqa: E402

SEED, BLOCK_SIZE = 0, 64
COMMAND = "python benchmarks/nf4_linear.py --record"
OURS, PEER = "this course", "bitsandbytes"
INFERENCE = f"{PEER}, packed for inference"
DENSE = "the weight itself"
TOKENS = 1, 16, 256
FARTHEST = {torch.float32: 1e-5, torch.bfloat16: 2**-6}  # of the norm, from FP64 on the same dequantized weight
Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One way to do one thing.

    Units:   `ms` is a median, on a CPU of the time that its one thread had; `share_of_bandwidth` the least bytes over
             that time and the bandwidth of a copy; `relative_error` the distance from FP64 over its norm.
    """

    what: str
    way: str
    tokens: int
    rows: int
    width: int
    dtype: str
    double: bool
    ms: float
    share_of_bandwidth: float
    relative_error: float


@dataclass(frozen=True)
class Case:
    """One weight in codes, ours and bitsandbytes', and a number of tokens of one type."""

    rows: int
    width: int
    tokens: int
    dtype: torch.dtype
    double: bool
    device: str

    def weight(self) -> Tensor:
        draw = torch.Generator(self.device).manual_seed(SEED)
        return torch.randn(self.rows, self.width, generator=draw, device=self.device) / self.width**0.5

    def given(self, width: int) -> Tensor:
        draw = torch.Generator(self.device).manual_seed(SEED + 1)
        return torch.randn(self.tokens, width, generator=draw, device=self.device).to(self.dtype)

    def least_bytes(self, what: str) -> int:
        """Count what must be read and written: codes, their constants, and values or tokens."""
        values = self.rows * self.width
        stored = values // 2 + (values // BLOCK_SIZE if self.double else values * 4 // BLOCK_SIZE)
        moved = values if what == "dequantize" else self.tokens * (self.rows + self.width)
        return stored + moved * self.dtype.itemsize

    def __str__(self) -> str:
        constants = "doubly quantized" if self.double else "FP32 absmaxes"
        return f"{self.tokens} × {self.rows}×{self.width}, {str(self.dtype)[6:]}, {constants}"


def ours_of(case: Case) -> tuple[object, Callable, Callable, Callable]:
    """Return our codes, and how they are dequantized, multiplied by and gone back through on the case's device."""
    codes = quantize_blockwise(case.weight(), NF4, block_size=BLOCK_SIZE)
    codes = double_quantize(codes) if case.double else codes
    if case.device == "cuda":
        return codes, lambda: dequantize_4bit(codes, dtype=case.dtype), linear_4bit, linear_4bit_backward

    def dequantize() -> Tensor:
        """Fill a new tensor, as bitsandbytes does."""
        return codes.dequantize(out=new_values(codes.shape, codes.packed.device, case.dtype))

    return codes, dequantize, codes_linear, codes_linear_backward


def inference_layer(case: Case) -> bnb.nn.Linear4bit:
    """Return bitsandbytes' layer, which on a CPU packs its weight anew at its first call."""
    options = {"quant_type": "nf4", "compress_statistics": case.double}
    layer = bnb.nn.Linear4bit(case.width, case.rows, bias=False, compute_dtype=case.dtype, **options)
    layer.weight = bnb.nn.Params4bit(case.weight(), requires_grad=False, blocksize=BLOCK_SIZE, **options)
    return layer.to(case.device).eval() if case.device == "cuda" else quantized(layer).eval()


def quantized(layer: bnb.nn.Linear4bit) -> bnb.nn.Linear4bit:
    """Quantize the weight where it is: bitsandbytes does that when a layer moves, and on a CPU none does."""
    layer.weight = layer.weight._quantize("cpu")
    return layer


def both_passes(case: Case, product: Callable, backward: Callable) -> Callable[[], tuple[Tensor, Tensor]]:
    x, grad = case.given(case.width), case.given(case.rows)
    return lambda: (product(x), backward(grad))


def their_passes(case: Case, packed: Tensor, state: object) -> Callable[[], tuple[Tensor, Tensor]]:
    x, grad = case.given(case.width).requires_grad_(), case.given(case.rows)

    def run() -> tuple[Tensor, Tensor]:
        y = bnb.matmul_4bit(x, packed.t(), quant_state=state)
        return y.detach(), *torch.autograd.grad(y, x, grad)

    return run


def ways(case: Case) -> Iterator[tuple[str, Ways, tuple[Tensor, ...]]]:
    """Yield what is timed, the ways to do it, and what each should find, in FP64."""
    codes, dequantize, product, backward = ours_of(case)
    state_options = {"blocksize": BLOCK_SIZE, "quant_type": "nf4", "compress_statistics": case.double}
    packed, state = bnb.functional.quantize_4bit(case.weight(), **state_options)
    state.dtype = case.dtype
    exact = codes.dequantize().double()
    if case.tokens == TOKENS[0]:
        yield (
            "dequantize",
            {OURS: dequantize, PEER: lambda: bnb.functional.dequantize_4bit(packed, state)},
            (exact,),
        )
    x, grad = case.given(case.width), case.given(case.rows)
    dense = exact.to(case.dtype)
    layer = inference_layer(case)
    yield (
        "product",
        {
            OURS: lambda: product(x, codes),
            PEER: lambda: bnb.matmul_4bit(x, packed.t(), quant_state=state),
            INFERENCE: lambda: layer(x),
            DENSE: lambda: x @ dense.mT,
        },
        (x.double() @ exact.mT,),
    )
    yield (
        "product and its backward",
        {
            OURS: both_passes(case, lambda x: product(x, codes), lambda grad: backward(grad, codes)),
            PEER: their_passes(case, packed, state),
            DENSE: both_passes(case, lambda x: x @ dense.mT, lambda grad: grad @ dense),
        },
        (x.double() @ exact.mT, grad.double() @ exact),
    )


@torch.no_grad()
def error(found: object, exact: tuple[Tensor, ...]) -> float:
    """Return the largest ‖x − x₆₄‖ / ‖x₆₄‖."""
    tensors = found if isinstance(found, tuple) else (found,)
    return max(((x.double() - y).norm() / y.norm()).item() for x, y in zip(tensors, exact, strict=True))


def times_of(runs: Ways, device: str, *, tiny: bool) -> list[float]:
    """Return the median time of each way: in turn on a CPU, with caches cleared on a GPU."""
    if device == "cuda" and not tiny:
        return [triton.testing.do_bench(run, warmup=25, rep=200, return_mode="median") for run in runs.values()]
    return medians_ms(*runs.values(), repeats=1 if tiny else 11, clock=time.process_time)


def compared(case: Case, *, bandwidth: float, tiny: bool) -> Iterator[Timing]:
    """Check, time and print every way to do everything with one weight.

    Errors:  SystemExit if ours errs by more than it may.
    """
    for what, runs, exact in ways(case):
        errors = {name: error(run(), exact) for name, run in runs.items()}
        if not errors[OURS] <= FARTHEST[case.dtype]:
            sys.exit(f"{case}, {what}: our error is {errors[OURS]:.2g}: nothing is timed")
        times = dict(zip(runs, times_of(runs, case.device, tiny=tiny), strict=True))
        for name in list(runs)[1:]:
            target = "none" if name == DENSE else "1"
            report(f"{case}, {what}", ours=times[OURS], peer=times[name], peer_name=name, target=target)
        for name, ms in times.items():
            yield Timing(
                what=what,
                way=name,
                tokens=case.tokens,
                rows=case.rows,
                width=case.width,
                dtype=str(case.dtype).removeprefix("torch."),
                double=case.double,
                ms=ms,
                share_of_bandwidth=case.least_bytes(what) / (ms / 1e3) / bandwidth,
                relative_error=errors[name],
            )


def copy_bandwidth(device: str, *, tiny: bool) -> float:
    """Return the bytes a second, read and written, of a copy too large for any cache."""
    source = torch.rand(2**16 if tiny else 2**28 if device == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    if device == "cpu":
        (ms,) = medians_ms(lambda: target.copy_(source), repeats=3 if tiny else 11, clock=time.process_time)
    else:
        ms = median_ms(lambda: target.copy_(source), repeats=11, device=device)
    return 2 * source.nbytes / (ms / 1e3)


def cases(device: str, *, tiny: bool) -> Iterator[Case]:
    """Name what is measured."""
    large = [(4096, 4096), (11_008, 4096), (8192, 8192)] if device == "cuda" else [(4096, 4096)]
    shapes = [(64, 128)] if tiny else large
    dtypes = (torch.bfloat16,) if device == "cuda" else (torch.float32, torch.bfloat16)
    for rows, width in shapes:
        for dtype in dtypes:
            for tokens in TOKENS[: 2 if tiny else None]:
                for double in (False, True) if device == "cuda" or tiny else (False,):
                    yield Case(rows, width, tokens, dtype, double, device)


def main() -> None:
    """Measure, print, and record where asked."""
    options = arguments(__doc__, record=True)
    device = "cuda" if torch.cuda.is_available() and INSTALLED and not INTERPRETED else "cpu"
    bandwidth = copy_bandwidth(device, tiny=options.tiny)
    print(f"a copy on this {device}: {bandwidth / 1e9:,.4g} GB/s")
    found = []
    for case in cases(device, tiny=options.tiny):
        found += compared(case, bandwidth=bandwidth, tiny=options.tiny)
    for one in found:
        if one.way == OURS:
            done = f"{one.what}, {one.tokens} × {one.rows}×{one.width}, {one.dtype}"
            print(f"{done}: {one.ms:.4g} ms, {one.share_of_bandwidth:.0%} of the bandwidth of a copy")
    if options.record:
        told = {"bandwidth_bytes_per_s": bandwidth, "bitsandbytes": bnb.__version__}
        part = "gpu" if device == "cuda" else "kernels"
        keep_recording("10_qlora", part, found, command=COMMAND, seed=SEED, device=device, **told)


main()
