"""Deployment: the exported file computes what the model does, and its quantized forms are smaller."""

import pytest
import torch

from qlab.config import ModelConfig
from qlab.deploy import Windows, export_onnx, ort_latency_ms, ort_logits, quantize_onnx
from qlab.model import Decoder

SMALL = ModelConfig(
    name="small", layers=1, width=64, heads=2, kv_heads=2, ffn_width=128, vocabulary=256, sequence=32,
    gated=True, biases=False, norm="rmsnorm", positions="rotary", tied_embeddings=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.manual_seed(0)
    model, folder = Decoder(SMALL).eval(), tmp_path_factory.mktemp("onnx")
    windows = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(1))
    path = export_onnx(model, folder, sequence=32)
    return model, windows, {"fp32": path, **quantize_onnx(path, windows)}


@pytest.mark.slow
def test_the_file_computes_what_the_model_does(files):
    model, windows, paths = files
    with torch.no_grad():
        expected = model(windows[:1])
    assert (ort_logits(paths["fp32"], windows[:1]) - expected).abs().max() < 1e-5
    scale = expected.abs().max()
    for name in ("static", "dynamic"):
        assert (ort_logits(paths[name], windows[:1]) - expected).abs().max() < 0.1 * scale, name


@pytest.mark.slow
def test_quantized_files_are_smaller_and_run(files):
    _, windows, paths = files
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    assert max(sizes["static"], sizes["dynamic"], sizes["everything static"]) < 0.8 * sizes["fp32"]
    assert sorted(path.name for path in paths["fp32"].parent.iterdir()) == sorted(p.name for p in paths.values())
    assert ort_latency_ms(paths["static"], windows[:1], repeats=1) > 0


@pytest.mark.slow
def test_weight_codes_are_those_of_the_course(files):
    import onnx  # noqa: PLC0415 - the extra that only this page needs
    from onnx import numpy_helper  # noqa: PLC0415

    from qlab.quantize import PER_ROW, quantize_symmetric  # noqa: PLC0415

    model, _, paths = files
    tensors = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load(paths["static"]).graph.initializer
    }
    stored = [
        t for n, t in tensors.items() if n.endswith("_quantized") and t.dtype == torch.int8 and t.shape == (64, 128)
    ]
    wanted = [
        quantize_symmetric(w.detach(), bits=8, tile=PER_ROW).codes.T
        for w in (model.layers[0].ffn.up.weight, model.layers[0].ffn.gate.weight)
    ]
    assert len(stored) == 2
    assert all(any(torch.equal(codes, other) for other in stored) for codes in wanted)


def test_nothing_to_calibrate_on_and_nothing_to_export_are_told(tmp_path):
    with pytest.raises(ValueError, match="at least one window, got 0"):
        Windows(torch.zeros(0, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="sequence must be at least 1, got 0"):
        export_onnx(Decoder(SMALL), tmp_path, sequence=0)
