"""The plan of a fine-tuning run: what it predicts is what is measured, and the richest way that fits is taken."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from qlab.bill import budget_of
from qlab.finetune import data, load, needs, plan, skeleton, source, training
from qlab.finetune.libraries import transformers
from qlab.finetune.settings import Settings
from qlab.measure import PeakBytes
from qlab.memory import GB, NF4_DOUBLE_QUANTIZED_BYTES
from tests import tiny_llama

pytestmark = pytest.mark.xdist_group("finetune")  # one worker imports the libraries, which takes seconds
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_llama.save(tmp_path_factory.mktemp("model"))


def settings(model: Path | str = "tiny", **changes) -> Settings:
    return Settings(**{"model": str(model), "data": Path("t.txt"), "sequence": 128, "batch": 4} | changes)


def tensors_of(layer: nn.Module) -> list[torch.Tensor]:
    found = [*layer.parameters(), *layer.buffers()]
    states = [p.quant_state for p in found if hasattr(p, "quant_state")]
    return found + [t for s in states for t in (s.absmax, s.code, s.offset, s.state2.absmax, s.state2.code)]


@pytest.mark.parametrize("way", ["lora", "qlora"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_predicted_bytes_are_those_measured(model, way, recompute):
    asked = settings(model, way=way)
    found = source.find(str(model))
    (planned,) = [
        p for p in plan.plans(found.config, asked) if (p.recompute, p.micro_batch, p.accumulation) == (recompute, 2, 2)
    ]
    base = load.load_base(found, way, CPU)
    assert planned.frozen == sum(t.untyped_storage().nbytes() for t in tensors_of(base))
    adapted = load.prepare(base, asked, planned)
    assert planned.adapters == sum(p.nbytes for p in load.trained(adapted).values())
    windows = data.windows(
        [data.Document(tiny_llama.library_text("heapq.py"))], source.read_tokenizer(found), sequence=128
    )
    trainer = training.Trainer(adapted, training.make_optimizer(adapted, asked), windows, asked, 2)
    trainer.step()
    with PeakBytes() as peak:
        trainer.step()
    step = planned.gradients + planned.activations + planned.unpacked
    assert 0.95 * step < peak.bytes <= step
    states = [t for state in trainer.optimizer.state.values() for name, t in state.items() if name != "step"]
    assert planned.optimizer == sum(t.nbytes for t in states)


def test_the_8_bit_optimizer_is_predicted_by_its_states(model):
    optimizers = pytest.importorskip("qlab.optimizers", reason="not built yet")
    asked = settings(model, optimizer="adamw8bit", rank=64)
    found = source.find(str(model))
    planned = next(plan.plans(found.config, asked))
    adapted = load.prepare(load.load_base(found, "lora", CPU), asked, planned)
    windows = data.windows([data.Document("word " * 500)], source.read_tokenizer(found), sequence=128)
    trainer = training.Trainer(adapted, training.make_optimizer(adapted, asked), windows, asked, 2)
    trainer.step()
    counters = len(trainer.optimizer.state) * 8
    assert 0 <= optimizers.state_bytes(trainer.optimizer) - planned.optimizer <= counters


def llama_3_8b():
    """Llama Team 2024, arXiv:2407.21783, table 3: 32 layers, width 4096, 32 heads, 8 of them keys, ffn 14336."""
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    return tiny_llama.config(**shape, **heads, vocab_size=128256, max_position_embeddings=8192)


def test_a_model_of_8_billion_parameters_is_weighed_without_its_numbers():
    weight = skeleton.weigh(llama_3_8b(), settings())
    parameters, tables = 8_030_261_248, 2 * 128256 * 4096
    norms = 65 * 4096
    inverse_frequencies = 2 * 4 * 64  # and their copy
    assert weight.frozen["lora"] == 2 * parameters + inverse_frequencies
    packed = (parameters - tables - norms) * NF4_DOUBLE_QUANTIZED_BYTES
    constants = 7 * 32 * 4 * (1 + 16 + 256)
    assert weight.frozen["qlora"] == packed + 2 * (tables + norms) + inverse_frequencies + constants
    assert weight.trained == 41_943_040  # rank 16 on every matrix of every layer
    assert weight.unpacked["qlora"] == 2 * 4096 * 14336


def test_the_richest_way_that_fits_is_taken(monkeypatch):
    config, asked = tiny_llama.config(), settings()
    every = list(plan.plans(config, asked))
    assert [(p.way, p.recompute, p.micro_batch) for p in every] == [
        (way, recompute, size) for way in ("lora", "qlora") for recompute in (False, True) for size in (4, 2, 1)
    ]
    monkeypatch.setattr(plan, "plans", lambda *_: iter(every))
    for wanted in every:
        budget = budget_of(f"{wanted.total / GB:.9f}GB")
        chosen = plan.choose(config, asked, budget)
        assert chosen == next(p for p in every if p.total <= budget.bytes)
        assert chosen.micro_batch * chosen.accumulation == asked.batch
        assert sum(count for _, count in plan.parts(chosen)) == chosen.total <= budget.bytes
    monkeypatch.undo()
    assert plan.choose(config, replace(asked, way="qlora"), budget_of("1GB")).way == "qlora"


GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0}  # with it, a CPU's attention keeps its scores
FAMILIES = {
    "gpt2": (transformers.GPT2Config, GPT2),  # Conv1D, learned positions, tied tables
    "gemma2": (transformers.Gemma2Config, tiny_llama.SHAPE | tiny_llama.HEADS | {"head_dim": 16}),  # no fused attention
    "mistral": (transformers.MistralConfig, tiny_llama.SHAPE | tiny_llama.HEADS | {"sliding_window": 32}),
    "mixtral": (transformers.MixtralConfig, tiny_llama.SHAPE | tiny_llama.HEADS | {"num_local_experts": 4}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_predicted_too(family, tmp_path):
    kind, shape = FAMILIES[family]
    config = kind(vocab_size=tiny_llama.VOCABULARY, bos_token_id=0, eos_token_id=1, pad_token_id=1, **shape)
    transformers.utils.logging.disable_progress_bar()
    transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(tmp_path)
    found, asked = source.find(str(tmp_path)), settings(tmp_path, sequence=64)
    planned = next(p for p in plan.plans(found.config, asked) if p.micro_batch == 2)
    base = load.load_base(found, "lora", CPU)
    assert planned.frozen == sum(t.untyped_storage().nbytes() for t in tensors_of(base))
    tokens = torch.randint(tiny_llama.VOCABULARY, (4, 64))
    adapted = load.prepare(base, asked, planned)
    optimizer = training.make_optimizer(adapted, asked)
    trainer = training.Trainer(adapted, optimizer, data.Windows(tokens, tokens, 1.0), asked, 2)
    trainer.step()
    with PeakBytes() as peak:
        trainer.step()
    assert peak.bytes == pytest.approx(planned.gradients + planned.activations, rel=0.03)


def test_a_budget_that_holds_the_base_and_no_step():
    config, asked = tiny_llama.config(), settings()
    smallest = min(plan.plans(config, asked), key=lambda p: p.total)
    with pytest.raises(ValueError, match=r"the smallest step .* needs .* more than .*--sequence \d+ would about fit"):
        plan.choose(config, asked, budget_of(f"{(smallest.total - 300_000) / GB:.9f}"))
    with pytest.raises(ValueError, match="a lower --rank or more memory is needed"):
        plan.choose(config, asked, budget_of(f"{smallest.resident / GB:.9f}"))


def test_a_budget_that_cannot_hold_the_frozen_base():
    with pytest.raises(ValueError, match=r"the frozen base alone needs 5\.\d\d GB .* in 4 bits, .* budget of 5\.00 GB"):
        plan.choose(llama_3_8b(), settings(), budget_of("5GB"))
    with pytest.raises(ValueError, match=r"needs 16\.06 GB .* in 16 bits.*--way qlora would take about a quarter"):
        plan.choose(llama_3_8b(), settings(way="lora"), budget_of("8GB"))


def test_a_sequence_longer_than_the_model():
    with pytest.raises(ValueError, match="sequence must be at most the model's 256, got 257"):
        plan.choose(tiny_llama.config(), settings(sequence=257), budget_of("1GB"))


def test_the_table_says_way_parts_and_what_is_left():
    budget = budget_of("8GB")
    text = plan.as_table(next(plan.plans(tiny_llama.config(), settings(way="qlora"))), budget)
    for word in (
        "4-bit weights (NF4, double quantization)",
        "4 at a time, 1 times a step",
        "kept",
        "frozen base",
        "left",
    ):
        assert word in text


class TestTargets:
    def test_all_linear_leaves_the_head_out(self):
        names = skeleton.target_names(skeleton.skeleton(tiny_llama.config()), "all-linear")
        assert len(names) == 14 and not [name for name in names if "head" in name]

    def test_a_pattern_is_held_against_the_whole_name(self):
        model = skeleton.skeleton(tiny_llama.config())
        assert skeleton.target_names(model, r".*layers\.1\..*[qv]_proj") == (
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.self_attn.v_proj",
        )
        with pytest.raises(ValueError, match=r"no linear layer is called as 'q_proj' says.*'\.\*q_proj' would match"):
            skeleton.target_names(model, "q_proj")
        with pytest.raises(ValueError, match=r"'none'.*there are model\.layers\.0\.self_attn\.q_proj, "):
            skeleton.target_names(model, "none")
        with pytest.raises(ValueError, match="lm_head"):
            skeleton.target_names(model, "lm_head")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": " "}, "model must be a folder or a Hub id, got ' '"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"steps": -1}, "steps must be at least 1, got -1"),
        ({"sequence": 1}, "sequence must be at least 2, got 1"),
        ({"alpha": math.inf}, "alpha must be above 0 and finite, got inf"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0 and finite, got nan"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"way": "full"}, "way must be one of auto, lora, qlora, got 'full'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adamw8bit, got 'sgd'"),
        ({"targets": "("}, r"regular expression, got '\('"),
    ],
)
def test_settings_that_cannot_be(changes, said):
    with pytest.raises(ValueError, match=said):
        settings(**changes)


class TestDevice:
    def test_auto_is_the_first_gpu_or_the_cpu(self):
        assert load.pick_device("auto") == torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        assert load.pick_device("cpu") == CPU

    @pytest.mark.parametrize("name", ["cuda:99", "mps", "graphics", "", "meta"])
    def test_a_device_that_is_not_there(self, name):
        with pytest.raises(ValueError, match=r"device must be auto, cpu or cuda|is not there"):
            load.pick_device(name)

    def test_a_weight_on_another_device_is_named(self):
        layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
        with pytest.raises(ValueError, match=r"1\.weight is on meta, and the run on cpu"):
            load.check_devices(layers, CPU)
        load.check_devices(layers[:1], CPU)


class TestSource:
    def test_a_copy_has_the_same_fingerprint_and_other_weights_another(self, model, tmp_path):
        other = tiny_llama.save(tmp_path / "other", intermediate_size=192)
        assert source.find(str(model)).fingerprint == source.find(os.path.relpath(model)).fingerprint
        assert source.find(str(other)).fingerprint != source.find(str(model)).fingerprint

    @pytest.mark.parametrize("length", [0, 5, 100, -1])
    def test_weights_cut_short(self, tmp_path, length):
        folder = tiny_llama.save(tmp_path)
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            source.find(str(folder))

    def test_shards_of_which_one_is_missing(self, tmp_path):
        folder = tiny_llama.save(tmp_path)
        (folder / source.INDEX).write_text('{"weight_map": {"a": "model.safetensors", "b": "two.safetensors"}}')
        with pytest.raises(ValueError, match=r"1 of 2 weight files are missing, two\.safetensors among them"):
            source.find(str(folder))
        (folder / source.INDEX).write_text("{}")
        with pytest.raises(ValueError, match="is damaged: it does not say which file"):
            source.find(str(folder))

    def test_other_folders(self, tmp_path):
        with pytest.raises(ValueError, match=r"holds no config\.json"):
            source.find(str(tmp_path))
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ValueError, match="is not a configuration that transformers knows"):
            source.find(str(tmp_path))
        folder = tiny_llama.save(tmp_path)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"it has no model\.safetensors"):
            source.find(str(folder))

    def test_weights_that_are_quantized_already(self, tmp_path):
        folder = tiny_llama.save(tmp_path)
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace("{", '{"quantization_config": {"quant_method": "gptq"},', 1))
        with pytest.raises(ValueError, match="is quantized already"):
            source.find(str(folder))

    def test_a_model_that_writes_no_text(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
        with pytest.raises(ValueError, match="vit cannot be fine-tuned here"):
            skeleton.skeleton(source.read_config(tmp_path))

    @pytest.mark.parametrize("name", ["owner/none", "none", "a/b/c", "/none/at/all", "~/none"])
    def test_a_name_that_is_nowhere(self, name, monkeypatch):
        monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the Hub was asked"))
        with pytest.raises(ValueError, match=r"stays offline unless|no Hub id such as"):
            source.find(name)

    def test_a_tokenizer_that_is_missing(self, tmp_path):
        folder = tiny_llama.save(tmp_path)
        for path in folder.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(ValueError, match="has no tokenizer that can be read"):
            source.read_tokenizer(source.find(str(folder)))

    def test_a_weight_that_the_file_lacks(self, tmp_path):
        folder = tiny_llama.save(tmp_path)
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
        with pytest.raises(ValueError, match=r"lacks 9 weights, .*layers\.2\."):
            load.load_base(source.find(str(folder)), "lora", CPU)


def test_what_is_missing_is_named_with_a_way_to_get_it(monkeypatch):
    assert needs.absent() == ()
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert needs.absent() == ("peft",)
    with pytest.raises(ValueError, match=r"^peft is not installed: .*make lab EXTRAS=finetune.*pip install -c"):
        needs.require()
