"""The course's Triton kernels against PyTorch's flash and cuDNN attention; `--record` keeps a GPU's for lesson 08.

Each kernel is held to FP64 before it is timed. Rates count 4·N²·d FLOPs a head forward and 2.5 times that backward,
half of both if causal (Dao 2023, arXiv:2307.08691, section 4.1), whatever a kernel really computes.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from _peer import arguments, keep_recording
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from qlab.attention import standard_attention
from qlab.attention_triton import DEVICE, HOW_TO_GET, INSTALLED, flash_attention, triton
from qlab.measure import PeakBytes, median_ms

SEED = 0
COMMAND = "python benchmarks/flash_attention.py --record"
TOKENS, WIDTH_OF_ALL_HEADS = 16_384, 2_048
OURS, NAIVE = "this course, Triton", "standard"
TARGETS = {"forward": 0.9, "backward": 0.8}
LARGEST_ERROR = 1.5  # times that of PyTorch's own attention on the same inputs
Way = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One pass of one kernel.

    Units:   `ms` is the median of one pass; `tera_per_s` is 10¹² FLOPs a second; `share_of_matmul` is that over the
             rate of a large matrix product; `peak_bytes` are those of both passes beyond the inputs.
    """

    kernel: str
    direction: str
    is_causal: bool
    head_width: int
    sequence: int
    batch: int
    heads: int
    dtype: str
    ms: float
    tera_per_s: float
    share_of_matmul: float
    peak_bytes: int
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One size to measure."""

    sequence: int
    head_width: int
    is_causal: bool
    tokens: int
    heads: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def batch(self) -> int:
        return max(1, self.tokens // self.sequence)

    def inputs(self, *, batch: int, heads: int, seed: int) -> tuple[Tensor, ...]:
        """Draw q, k, v and the gradient of the output; all but the last ask for theirs."""
        generator = torch.Generator(DEVICE).manual_seed(seed)
        shape = batch, heads, self.sequence, self.head_width
        drawn = [torch.randn(shape, generator=generator, device=DEVICE).to(self.dtype) for _ in range(4)]
        return *(x.requires_grad_() for x in drawn[:3]), drawn[3]

    def flops(self, direction: str) -> float:
        forward = 4 * self.batch * self.heads * self.sequence**2 * self.head_width / (1 + self.is_causal)
        return forward * (2.5 if direction == "backward" else 1)

    def __str__(self) -> str:
        causal = "causal" if self.is_causal else "not causal"
        return f"N={self.sequence} d={self.head_width} {causal} {str(self.dtype)[6:]}"


def by_backend(backend: SDPBackend, *given: Tensor, is_causal: bool) -> Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(*given, is_causal=is_causal)


WAYS: dict[str, Way] = {
    OURS: flash_attention,
    "PyTorch, flash": partial(by_backend, SDPBackend.FLASH_ATTENTION),
    "PyTorch, cuDNN": partial(by_backend, SDPBackend.CUDNN_ATTENTION),
    NAIVE: standard_attention,
}


def passes(way: Way, given: tuple[Tensor, ...], *, is_causal: bool) -> tuple[Tensor, ...]:
    """Return the output and the gradients of q, k and v."""
    *q_k_v, grad = given
    output = way(*q_k_v, is_causal=is_causal)
    return output, *torch.autograd.grad(output, q_k_v, grad)


def error(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Return the largest ‖x − x₆₄‖ / ‖x₆₄‖ among output and gradients; NaN is infinitely wrong."""
    shares = [((x.double() - y).norm() / y.norm()).item() for x, y in zip(found, exact, strict=True)]
    return max(share if share == share else float("inf") for share in shares)  # noqa: PLR0124 - NaN differs from itself


def errors(setting: Setting) -> dict[str, float]:
    """Hold every way to FP64 on two heads; leave out those that this machine has not.

    Errors:  SystemExit if ours errs by more than it may.
    """
    given = setting.inputs(batch=1, heads=2, seed=SEED)
    wide = tuple(x.detach().double().requires_grad_() for x in given)
    exact = passes(standard_attention, wide, is_causal=setting.is_causal)
    found = {}
    for name, way in WAYS.items():
        try:
            found[name] = error(passes(way, given, is_causal=setting.is_causal), exact)
        except RuntimeError as failure:
            print(f"{setting}: {name} cannot run here ({str(failure)[:60]}…)")
    peer = min(value for name, value in found.items() if name not in {OURS, NAIVE})
    if OURS not in found or not found[OURS] <= LARGEST_ERROR * peer:
        sys.exit(f"{setting}: our error is {found.get(OURS)}, PyTorch's {peer:.2g}: nothing is timed")
    return found


def timed_ms(run: Callable[[], object], *, tiny: bool) -> float:
    """Return the median time of `run`, with caches cleared between runs on a GPU."""
    if DEVICE == "cuda" and not tiny:
        return triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median")
    return median_ms(run, repeats=1 if tiny else 3, device=DEVICE)


def timings(setting: Setting, name: str, *, relative_error: float, matmul: float, tiny: bool) -> Iterator[Timing]:
    """Time one way forward and backward."""
    *q_k_v, grad = given = setting.inputs(batch=setting.batch, heads=setting.heads, seed=SEED)
    way, is_causal = WAYS[name], setting.is_causal
    passes(way, given, is_causal=is_causal)  # tunes and compiles
    with PeakBytes(device=DEVICE) as peak:
        passes(way, given, is_causal=is_causal)
    output = way(*q_k_v, is_causal=is_causal)
    runs = {
        "forward": lambda: way(*q_k_v, is_causal=is_causal),
        "backward": lambda: torch.autograd.grad(output, q_k_v, grad, retain_graph=True),
    }
    for direction, run in runs.items():
        ms = timed_ms(run, tiny=tiny)
        rate = setting.flops(direction) / (ms * 1e9)
        yield Timing(
            kernel=name,
            direction=direction,
            is_causal=is_causal,
            head_width=setting.head_width,
            sequence=setting.sequence,
            batch=setting.batch,
            heads=setting.heads,
            dtype=str(setting.dtype).removeprefix("torch."),
            ms=ms,
            tera_per_s=rate,
            share_of_matmul=rate / matmul,
            peak_bytes=peak.bytes,
            relative_error=relative_error,
        )


def matmul_rate(*, n: int) -> float:
    """Measure what a large BF16 product of random matrices reaches, in 10¹² FLOPs a second."""
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / (timed_ms(lambda: a @ b, tiny=n < 1024) * 1e9)


def ratio_to_best(found: list[Timing]) -> float:
    """Return the time of the fastest of PyTorch's kernels over that of ours, in one pass of one setting."""
    times = {one.kernel: one.ms for one in found}
    return min(ms for name, ms in times.items() if name not in {OURS, NAIVE}) / times[OURS]


def show(found: list[Timing]) -> None:
    """Print each way's time and rate, and how ours compares with the best of PyTorch's."""
    for direction, target in TARGETS.items():
        here = [one for one in found if one.direction == direction]
        told = ", ".join(f"{one.kernel} {one.ms:.4g} ms ({one.share_of_matmul:.0%} of a product)" for one in here)
        print(
            f"  {direction}: {told}; ours {ratio_to_best(here):.2f} times as fast as PyTorch's best (target {target})"
        )
    print(f"  held at most: {', '.join(f'{one.kernel} {one.peak_bytes / 1e6:,.4g} MB' for one in found[::2])}")


def measured(setting: Setting, *, matmul: float, tiny: bool) -> list[Timing]:
    """Check and time every way of one setting; what does not fit into memory is left out, and said."""
    found = []
    for name, relative_error in errors(setting).items():
        try:
            found += timings(setting, name, relative_error=relative_error, matmul=matmul, tiny=tiny)
        except torch.OutOfMemoryError:
            print(f"{setting}: {name} does not fit into memory")
            torch.cuda.empty_cache()
    print(setting)
    show(found)
    return found


def settings(*, tiny: bool) -> Iterator[Setting]:
    """Name what is measured: on a CPU a little, through the interpreter."""
    on_gpu = DEVICE == "cuda"
    lengths = (64,) if tiny else (512, 1024, 2048, 4096, 8192, 16_384) if on_gpu else (256,)
    for head_width, is_causal, sequence in product((64, 128), (False, True), lengths):
        tokens, heads = (TOKENS, WIDTH_OF_ALL_HEADS // head_width) if on_gpu and not tiny else (sequence, 1)
        yield Setting(sequence=sequence, head_width=head_width, is_causal=is_causal, tokens=tokens, heads=heads)


def main() -> None:
    """Measure, print, and record where asked."""
    options = arguments(__doc__, record=True)
    if not INSTALLED:
        sys.exit(print(HOW_TO_GET))
    if options.record and DEVICE == "cpu":
        sys.exit("nothing recorded: this machine has no CUDA GPU that compiles the kernels")
    for dtype, length in product((torch.float16, torch.bfloat16), (64,) if DEVICE == "cpu" else (100, 1000, 4099)):
        for head_width, is_causal in product((64, 128), (False, True)):
            checked = {"sequence": length, "head_width": head_width, "is_causal": is_causal, "dtype": dtype}
            errors(Setting(**checked, tokens=length, heads=2))
    matmul = matmul_rate(n=64 if options.tiny else 8192 if DEVICE == "cuda" else 512)
    print(f"a matrix product on this {DEVICE}: {matmul:.3g} TFLOP/s in BF16")
    found = [measured(setting, matmul=matmul, tiny=options.tiny) for setting in settings(tiny=options.tiny)]
    for direction, target in TARGETS.items():
        by_setting = [[one for one in group if one.direction == direction] for group in found]
        ratios = [ratio_to_best(group) for group in by_setting]
        shares = [one.share_of_matmul for group in by_setting for one in group if one.kernel == OURS]
        print(
            f"{direction}: {min(ratios):.2f} to {max(ratios):.2f} times as fast as PyTorch's best, median"
            f" {statistics.median(ratios):.2f} (target {target} on Hopper); at best {max(shares):.0%} of a product"
        )
    if DEVICE == "cpu":
        print("interpreted on a CPU: that it runs is all this shows")
    if options.record:
        told = {"matmul_tera_per_s": matmul, "triton": triton.__version__, "targets": TARGETS}
        every = [one for group in found for one in group]
        keep_recording("08_flash_attention", "gpu", every, command=COMMAND, seed=SEED, device=DEVICE, **told)


main()
