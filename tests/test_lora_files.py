"""Adapter files: round trips, PEFT's layout both ways, and files that must not be taken."""

import json
import logging
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qlab.lora import LoRALinear, QLoRALinear, adapted_layers, adapter_state, inject, load_adapters, save_adapters
from qlab.lora import files as adapter_files

for chatter in ("torchao", "torch.utils._pytree", "bitsandbytes"):  # loggers that complain while peft is imported
    logging.getLogger(chatter).setLevel(logging.ERROR)

import peft  # noqa: E402 - the loggers must be quiet first

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(8))
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


def base(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(Block(), Block())


def adapted(seed=1, *, rank=3, alpha=6, kind=LoRALinear):
    """Return the base with adapters drawn from `seed`; those of `down` have another rank and alpha."""
    model = base()
    inject(model, "up", lambda linear: kind(linear, rank=rank, alpha=alpha))
    inject(model, "down", lambda linear: kind(linear, rank=rank + 1, alpha=5))
    torch.manual_seed(seed)
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.lora_a, std=0.3)
        nn.init.normal_(layer.lora_b, std=0.3)
    return model


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_adapter_state_holds_the_adapters_by_their_names_in_the_state_dict():
    model = adapted()
    state = adapter_state(model)
    assert list(state)[:2] == ["0.up.lora_a", "0.up.lora_b"] and len(state) == 8
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    assert not any(tensor.requires_grad for tensor in state.values())
    other = adapted(2)
    assert other.load_state_dict(state, strict=False).unexpected_keys == []
    assert torch.equal(other(X), model(X))
    assert list(adapter_state(LoRALinear(nn.Linear(3, 3), rank=1, alpha=1))) == ["lora_a", "lora_b"]


@pytest.mark.parametrize("kind", [LoRALinear, QLoRALinear])
def test_adapters_alone_go_round(kind, tmp_path):
    model, other = adapted(kind=kind), adapted(2, alpha=1, kind=kind)
    size = save_adapters(model, tmp_path / "new" / "folder")
    assert size == (tmp_path / "new" / "folder" / TENSORS).stat().st_size
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [CONFIG, TENSORS]
    other.get_submodule("0.up").merge()
    assert load_adapters(other, tmp_path / "new" / "folder") == ("0.up", "0.down", "1.up", "1.down")
    assert torch.equal(other(X), model(X)) and other.get_submodule("0.up").alpha == 6
    numbers = sum(tensor.numel() for tensor in adapter_state(model).values())
    assert 4 * numbers < size < 4 * numbers + 2000
    save_adapters(adapted(3, kind=kind), tmp_path / "new" / "folder")  # over the old ones
    load_adapters(other, tmp_path / "new" / "folder")
    assert torch.equal(other(X), adapted(3, kind=kind)(X))


def test_a_16_bit_file_is_read_into_fp32_adapters(tmp_path):
    model = adapted()
    for layer in adapted_layers(model).values():
        layer.lora_a.data, layer.lora_b.data = layer.lora_a.data.bfloat16(), layer.lora_b.data.bfloat16()
    save_adapters(model, tmp_path)
    other = adapted(2)
    load_adapters(other, tmp_path)
    assert {tensor.dtype for tensor in adapter_state(other).values()} == {torch.float32}
    assert all(torch.equal(tensor, adapter_state(model)[name].float()) for name, tensor in adapter_state(other).items())


def test_peft_reads_what_we_write(tmp_path):
    model = adapted()
    save_adapters(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
    torch.testing.assert_close(theirs(X), model(X), rtol=1e-6, atol=2e-6)
    for name, layer in adapted_layers(model).items():
        twin = theirs.get_submodule(f"base_model.model.{name}")
        assert torch.equal(twin.lora_A["default"].weight, layer.lora_a)
        assert twin.scaling["default"] == layer.scaling
        torch.testing.assert_close(twin.get_delta_weight("default"), layer.update(), rtol=0, atol=1e-7)
    merged = theirs.merge_and_unload()
    for name, layer in adapted_layers(model).items():
        torch.testing.assert_close(merged.get_submodule(name).weight, layer.merged_weight(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("rslora", [False, True])
def test_we_read_what_peft_writes(rslora, tmp_path):
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["up", "down"],
        rank_pattern={"down": 4},
        alpha_pattern={"down": 5},
        use_rslora=rslora,
    )
    theirs = peft.get_peft_model(base(), config)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    ours = adapted(alpha=1)
    load_adapters(ours, tmp_path)
    torch.testing.assert_close(ours(X), theirs.eval()(X), rtol=1e-6, atol=2e-6)


def test_gradients_are_peft_s(tmp_path):
    model = adapted()
    save_adapters(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    model(X).square().sum().backward()
    theirs(X).square().sum().backward()
    for name, layer in adapted_layers(model).items():
        twin = theirs.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(layer.lora_a.grad, twin.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.lora_b.grad, twin.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-5)


def cut(folder):
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[: len(content) // 2])


def empty(folder):
    (folder / TENSORS).write_bytes(b"")


def rewrite(folder, change, metadata=None):
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS, metadata=metadata)


def edit_config(**fields):
    def edit(folder):
        rewrite(folder, lambda tensors: None)  # without our metadata the configuration counts
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | fields))

    return edit


def cut_config(folder):
    edit_config()(folder)
    (folder / CONFIG).write_text((folder / CONFIG).read_text()[:40])


def no_config(folder):
    edit_config()(folder)
    (folder / CONFIG).unlink()


FIRST = "base_model.model.0.up.lora_A.weight"
BAD_FILES = [
    (cut, "adapter_model.safetensors of .* bytes is truncated or no safetensors file"),
    (empty, "adapter_model.safetensors of 0 bytes is truncated or no safetensors file"),
    (lambda folder: (folder / TENSORS).write_text("hello"), "is truncated or no safetensors file"),
    (lambda folder: rewrite(folder, lambda t: t.pop(FIRST)), "1 of the model's are missing and 0 of the file's"),
    (lambda folder: rewrite(folder, lambda t: t.update(x=torch.ones(1))), "and 1 of the file's are not in the model"),
    (
        lambda folder: rewrite(folder, lambda t: t.update({FIRST: torch.ones(7, 12)})),
        r"0\.up\.lora_A\.weight must have the model's shape \(3, 12\), the file's is \(7, 12\)",
    ),
    (
        lambda folder: rewrite(folder, lambda t: None, {"qlab.alpha": '{"0.up": 0}'}),
        "every alpha must be above 0 and finite, the file has",
    ),
    (lambda folder: rewrite(folder, lambda t: None, {"qlab.alpha": "[1"}), "no JSON"),
    (lambda folder: rewrite(folder, lambda t: None, {"qlab.alpha": "[1]"}), "must hold named fields, got a list"),
    (edit_config(peft_type="IA3"), "must describe plain LoRA on an unchanged base, got"),
    (edit_config(use_dora=True), "must describe plain LoRA on an unchanged base, got"),
    (edit_config(init_lora_weights="pissa"), "must describe plain LoRA on an unchanged base, got"),
    (edit_config(lora_alpha=None), "every alpha must be above 0 and finite"),
    (cut_config, "adapter_config.json is truncated or no JSON"),
]


@pytest.mark.parametrize(("damage", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_bad_file_is_refused_and_nothing_is_loaded(damage, message, tmp_path):
    save_adapters(adapted(), tmp_path)
    damage(tmp_path)
    other = adapted(2, alpha=1)
    other.get_submodule("0.up").merge()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=message + r"[\s\S]*: nothing was loaded"):
        load_adapters(other, tmp_path)
    assert equal_states(other.state_dict(), before)
    assert other.get_submodule("0.up").merged and other.get_submodule("0.up").alpha == 1


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors is missing in .*: nothing was loaded"):
        load_adapters(adapted(), tmp_path)
    save_adapters(adapted(), tmp_path)
    no_config(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing"):
        load_adapters(adapted(), tmp_path)
    for function in (save_adapters, load_adapters):
        with pytest.raises(ValueError, match="a Sequential without adapted layers was given: inject some first"):
            function(base(), tmp_path)


def test_a_write_that_fails_leaves_the_old_files_whole(tmp_path, monkeypatch):
    model = adapted()
    save_adapters(model, tmp_path)

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half of")
        raise OSError("no space left on device")

    monkeypatch.setattr(adapter_files, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_adapters(adapted(2), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [CONFIG, TENSORS]
    other = adapted(3)
    load_adapters(other, tmp_path)
    assert torch.equal(other(X), model(X))


def test_a_file_of_ours_needs_no_configuration(tmp_path):
    model = adapted()
    save_adapters(model, tmp_path / "a")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / TENSORS, tmp_path / "b")
    other = adapted(2, alpha=1)
    load_adapters(other, tmp_path / "b")
    assert torch.equal(other(X), model(X))


def test_what_peft_s_loaders_look_for_is_written(tmp_path):
    save_adapters(adapted(), tmp_path, base_model="somebody/model", task_type="CAUSAL_LM")
    config = peft.LoraConfig.from_pretrained(tmp_path)
    assert (config.base_model_name_or_path, config.task_type) == ("somebody/model", "CAUSAL_LM")
    assert config.r == 3 and config.target_modules == {"0.up", "0.down", "1.up", "1.down"}
