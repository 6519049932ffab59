"""Block-wise codes of FP32 values and back, on one thread, against bitsandbytes' CPU kernels and uniform int8."""

import logging
from collections.abc import Callable

import torch
from _peer import arguments, medians_ms, report
from torch import Tensor

from qlab.codebooks import FP4, NF4, BlockwiseCodes, dynamic_map, quantize_blockwise
from qlab.quantize import per_block, quantize_symmetric

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import tells of a package it can do without

import bitsandbytes.functional as bnb  # noqa: E402 - the logger must be quiet first

PEER = "bitsandbytes"
MIDPOINT_SHARE = 1e-6  # of NF4 codes: bitsandbytes rounds midpoints to FP32, so the one number there may go astray

options = arguments(__doc__)
count, repeats = (2**16, 1) if options.tiny else (2**24, 9)
x = torch.randn(count, generator=torch.Generator().manual_seed(0))
reused = torch.empty(count)


def compare(name: str, ours: Callable[[], BlockwiseCodes], theirs: Callable[[], tuple], back: Callable) -> None:
    """Time there and back for both, and back into a tensor that is there, which bitsandbytes cannot on a CPU."""
    coded, (their_codes, state) = ours(), theirs()
    quantize, their_quantize = medians_ms(ours, theirs, repeats=repeats)
    fresh, reusing, their_fresh, memory = medians_ms(
        coded.dequantize,
        lambda: coded.dequantize(out=reused),
        lambda: back(their_codes, state),
        lambda: torch.empty(count).fill_(1),
        repeats=repeats,
    )
    name = f"{count:,} values, {name}"
    report(f"{name}, quantize", ours=quantize, peer=their_quantize, peer_name=PEER, target="1")
    report(f"{name}, dequantize", ours=fresh, peer=their_fresh, peer_name=PEER, target="1")
    print(f"{name}, dequantize: {memory:.4g} ms go into the pages of a new tensor of {PEER}, as filling one shows")
    report(
        f"{name}, dequantize into a tensor that is there", ours=reusing, peer=their_fresh, peer_name=PEER, target="1"
    )


for name, codebook in (("nf4", NF4), ("fp4", FP4)):
    packed, state = bnb.quantize_4bit(x, blocksize=64, quant_type=name)
    coded = quantize_blockwise(x, codebook, block_size=64)
    their_levels = state.code[torch.stack([packed >> 4, packed & 0xF], dim=-1).flatten().long()]
    our_levels = codebook[coded.codes.long()]
    differ = our_levels != their_levels
    exact = (x.view(-1, 64) * (1 / state.absmax[:, None])).view(-1)[differ].double()
    assert torch.equal(coded.absmax, state.absmax), name
    assert differ.float().mean() <= MIDPOINT_SHARE, name
    assert ((our_levels[differ] - exact).abs() < (their_levels[differ] - exact).abs()).all(), name
    print(f"{name}: {int(differ.sum())} of {count:,} codes differ from those of {PEER}, and there ours are nearer")
    compare(
        f"{name} in blocks of 64",
        lambda codebook=codebook: quantize_blockwise(x, codebook, block_size=64),
        lambda name=name: bnb.quantize_4bit(x, blocksize=64, quant_type=name),
        bnb.dequantize_4bit,
    )

dynamic = dynamic_map(signed=True)


def error_of(codes: Tensor, normalized: Tensor) -> Tensor:
    return (dynamic.double()[codes.long()] - normalized).abs_()


for block_size in (256, 4096):
    their_codes, state = bnb.quantize_blockwise(x, code=dynamic, blocksize=block_size)
    coded = quantize_blockwise(x, dynamic, block_size=block_size)
    normalized = (x.view(-1, block_size) * (1 / coded.absmax[:, None])).view(-1)
    assert torch.equal(coded.absmax, state.absmax), block_size
    for part in slice(0, 2**20), slice(-(2**20), None):  # enough to see, and little enough to be quick
        ours, theirs = (error_of(codes[part], normalized[part].double()) for codes in (coded.codes, their_codes))
        assert (ours <= theirs).all(), block_size
    share = (coded.codes != their_codes).double().mean()
    print(
        f"dynamic map in blocks of {block_size}: {share:.3%} of the codes of {PEER} are not the nearest, ours all are"
    )
    compare(
        f"dynamic map in blocks of {block_size}",
        lambda size=block_size: quantize_blockwise(x, dynamic, block_size=size),
        lambda size=block_size: bnb.quantize_blockwise(x, code=dynamic, blocksize=size),
        bnb.dequantize_blockwise,
    )

uniform = quantize_symmetric(x, bits=8, tile=per_block(256))
coded = quantize_blockwise(x, dynamic, block_size=256)
to_codes, to_steps, from_codes, from_steps = medians_ms(
    lambda: quantize_blockwise(x, dynamic, block_size=256),
    lambda: quantize_symmetric(x, bits=8, tile=per_block(256)),
    coded.dequantize,
    uniform.dequantize,
    repeats=repeats,
)
name, target = f"{count:,} values in blocks of 256, dynamic map", {"peer_name": "uniform int8", "target": "none"}
report(f"{name}, quantize", ours=to_codes, peer=to_steps, **target)
report(f"{name}, dequantize", ours=from_codes, peer=from_steps, **target)
