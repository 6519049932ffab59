"""QLoRA beside PEFT on bitsandbytes' `Linear4bit`: outputs, gradients, and the merge that PEFT itself warns of."""

import logging

import pytest
import torch
from torch import nn

from qlab.lora import QLoRALinear

for chatter in ("torchao", "torch.utils._pytree", "bitsandbytes"):  # loggers that complain while peft is imported
    logging.getLogger(chatter).setLevel(logging.ERROR)

import bitsandbytes  # noqa: E402 - the loggers must be quiet first
import peft  # noqa: E402


def both(*, double, inputs=128, outputs=64):
    """Return our layer and PEFT's, from one weight and with one adapter."""
    plain = nn.Linear(inputs, outputs)
    coded = bitsandbytes.nn.Linear4bit(
        inputs, outputs, compute_dtype=torch.float32, compress_statistics=double, quant_type="nf4"
    )
    coded.load_state_dict(plain.state_dict())
    model = nn.Sequential(coded.to("cpu"))
    model.is_loaded_in_4bit = True
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0"])
    theirs = peft.get_peft_model(model, config).base_model.model[0]
    nn.init.normal_(theirs.lora_B["default"].weight, std=0.1)
    ours = QLoRALinear(plain, rank=4, alpha=6, double=double)
    with torch.no_grad():
        ours.lora_a.copy_(theirs.lora_A["default"].weight)
        ours.lora_b.copy_(theirs.lora_B["default"].weight)
    return ours, theirs


def dequantized(theirs):
    weight = theirs.base_layer.weight
    return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)


@pytest.mark.parametrize("double", [True, False])
def test_outputs_and_gradients_are_peft_s(double):
    ours, theirs = both(double=double)
    x, other = (t.requires_grad_() for t in torch.randn(10, 128).expand(2, -1, -1).clone())
    a, b = ours(x), theirs(other)
    bound = 2e-3 if double else 1e-5  # an absmax that its CPU kernel codes a level off moves a block
    torch.testing.assert_close(a, b, rtol=bound, atol=bound)
    a.square().sum().backward()
    b.square().sum().backward()
    pairs = [
        (x.grad, other.grad),
        (ours.lora_a.grad, theirs.lora_A["default"].weight.grad),
        (ours.lora_b.grad, theirs.lora_B["default"].weight.grad),
    ]
    for mine, peer in pairs:
        torch.testing.assert_close(mine, peer, rtol=10 * bound, atol=10 * bound)


@pytest.mark.parametrize("double", [True, False])
def test_a_merge_into_codes_loses_what_peft_s_loses(double):
    ours, theirs = both(double=double)
    exact = ours.merged_weight()
    told = ours.merge_to_codes()
    with pytest.warns(UserWarning, match="may get different generations due to rounding errors"):
        theirs.merge()
    lost = (dequantized(theirs) - exact).norm().item()
    assert told.error_norm == pytest.approx(lost, rel=0.01) and lost > 0.1 * told.update_norm
