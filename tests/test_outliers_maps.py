"""The outlier map of any model: against its inputs one by one, from disk with a stand-in for transformers, drawn."""

import importlib.util
import json
import sys
import types

import matplotlib as mpl
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qlab.model import Decoder
from qlab.outliers import (
    PAPER_RULE,
    OutlierMap,
    OutlierRule,
    find_outliers,
    map_outliers,
    outlier_map,
    plant_outliers,
)
from qlab.outliers.on_disk import _with_linears
from qlab.plots import outlier_map_figure
from tests.test_outliers_finding import CONFIGS, SMALL, TOKENS, lively

mpl.use("agg")
TEXT = torch.arange(200, dtype=torch.uint8) % 96 + 32


@pytest.fixture(autouse=True)
def close_figures():
    yield
    mpl.pyplot.close("all")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_map_is_what_the_linear_layers_read(name):
    model, inputs = lively(CONFIGS[name]), {}
    plant_outliers(model, torch.tensor([2, 7]), strength=16)
    found = map_outliers(model, TOKENS.split(1), name="a model")
    for layer_name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _, x, n=layer_name: inputs.update({n: x[0].flatten(0, -2)}))
    model(TOKENS)
    distinct = {}
    for reader, x in inputs.items():
        if x.shape[1] == 16 and not any(x.shape == y.shape and torch.equal(x, y) for y in distinct.values()):
            distinct[reader] = x
    assert len(found.readers) == len(distinct) == 3 * 2 + 1  # attention, its output projection and ffn; and the head
    largest = torch.stack([x.abs().amax(0) for x in distinct.values()])
    assert torch.allclose(found.largest, largest, rtol=1e-5)  # one window at a time, or three: other sums inside
    assert found.outliers.tolist() == find_outliers(list(distinct.values())).tolist()
    assert {2, 7} <= set(found.outliers.tolist())
    assert (found.model, found.rule) == ("a model", PAPER_RULE)


class Uneven(nn.Module):
    """Reads two widths, one by keyword, and never runs one of its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.idle = nn.Linear(4, 4)

    def forward(self, tokens):
        x = torch.nn.functional.one_hot(tokens, 4).float() * torch.tensor([1.0, 7.0, 1.0, 1.0])
        return self.third(input=self.second(self.first(x)))


def test_only_the_most_common_width_is_kept():
    found = map_outliers(Uneven(), [torch.tensor([[0, 1, 1]])], OutlierRule(layer_share=0.5), name="uneven")
    assert found.readers == ("first", "third")
    assert found.largest[0].tolist() == [1, 7, 0, 0]
    assert 1 in found.outliers.tolist()


def test_every_batch_counts_with_its_tokens():
    """Two large values of 6 tokens in one batch, none of 27 in another: 2 of 33, then with one more of 34."""
    model = nn.Sequential(nn.Embedding(2, 1), nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-6.0]]))
    few, many = torch.tensor([[1, 0, 0], [1, 0, 0]]), torch.zeros(3, 9, dtype=torch.int64)
    assert map_outliers(model, [few, many], name="m").outliers.tolist() == [0]
    assert map_outliers(model, [few, many, many[:1, :1]], name="m").outliers.tolist() == []


def test_models_that_cannot_be_mapped_get_a_sentence():
    with pytest.raises(ValueError, match="lonely must have linear layers and a batch to run on"):
        map_outliers(nn.Identity(), [TOKENS], name="lonely")
    with pytest.raises(ValueError, match="no batch must have linear layers and a batch"):
        map_outliers(Decoder(SMALL), [], name="no batch")
    model = lively(SMALL)
    with torch.no_grad():
        model.layers[1].ffn_norm.weight[3] = torch.inf
    with pytest.raises(
        ValueError, match=r"what layers.1.ffn.gate reads must be finite and not empty, got shape \(3, 3"
    ):
        map_outliers(model, [TOKENS], name="spoiled")
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_without_a_path_the_course_model_is_mapped():
    found = outlier_map(None, TEXT, sequence=90)
    assert found.model == "the course model" and found.largest.shape == (13, 256)
    assert not len(found.outliers)
    for text, sequence in ((TEXT[:0], 512), (TEXT, 0)):
        with pytest.raises(ValueError, match="text and sequence must be at least 1, got"):
            outlier_map(None, text, sequence=sequence)


def saved(folder, architectures, *, weights=True):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": architectures}))
    if weights:
        save_file({"weight": torch.zeros(1)}, folder / "model-00001-of-00001.safetensors")
    return folder


def test_folders_that_hold_no_model_get_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # an attempt to import it would say something else
    with pytest.raises(ValueError, match="there is no such folder"):
        outlier_map(tmp_path / "nowhere", TEXT)
    with pytest.raises(ValueError, match="there is no such folder"):
        outlier_map("someone/some-model", TEXT)  # the name of a model to download
    with pytest.raises(ValueError, match=r"must hold config.json"):
        outlier_map(tmp_path, TEXT)
    for architectures, got in ((["T5ForConditionalGeneration"], "T5For"), ([], "no name"), (None, "no name")):
        with pytest.raises(ValueError, match=f"must hold a causal language model, got {got}"):
            outlier_map(saved(tmp_path, architectures), TEXT)
    with pytest.raises(ValueError, match=r"must hold its weights as .safetensors"):
        outlier_map(saved(tmp_path / "bare", ["LlamaForCausalLM"], weights=False), TEXT)


def test_without_transformers_the_command_is_told(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find_spec(name))
    with pytest.raises(ModuleNotFoundError, match="`pip install transformers` brings it"):
        outlier_map(saved(tmp_path, ["LlamaForCausalLM"]), TEXT)


class Conv1D(nn.Module):
    """A linear layer as GPT-2's in transformers: its weight is (in, out)."""

    def __init__(self, width, out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, out)), nn.Parameter(torch.randn(out))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Stand(nn.Module):
    """A causal language model as transformers loads it, as far as the map cares."""

    def __init__(self, dtype):
        super().__init__()
        self.embedding, self.mlp = nn.Embedding(256, 4), nn.Sequential(Conv1D(4, 4), nn.Dropout(0.5), Conv1D(4, 8))
        self.config, self.dtype, self.lengths = types.SimpleNamespace(max_position_embeddings=50), dtype, []

    def bfloat16(self):
        self.dtype = torch.bfloat16
        return super().bfloat16()

    def forward(self, tokens):
        self.lengths.append(tokens.shape[1])
        return types.SimpleNamespace(logits=self.mlp(self.embedding(tokens)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_on_disk_is_loaded_from_there_only(tmp_path, monkeypatch, dtype):
    asked, model = [], Stand(dtype).to(dtype)

    def tokenize(words, *, return_tensors):
        assert words == bytes(TEXT.tolist()).decode()
        return {"input_ids": TEXT.long()[None, :130]}

    def loads(result):
        return types.SimpleNamespace(from_pretrained=lambda path, **options: asked.append((path, options)) or result)

    stand_in = types.ModuleType("transformers")
    stand_in.__spec__ = importlib.util.spec_from_loader("transformers", None)
    stand_in.AutoModelForCausalLM, stand_in.AutoTokenizer = loads(model), loads(tokenize)
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    folder = saved(tmp_path / "stand", ["GPT2LMHeadModel"])
    found = outlier_map(str(folder), TEXT)
    assert all(path == folder and options["local_files_only"] for path, options in asked)
    assert all(options["trust_remote_code"] is False for _, options in asked)
    assert asked[1][1]["use_safetensors"] and len(asked) == 2
    assert model.lengths == [50, 50, 30]  # as many as it has positions for, and the rest
    assert found.model == "stand" and found.readers == ("mlp.0", "mlp.2")
    assert not model.training and model.dtype == (torch.bfloat16 if dtype == torch.float16 else dtype)
    assert found.largest.dtype == torch.float32


def test_gpt2s_linear_layers_become_linear_layers():
    model, x = nn.Sequential(Conv1D(6, 10), nn.GELU(), nn.Sequential(Conv1D(10, 3))), torch.randn(2, 5, 6)
    before = model(x)
    assert torch.allclose(_with_linears(model)(x), before, atol=1e-5)
    assert [type(m) for m in model.modules() if hasattr(m, "weight")] == [nn.Linear, nn.Linear]


def drawn(largest, outliers):
    readers = tuple(f"layer {k}" for k in range(len(largest)))
    return OutlierMap("a model", readers, largest, torch.tensor(outliers, dtype=torch.int64), PAPER_RULE)


def test_the_figure_shows_every_magnitude_and_marks_the_outliers():
    largest = torch.rand(5, 300) + 0.5
    largest[0, 9] = 0
    largest[1:4, 7] = 90
    ax = outlier_map_figure(drawn(largest, [7]))
    (image,) = ax.images
    assert torch.equal(torch.as_tensor(image.get_array().data), largest.clamp(min=0.09))
    assert ax.lines[0].get_xdata().tolist() == [7]
    x, y = ax.transData.transform((7, 2))  # the column lies where its dimension is
    assert ax.get_xlim() == (-0.5, 299.5) and ax.transData.inverted().transform((x, y))[0] == pytest.approx(7)
    assert "dimension" in ax.get_xlabel() and "input" in ax.get_ylabel() and ax.get_title() == "a model"
    assert ax.figure.axes[1].get_ylabel() == "largest magnitude"
    assert ax.patch.get_alpha() == ax.figure.patch.get_alpha() == 0


def test_a_needle_in_a_wide_model_is_not_lost_between_pixels():
    largest = torch.full((80, 5000), 0.5)
    largest[:, 4999] = 70
    ax = outlier_map_figure(drawn(largest, [4999]))
    shown = torch.as_tensor(ax.images[0].get_array().data)
    assert shown.shape == (80, 500) and (shown[:, -1] == 70).all() and (shown[:, :-1] == 0.5).all()
    assert ax.images[0].get_extent()[:2] == [-0.5, 4999.5]


@pytest.mark.parametrize("largest", [torch.zeros(2, 8), torch.ones(1, 1), torch.tensor([[0.0, 3.0]])])
def test_odd_maps_are_drawn(largest):
    ax = outlier_map_figure(drawn(largest, []))
    ax.figure.canvas.draw()
    assert not len(ax.lines[0].get_xdata())


def test_the_figure_can_be_drawn_into_axes():
    _, ax = mpl.pyplot.subplots()
    assert outlier_map_figure(drawn(torch.ones(2, 3), [0]), ax=ax) is ax
