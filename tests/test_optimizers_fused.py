"""The bridge from `Adam8bit` to the Triton kernel: the same step, interpreted on a CPU or compiled on a CUDA GPU."""

import pytest
import torch

pytest.importorskip("triton")

from qlab.attention_triton import DEVICE
from qlab.optimizers import Adam8bit, AdamW8bit
from qlab.optimizers.adam import AdamSettings, corrected
from qlab.optimizers.coded_update import CodedMoment, coded_adam_update
from qlab.optimizers.fused import can_fuse, fused_update


def drawn(count, *, block_size):
    codes = torch.randint(256, (2, count), dtype=torch.uint8, device=DEVICE)
    absmax = torch.rand(2, -(-count // block_size), device=DEVICE)
    moments = tuple(CodedMoment(codes[i].clone(), absmax[i].clone(), signed=not i) for i in range(2))
    return torch.randn(count, device=DEVICE), torch.randn(count, device=DEVICE), moments


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(("count", "block_size"), [(5000, 256), (4099, 64)])
def test_the_kernel_takes_the_step_of_the_plain_form(count, block_size, decoupled):
    parameter, gradient, moments = drawn(count, block_size=block_size)
    other = parameter.clone()
    twins = tuple(CodedMoment(one.codes.clone(), one.absmax.clone(), one.signed) for one in moments)
    rates = corrected(AdamSettings(lr=1e-2, weight_decay=0.1, decoupled=decoupled), 3)
    fused_update(parameter, gradient, moments, rates, block_size=block_size)
    coded_adam_update(other, gradient, twins, rates, block_size=block_size)
    assert torch.allclose(parameter, other, rtol=1e-5, atol=1e-6)
    for one, twin in zip(moments, twins, strict=True):
        assert torch.allclose(one.absmax, twin.absmax, rtol=1e-6)
        assert (one.codes != twin.codes).float().mean() < 1e-3


def test_a_cpu_parameter_takes_the_plain_form():
    assert not can_fuse(torch.zeros(5000), block_size=256)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Adam8bit, AdamW8bit])
def test_on_a_gpu_the_optimizer_takes_the_steps_of_a_cpu(kind):
    one = torch.nn.Parameter(torch.randn(300, 100))
    other = torch.nn.Parameter(one.detach().cuda())
    ours, peer = (kind([weight], lr=1e-2, weight_decay=0.1) for weight in (other, one))
    for _ in range(5):
        one.grad = torch.randn(300, 100)
        other.grad = one.grad.cuda()
        ours.step()
        peer.step()
    assert can_fuse(other.detach().view(-1), block_size=256)
    assert (other.cpu() - one).abs().mean() < 1e-4
    again = kind([other])
    again.load_state_dict(ours.state_dict())
    assert again.state[other]["exp_avg"].is_cuda
