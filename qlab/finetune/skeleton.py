"""The real model without its numbers, on torch's meta device: what it weighs, and what a step of it needs.

A meta tensor has a shape, a type and no values, so that an 8 B model and its training step are "run" in seconds and no
memory, operation by operation, and `qlab.measure.PeakBytes` counts what each would allocate.
"""

import copy
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qlab.finetune.libraries import AttentionInterface, AutoModelForCausalLM, Conv1D, expected_warnings, peft
from qlab.finetune.settings import ALL_LINEAR, LORA, QLORA, Settings
from qlab.measure import PeakBytes

FUSED, EAGER = "qlab_fused", "qlab_eager"  # stand-ins for attention, by the names that transformers is to know
BLOCK, SECOND_BLOCK = 64, 256  # bitsandbytes' own sizes for NF4 and for its constants
SHOWN_NAMES = 3


class FusedShape(torch.autograd.Function):
    """Stand in for a fused attention: it saves queries, keys, values, the result and one number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return a tensor as large as the queries."""
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Return gradients as large as queries, keys and values."""
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def _fused(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **how: Any) -> tuple[Tensor, None]:
    heads, length = query.shape[1:3]
    if (how.get("sliding_window") or length) < length:  # with a mask, keys are copied for each query head
        copies = heads // key.shape[1]
        key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    return FusedShape.apply(query, key, value).transpose(1, 2).contiguous(), None


def _eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **how: Any) -> Any:
    mask = query.new_empty(1, 1, query.shape[2], key.shape[2])  # the model's own would be filled from values
    return sys.modules[type(module).__module__].eager_attention_forward(module, query, key, value, mask, **how)


AttentionInterface.register(FUSED, _fused)
AttentionInterface.register(EAGER, _eager)


@dataclass(frozen=True)
class Weight:
    """What a model weighs before any step: frozen weights both ways, trained parameters one by one.

    Units:   bytes; `unpacked` is the largest 4-bit matrix in 16 bits, which a product needs for a moment.
    """

    frozen: dict[str, int]
    unpacked: dict[str, int]
    adapters: tuple[int, ...]

    @property
    def trained(self) -> int:
        """Trained parameters."""
        return sum(self.adapters)


def skeleton(config: Any, attention: str | None = None) -> nn.Module:
    """Build the model of `config` in BF16 on the meta device, with transformers' choice of attention or another.

    Errors:  ValueError if transformers has no causal language model for it.
    """
    given, config = {} if attention is None else {"attn_implementation": attention}, copy.deepcopy(config)
    config.pad_token_id = None  # a model that knows one would look for it among the values
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, **given)
    except Exception as error:  # each family of models refuses in its own way
        raise ValueError(f"{config.model_type} cannot be fine-tuned here: {str(error).splitlines()[0]}") from None


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name the linear layers of a model, but for the one that gives the logits."""
    head = model.get_output_embeddings()
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    }


def target_names(model: nn.Module, pattern: str) -> tuple[str, ...]:
    """Name the layers that get an adapter: all linear ones, or those whose whole name `pattern` matches.

    Errors:  ValueError if no layer is called so, with names that there are.
    """
    names = list(linear_layers(model))
    chosen = [name for name in names if pattern == ALL_LINEAR or re.fullmatch(pattern, name)]
    if not chosen:
        hint = f"; '.*{pattern}' would match" if any(name.endswith(pattern) for name in names) else ""
        such = ", ".join(names[:SHOWN_NAMES]) or "none at all"
        raise ValueError(f"no linear layer is called as {pattern!r} says: there are {such} and so on{hint}")
    return tuple(chosen)


def with_adapters(model: nn.Module, settings: Settings) -> nn.Module:
    """Freeze `model` and put FP32 adapters beside its target layers."""
    names = list(target_names(model, settings.targets))
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names,
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in names),
        task_type="CAUSAL_LM",
    )
    with expected_warnings():
        return peft.get_peft_model(model, config)


def checkpointed(model: nn.Module) -> None:
    """Let every decoder layer of `model` be recomputed in the backward pass."""
    if not getattr(model, "supports_gradient_checkpointing", True):
        raise ValueError(f"{type(model).__name__} cannot recompute its layers")
    model.activation_checkpointing_enable({"use_reentrant": False})


def weigh(config: Any, settings: Settings) -> Weight:
    """Weigh the model of `config` both ways, and its adapters."""
    model = skeleton(config)
    packed = {id(layer.weight): layer.weight.numel() for layer in linear_layers(model).values()}
    whole = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    narrow = whole + sum(nf4_bytes(count) - 2 * count for count in packed.values())
    adapted = with_adapters(model, settings)
    trained = tuple(p.numel() for p in adapted.parameters() if p.requires_grad)
    return Weight({LORA: whole, QLORA: narrow}, {LORA: 0, QLORA: 2 * max(packed.values(), default=0)}, trained)


def nf4_bytes(count: int) -> int:
    """Size a matrix of `count` weights as bitsandbytes keeps it in NF4 with double quantization.

    Half a byte a weight, a byte a block, FP32 for 256 blocks; and each layer for itself, in FP32, the mean that was
    taken off the constants and two tables of levels, of 16 and of 256.
    """
    blocks = -(-count // BLOCK)
    return -(-count // 2) + blocks + 4 * -(-blocks // SECOND_BLOCK) + 4 * (1 + 16 + 256)


def step_bytes(config: Any, settings: Settings, *, recompute: bool) -> int:
    """Count what the forward and backward pass of one sequence allocate at the most, gradients of adapters left out.

    Not counted: the scores that a CPU keeps where a model, as GPT-2 does, drops some of them.
    Errors:  ValueError if the model cannot be run without its numbers.
    """
    chosen = skeleton(config).config._attn_implementation  # what the real model will run with
    model = skeleton(config, FUSED if chosen == "sdpa" else EAGER)
    adapted = with_adapters(model, settings).train()
    if recompute:
        checkpointed(model)
    tokens = torch.empty(1, settings.sequence, dtype=torch.long, device="meta")
    for parameter in adapted.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    try:
        with PeakBytes() as peak:
            summed_nats(adapted, tokens, tokens).backward()
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the step of a {config.model_type} cannot be predicted: {reason}") from None
    return peak.bytes


def summed_nats(model: nn.Module, inputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
    """Return the cost of all targets, those to be ignored left out; training and prediction share this."""
    logits = model(input_ids=inputs, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
