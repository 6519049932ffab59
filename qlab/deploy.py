"""Deployment: the decoder as an ONNX file, quantized and run by ONNX Runtime, which knows nothing of PyTorch."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxruntime
import torch
from jaxtyping import Float, Int
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from qlab.measure import median_ms

INPUT, OUTPUT = "tokens", "logits"
EXPORTER_LOG = "torch.onnx._internal.exporter._registration"


class Windows(CalibrationDataReader):
    """Hand ONNX Runtime one calibration window at a time, and None after the last.

    Errors:  ValueError if there is no window.
    """

    def __init__(self, windows: Int[Tensor, "n sequence"]) -> None:
        if not len(windows):
            raise ValueError("calibration needs at least one window, got 0")
        self.rest: Iterator[Tensor] = iter(windows)

    def get_next(self) -> dict[str, object] | None:
        """Return the inputs of the next run."""
        window = next(self.rest, None)
        return None if window is None else {INPUT: window[None].numpy()}


def export_onnx(model: nn.Module, folder: Path, *, sequence: int) -> Path:
    """Write `model` for inputs of shape (1, sequence) as an ONNX file in FP32; return its path.

    Errors:  ValueError if `sequence` is below 1.
    """
    if sequence < 1:
        raise ValueError(f"sequence must be at least 1, got {sequence}")
    example = torch.zeros(1, sequence, dtype=torch.long)
    with _quiet_exporter():
        program = torch.onnx.export(
            model, (example,), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
        )
    raw, path = folder / "exported.onnx", folder / "fp32.onnx"
    program.save(raw)
    quant_pre_process(raw, path)  # infers shapes and folds constants: the quantizer then knows what is a weight
    raw.unlink()
    return path


def quantize_onnx(path: Path, windows: Int[Tensor, "n sequence"]) -> dict[str, Path]:
    """Quantize an exported decoder in three ways: static and dynamic for products with weights, and everything static.

    Weights get a scale for each output channel, activations the range that the calibration `windows` showed.
    """
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    in_attention = [node.name for node in graph.node if node.op_type == "MatMul" and not weights & set(node.input)]
    made = {
        name: path.with_name(f"{name.replace(' ', '-')}.onnx") for name in ("static", "everything static", "dynamic")
    }
    common = {"per_channel": True, "weight_type": QuantType.QInt8}
    static = common | {"activation_type": QuantType.QUInt8}
    products = {"op_types_to_quantize": ["MatMul"], "nodes_to_exclude": in_attention}
    quantize_static(path, made["static"], Windows(windows), **static, **products)
    quantize_static(path, made["everything static"], Windows(windows), **static)
    quantize_dynamic(path, made["dynamic"], **common, **products)
    return made


def ort_logits(path: Path, tokens: Int[Tensor, "1 sequence"]) -> Float[Tensor, "1 sequence vocabulary"]:
    """Run an ONNX file on one thread."""
    return torch.from_numpy(_session(path).run(None, {INPUT: tokens.numpy()})[0])


def ort_latency_ms(path: Path, tokens: Int[Tensor, "1 sequence"], *, repeats: int = 9) -> float:
    """Return the median time of a run on one thread, the loading of the file left out."""
    session, inputs = _session(path), {INPUT: tokens.numpy()}
    return median_ms(lambda: session.run(None, inputs), repeats=repeats)


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    log = logging.getLogger(EXPORTER_LOG)
    before = log.level
    log.setLevel(logging.ERROR)  # it would tell, four times, that torchvision is not installed
    try:
        with warnings.catch_warnings():
            # torch 2.13's exporter calls what torch 2.13 deprecates
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        log.setLevel(before)
