"""The page on LiteRT, run with the runtime installed: `make test-extra`."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from qlab.labs import notebooks
from qlab.labs.execute import execute
from tests.test_notebooks import SECONDS, WARNINGS_ARE_ERRORS

pytestmark = pytest.mark.extra
PAGE = Path(__file__).parents[2] / "lessons" / "extra" / "04_litert.ipynb"
KEEP = """
import json, pathlib
folder = pathlib.Path({folder!r})
for name, file in files.items():
    (folder / f"{{name}}.tflite").write_bytes(file)
torch.save((net.state_dict(), calibration, judged), folder / "network.pt")
(folder / "results.json").write_text(json.dumps([{{k: float(v.double().mean()) for k, v in right.items()}}, read]))
"""


@dataclass(frozen=True)
class Page:
    """What one run of the page left behind."""

    notebook: nbformat.NotebookNode
    outputs: list[nbformat.NotebookNode]
    seconds: float
    files: dict[str, bytes]
    weights: list[torch.Tensor]  # and biases, in turns
    calibration: torch.Tensor
    judged: torch.Tensor
    right: dict[str, float]
    read: list[float]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("litert")
    notebook = notebooks.read(PAGE)
    notebook.cells.append(nbformat.v4.new_code_cell(KEEP.format(folder=str(folder))))
    started = time.monotonic()
    execute(notebook, PAGE.parent, before=[WARNINGS_ARE_ERRORS])
    seconds = time.monotonic() - started
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
    files = {path.stem: path.read_bytes() for path in folder.glob("*.tflite")}
    weights, calibration, judged = torch.load(folder / "network.pt")
    right, read = json.loads((folder / "results.json").read_text())
    return Page(notebook, outputs, seconds, files, list(weights.values()), calibration, judged, right, read)


def opened(file: bytes):
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - not in the environment of the other tests

    runtime = Interpreter(model_content=file, num_threads=1)
    runtime.allocate_tensors()
    return runtime


def constants(file: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    details = {tensor["name"]: tensor["quantization_parameters"] for tensor in opened(file).get_tensor_details()}
    return details[name]["scales"], details[name]["zero_points"]


def test_the_page_runs_to_its_end_without_a_word_on_stderr(page):
    assert page.seconds < SECONDS
    assert not [output.text for output in page.outputs if output.get("name") == "stderr"]
    assert "not installed" not in "".join(output.get("text", "") for output in page.outputs)
    code = [cell for cell in page.notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert sum("image/png" in output.get("data", {}) for output in page.outputs) == 2


def test_sizes_fall_as_the_types_say(page):
    parameters = sum(weight.numel() for weight in page.weights)
    share = {name: len(file) / (4 * parameters) for name, file in page.files.items()}
    assert 1 < share["float32"] < 1.01
    assert 0.5 < share["float16"] < 0.51
    assert 0.25 < share["dynamic range"] < share["full integer"] < 0.3


def test_only_the_full_integer_file_takes_and_gives_int8(page):
    for name, file in page.files.items():
        runtime = opened(file)
        ends = [detail["dtype"] for detail in (*runtime.get_input_details(), *runtime.get_output_details())]
        assert ends == [np.int8 if name in ("full integer", "in 16 calls") else np.float32] * 2, name


def test_the_float32_file_computes_what_pytorch_does(page):
    first, first_bias, second, second_bias, third, third_bias = page.weights
    hidden = torch.relu(torch.relu(page.judged @ first.T + first_bias) @ second.T + second_bias)
    runtime = opened(page.files["float32"])
    runtime.set_tensor(runtime.get_input_details()[0]["index"], page.judged[:1].numpy())
    runtime.invoke()
    computed = torch.from_numpy(runtime.get_tensor(runtime.get_output_details()[0]["index"]))
    torch.testing.assert_close(computed, (hidden @ third.T + third_bias)[:1], rtol=1e-4, atol=1e-4)


def test_no_file_loses_more_than_a_point(page):
    assert page.right["float32"] > 0.9
    for name, right in page.right.items():
        # 4,000 images: half a point is more than four standard errors of the paired change, which is about 0.1
        assert right > page.right["float32"] - 0.005, name


def test_weight_scales_and_codes_are_those_of_absmax_over_127(page):
    runtime = opened(page.files["full integer"])
    index = {tensor["name"]: tensor["index"] for tensor in runtime.get_tensor_details()}
    for i, weight in enumerate(page.weights[::2]):
        expected = (weight.abs().amax(dim=1) / 127).numpy()
        scales, zero_points = constants(page.files["full integer"], f"layer {i} weight")
        assert np.array_equal(scales, expected)
        assert not zero_points.any()
        codes = np.rint(weight.numpy() / expected[:, None])
        assert np.array_equal(runtime.get_tensor(index[f"layer {i} weight"]), codes)
        source, _ = constants(page.files["full integer"], f"layer {i - 1}" if i else "image")
        assert np.array_equal(constants(page.files["full integer"], f"layer {i} bias")[0], source * expected)


def test_the_input_has_the_affine_constants_of_the_calibration_images(page):
    low, high = page.calibration.min().numpy(), page.calibration.max().numpy()
    scale = (high - low) / np.float32(255)
    scales, zero_points = constants(page.files["full integer"], "image")
    assert scales == [scale] and zero_points == [np.rint(-128 - low / scale)]


def test_several_calls_are_averaged(page):
    """The page says so; should the quantizer take minimum and maximum one day, the page must change."""
    low, high = 0.0, 0.0
    for i, batch in enumerate(page.calibration.split(32)):
        kept = 0.95 if i else 0.0
        low, high = (kept * old + (1 - kept) * end.item() for old, end in ((low, batch.min()), (high, batch.max())))
    scales, zero_points = constants(page.files["in 16 calls"], "image")
    assert scales[0] == pytest.approx((high - low) / 255, rel=1e-6)
    assert zero_points == [round(-128 - low / scales[0].item())]
    assert scales[0] < constants(page.files["full integer"], "image")[0][0]


def test_the_wrong_unit_ruins_the_full_integer_file(page):
    assert page.read[0] < 20 and page.read[-1] < 20  # chance is 10 %
    assert page.read[8] == pytest.approx(100 * page.right["full integer"])
    assert max(page.read) > 90
