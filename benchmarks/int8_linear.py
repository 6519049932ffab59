"""Linear layers on one thread: int8 against PyTorch's dynamic int8, torchao's and FP32; packed weights against FP32."""

import copy
import warnings

import torch
from _peer import arguments, medians_ms, report
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

from qlab.quantize import PER_ROW, QuantizedLinear, int8_linear, quantize_symmetric

FARTHEST_FROM_EXACT = 0.02  # of the Frobenius norm: 8 bits for both factors cost about 0.01


def pytorch_dynamic(linear: torch.nn.Linear) -> torch.nn.Module:
    """Return PyTorch's own int8 layer; `torch.ao.quantization` says that it is slated for deletion."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message="torch.ao.quantization is deprecated")
        warnings.filterwarnings("ignore", category=UserWarning, message="torch.quantize_per_tensor")
        model = torch.nn.Sequential(copy.deepcopy(linear))
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def torchao_dynamic(linear: torch.nn.Linear) -> torch.nn.Module:
    """Return torchao's int8 layer, run eagerly, with a scale for each token as ours."""
    model = torch.nn.Sequential(copy.deepcopy(linear))
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


@torch.no_grad()
def compare(width: int, tokens: int, repeats: int) -> None:
    """Time the layers of `width` inputs and outputs on the same `tokens`, each checked against FP64 first."""
    draw = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(width, width)
    linear.weight.copy_(torch.randn(width, width, generator=draw) / width**0.5)
    x = torch.randn(tokens, width, generator=draw)
    w = quantize_symmetric(linear.weight, bits=8, tile=PER_ROW)
    codes, scales = w.codes, w.scale.view(-1)
    eight, four = (QuantizedLinear.from_linear(linear, bits=bits) for bits in (8, 4))
    dynamic, ao = pytorch_dynamic(linear), torchao_dynamic(linear)
    ways = {
        "ours": lambda: int8_linear(x, w, linear.bias),
        "PyTorch's dynamic int8": lambda: dynamic(x),
        "torchao's dynamic int8, eager": lambda: ao(x),
        "FP32": lambda: linear(x),
    }
    exact = x.double() @ linear.weight.double().T + linear.bias.double()
    error = ((ways["ours"]().double() - exact).norm() / exact.norm()).item()
    assert error < FARTHEST_FROM_EXACT, error
    ours, *theirs = medians_ms(*ways.values(), repeats=repeats)
    for peer_name, peer in zip(list(ways)[1:], theirs, strict=True):
        report(f"int8_linear, {tokens} × {width}²", ours=ours, peer=peer, peer_name=peer_name, target="1")
    fp32, *packed = medians_ms(ways["FP32"], lambda: eight(x), lambda: four(x), repeats=repeats)
    for bits, took in zip((8, 4), packed, strict=True):
        told = {"ours": took, "peer": fp32, "peer_name": "FP32", "target": "none: it dequantizes at each call"}
        report(f"QuantizedLinear, {bits} bits, {tokens} × {width}²", **told)
    if tokens == 1:  # in FP32 this kernel is made for few tokens: at 256 it takes over thirty times as long as FP32's
        codes, scales = w.codes, w.scale.view(-1)
        took, peer = medians_ms(lambda: eight(x), lambda: torch._weight_int8pack_mm(x, codes, scales), repeats=repeats)
        target = "none: it dequantizes at each call"
        report(f"QuantizedLinear, 8 bits, 1 × {width}²", ours=took, peer=peer, peer_name="int8pack", target=target)


options = arguments(__doc__)
for width in (64,) if options.tiny else (1024, 4096):
    for tokens in (1, 16) if options.tiny else (1, 16, 256, 512):
        compare(width, tokens, 1 if options.tiny else 7 if width * tokens > 10**5 else 31)
