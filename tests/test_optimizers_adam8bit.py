"""Adam on 8-bit codes: against its plain form, torch and torchao, as an optimizer of torch, and with bad input."""

import copy
import io
import logging
import pickle

import pytest
import torch

from qlab.codebooks import dynamic_map, nearest_codes
from qlab.optimizers import Adam8bit, AdamW8bit, MappedAdam, QuantizedMoment, state_bytes
from qlab.optimizers import coded_update as room
from qlab.optimizers.coded_update import normalize

NARROW = [torch.float16, torch.bfloat16]


def parameter(*shape, dtype=torch.float32):
    return torch.nn.Parameter(torch.randn(shape).to(dtype))


def twin(of):
    return torch.nn.Parameter(of.detach().clone())


def steps(optimizer, *parameters, count=1, seed=0):
    """Give each parameter the same gradients, of very different magnitudes, and step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for one in parameters:
            gradient = torch.randn(one.shape, generator=generator) * torch.rand(one.shape, generator=generator)
            one.grad = gradient.to(one.dtype)
        optimizer.step()


def kept(optimizer, one):
    return {name: value for name, value in optimizer.state[one].items() if name != "step"}


def same_state(optimizer, one, other_optimizer, other):
    left, right = optimizer.state[one], other_optimizer.state[other]
    assert left.keys() == right.keys() and left["step"] == right["step"]
    return all(torch.equal(left[name], right[name]) for name in kept(optimizer, one))


@pytest.mark.parametrize("count", [4096, 5000, 2**16 + 1, 2**16 + 2**15 - 3])
def test_it_is_the_plain_form_bit_for_bit(count):
    one = parameter(count)
    other = twin(one)
    fast, plain = Adam8bit([one], lr=1e-2), MappedAdam([other], lr=1e-2)
    steps(fast, one, count=5)
    steps(plain, other, count=5)
    assert torch.equal(one, other)
    state, peer = fast.state[one], plain.state[other]
    for ours, theirs in (("exp_avg", "first"), ("exp_avg_sq", "second")):
        assert torch.equal(state[ours].view(-1), peer[theirs].view(-1))
        assert torch.equal(state[f"{ours}_absmax"], peer[f"{theirs}_absmax"])


@pytest.mark.parametrize("block_size", [1, 7, 100, 256, 4096, 10**6])
def test_any_block_size(block_size):
    one = parameter(5000)
    wide = twin(one)
    optimizer, peer = Adam8bit([one], block_size=block_size), torch.optim.Adam([wide])
    steps(optimizer, one, count=3)
    steps(peer, wide, count=3)
    blocks = -(-5000 // block_size)
    assert optimizer.state[one]["exp_avg_absmax"].shape == (blocks,)
    moment = QuantizedMoment(*(optimizer.state[one][n] for n in ("exp_avg", "exp_avg_absmax")), True, block_size)
    largest = peer.state[wide]["exp_avg"].abs().max()
    assert (moment.dequantize() - peer.state[wide]["exp_avg"]).abs().max() < 0.05 * largest


def test_codes_are_the_nearest_to_what_was_computed():
    one = parameter(8192)
    optimizer = Adam8bit([one])
    steps(optimizer, one)
    state = optimizer.state[one]
    mean = 0.1 * one.grad.double()
    absmax = state["exp_avg_absmax"].double().repeat_interleave(256)
    exact = nearest_codes((mean / absmax), dynamic_map(signed=True))
    moved = exact != state["exp_avg"]
    assert moved.float().mean() < 1e-3  # FP32 rounding decides a tie's neighborhood
    assert ((exact.int() - state["exp_avg"].int()).abs() <= 1).all()


@pytest.mark.parametrize("kind", [Adam8bit, AdamW8bit])
def test_small_tensors_are_torchs_bit_for_bit(kind):
    one = parameter(15, 17)
    other = twin(one)
    peer_kind = torch.optim.AdamW if kind is AdamW8bit else torch.optim.Adam
    ours, peer = kind([one], weight_decay=0.1), peer_kind([other], weight_decay=0.1, foreach=False)
    steps(ours, one, count=10)
    steps(peer, other, count=10)
    assert torch.equal(one, other)
    assert all(tensor.dtype == torch.float32 for tensor in kept(ours, one).values())


@pytest.mark.parametrize("kind", [Adam8bit, AdamW8bit])
def test_decay_in_8_bits_is_near_torchs(kind):
    one = parameter(64, 128)
    other = twin(one)
    peer_kind = torch.optim.AdamW if kind is AdamW8bit else torch.optim.Adam
    ours = kind([one], lr=1e-2, weight_decay=0.3)
    peer = peer_kind([other], lr=1e-2, weight_decay=0.3, foreach=False)
    steps(ours, one, count=10)
    steps(peer, other, count=10)
    assert (one - other).norm() < 0.05 * 0.1 * 8192**0.5  # 5 % of ten steps of the learning rate


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("count", [100, 5000])
def test_narrow_parameters_are_computed_in_fp32_and_rounded_once(dtype, count):
    one = parameter(count, dtype=dtype)
    wide = torch.nn.Parameter(one.detach().float())
    ours, peer = Adam8bit([one], lr=1e-2), Adam8bit([wide], lr=1e-2)
    for _ in range(4):
        one.grad = torch.randn(count).to(dtype)
        wide.data, wide.grad = one.detach().float(), one.grad.float()
        ours.step()
        peer.step()
        assert torch.equal(one, wide.to(dtype))
    assert same_state(ours, one, peer, wide)


@pytest.mark.parametrize("shape", [(3, 5), (70, 130)])
def test_a_parameter_that_is_not_contiguous(shape):
    one = torch.nn.Parameter(torch.randn(shape[::-1]).t())
    other = torch.nn.Parameter(one.detach().contiguous())
    assert not one.is_contiguous()
    ours, peer = Adam8bit([one]), Adam8bit([other])
    for _ in range(3):
        one.grad = torch.randn(shape[::-1]).t()
        other.grad = one.grad.contiguous()
        ours.step()
        peer.step()
    assert torch.equal(one, other) and not one.is_contiguous() and same_state(ours, one, peer, other)


def test_a_block_of_zeros_and_one_of_subnormals():
    one = parameter(4096)
    before = one.detach().clone()
    optimizer = Adam8bit([one])
    one.grad = torch.zeros(4096)
    one.grad[256:512] = torch.linspace(1e-21, 4e-20, 256)  # their squares are subnormal
    optimizer.step()
    moments = [QuantizedMoment(*(optimizer.state[one][n + m] for m in ("", "_absmax")), s) for n, s in
               (("exp_avg", True), ("exp_avg_sq", False))]  # fmt: skip
    assert torch.equal(one[512:], before[512:]) and torch.equal(one[:256], before[:256]) and one.isfinite().all()
    mean, squares = (moment.dequantize() for moment in moments)
    assert torch.allclose(mean[256:512], 0.1 * one.grad[256:512], rtol=0.1)
    assert (squares[500:512] > 0).all() and (squares[:256] == 0).all()
    one.grad = torch.zeros(4096)
    optimizer.step()
    assert one.isfinite().all()


def test_normalizing_lifts_subnormal_blocks():
    blocks = torch.tensor([[2e-40, 1e-40], [4.0, -2.0], [0.0, 0.0]])
    normalize(blocks, blocks.abs().amax(1))
    assert torch.allclose(blocks, torch.tensor([[1, 0.5], [1, -0.5], [0, 0]]), rtol=1e-4)


def test_state_is_some_two_bytes_a_parameter():
    weights = [parameter(512, 256), parameter(256)]
    optimizer = Adam8bit(weights)
    steps(optimizer, *weights)
    count = sum(weight.numel() for weight in weights)
    assert state_bytes(optimizer) == 2 * 512 * 256 + 2 * 4 * 512 + 8 * 256
    assert state_bytes(optimizer) / count < 2.1
    peer = torch.optim.Adam(weights)
    peer.step()
    assert state_bytes(peer) == 8 * count + 2 * 4  # and two step counts


def test_state_bytes_count_shared_storage_once():
    one = parameter(10)
    optimizer = torch.optim.SGD([one])
    shared = torch.zeros(100)
    optimizer.state[one] = {"a": shared[:10], "b": [shared[10:], {"c": shared}], "n": 3}
    assert state_bytes(optimizer) == 400


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
@pytest.mark.parametrize("through", ["memory", "file", "pickle", "deepcopy"])
def test_training_resumes_bit_for_bit(dtype, through):
    weights = [parameter(90, 60, dtype=dtype), parameter(33, dtype=dtype)]
    optimizer = Adam8bit(weights, lr=1e-2, weight_decay=0.01)
    steps(optimizer, *weights, count=3)
    if through == "deepcopy":
        again, copies = copy.deepcopy((optimizer, weights))
    elif through == "pickle":
        again, copies = pickle.loads(pickle.dumps((optimizer, weights)))
    else:
        copies = [twin(weight) for weight in weights]
        again = Adam8bit(copies, lr=0.5)
        saved = optimizer.state_dict()
        if through == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        again.load_state_dict(saved)
    assert again.param_groups[0]["lr"] == 1e-2
    steps(optimizer, *weights, count=3, seed=1)
    steps(again, *copies, count=3, seed=1)
    for weight, other in zip(weights, copies, strict=True):
        assert torch.equal(weight, other) and same_state(optimizer, weight, again, other)
    assert again.state[copies[0]]["exp_avg"].dtype == torch.uint8
    assert again.state[copies[0]]["exp_avg_absmax"].dtype == torch.float32


def test_a_loaded_state_is_a_copy():
    one = parameter(5000)
    optimizer = Adam8bit([one])
    steps(optimizer, one)
    other = twin(one)
    again = Adam8bit([other])
    again.load_state_dict(optimizer.state_dict())
    before = {name: value.clone() for name, value in kept(optimizer, one).items()}
    steps(again, other, seed=9)
    assert all(torch.equal(optimizer.state[one][name], value) for name, value in before.items())


def test_groups_schedulers_closures_and_missing_gradients():
    one, late, idle = parameter(5000), parameter(4200), parameter(10)
    optimizer = Adam8bit([{"params": [one, idle], "lr": 0.1}])
    optimizer.add_param_group({"params": late, "lr": 0.2, "block_size": 64})
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    before = [w.detach().clone() for w in (one, late, idle)]

    def closure():
        optimizer.zero_grad()
        loss = one.square().sum() + late.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(sum(w.square().sum().item() for w in before[:2]), rel=1e-5)
    assert (one - before[0]).abs().max().item() == pytest.approx(0.1, rel=1e-3)
    assert (late - before[1]).abs().max().item() == pytest.approx(0.2, rel=1e-3)
    assert torch.equal(idle, before[2]) and not optimizer.state[idle]
    assert optimizer.state[late]["exp_avg_absmax"].shape == (66,)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


def test_named_parameters_and_a_tensor_as_rate():
    layer = torch.nn.Linear(80, 80)
    optimizer = Adam8bit(layer.named_parameters(), lr=torch.tensor(0.1))
    steps(optimizer, *layer.parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_torchao_goes_along():
    """Its update runs without the compiler that it asks for; its code search is ours to the last tie."""
    for chatter in ("torchao", "torch.utils._pytree"):
        logging.getLogger(chatter).setLevel(logging.ERROR)
    torchao = pytest.importorskip("torchao.optim")
    one = parameter(2**13)
    other = twin(one)
    ours, theirs = AdamW8bit([one], lr=1e-3), torchao.AdamW8bit([other], lr=1e-3)
    with torch.compiler.set_stance("force_eager"):
        for step in range(3):
            steps(ours, one, seed=step)
            steps(theirs, other, seed=step)
    assert (one - other).abs().max() < 1e-4  # a tenth of a step
    state, peer = ours.state[one], theirs.state[other]
    for name in ("exp_avg", "exp_avg_sq"):
        assert (state[name] != peer[name].codes).float().mean() < 1e-3


WRONG_RATES = [
    ({"lr": -1.0}, "lr must be at least 0 and finite, got -1.0"),
    ({"betas": (0.9, 1.5)}, r"betas must be .* got \(0.9, 1.5\)"),
    ({"eps": 0.0}, "eps must be .* got 0.0"),
    ({"weight_decay": -0.5}, "weight_decay must be .* got -0.5"),
    ({"block_size": 0}, "block_size must be a whole number of at least 1, got 0"),
    ({"min_8bit_size": -3}, "min_8bit_size must be .* at least 1, got -3"),
]


@pytest.mark.parametrize(("wrong", "sentence"), WRONG_RATES)
def test_bad_settings_are_refused_at_once_and_in_a_group(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Adam8bit([parameter(3)], **wrong)
    optimizer = Adam8bit([parameter(3)])
    with pytest.raises(ValueError, match=sentence):
        optimizer.add_param_group({"params": [parameter(3)], **wrong})
    assert len(optimizer.param_groups) == 1


def test_a_rate_spoiled_later_is_refused_before_anything_is_written():
    one, other = parameter(5000), parameter(5000)
    optimizer = Adam8bit([{"params": one}, {"params": other}])
    optimizer.param_groups[1]["lr"] = float("nan")
    before = one.detach().clone()
    with pytest.raises(ValueError, match="lr must be at least 0 and finite, got nan"):
        steps(optimizer, one, other)
    assert torch.equal(one, before) and not optimizer.state[one]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.float8_e4m3fn])
def test_other_types_of_parameters_are_refused(dtype):
    with pytest.raises(ValueError, match=f"a parameter must be FP32, FP16 or BF16, got {dtype}"):
        Adam8bit([torch.zeros(3).to(dtype).requires_grad_()])
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        Adam8bit([torch.nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)])


def test_an_expanded_parameter_is_refused():
    with pytest.raises(ValueError, match=r"must not be expanded, got shape \(5, 3\)"):
        Adam8bit([torch.nn.Parameter(torch.zeros(3).expand(5, 3))])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
@pytest.mark.parametrize("count", [10, 5000])
def test_a_gradient_that_is_not_finite_overwrites_nothing(bad, dtype, count):
    good, one = parameter(5000), parameter(count, dtype=dtype)
    optimizer = Adam8bit([good, one])
    steps(optimizer, good, one)
    before = copy.deepcopy((optimizer, good, one))
    good.grad = torch.randn(5000)
    one.grad = torch.ones(count, dtype=dtype)
    one.grad[3] = bad
    with pytest.raises(ValueError, match=rf"that of shape \({count},\) holds 1 NaN or infinite values"):
        optimizer.step()
    assert torch.equal(good, before[1]) and torch.equal(one, before[2])
    assert same_state(optimizer, good, before[0], before[1]) and same_state(optimizer, one, before[0], before[2])


def test_a_gradient_whose_square_overflows_is_refused_and_a_large_sum_is_not():
    one = parameter(5000)
    optimizer = Adam8bit([one], eps=1e-8)
    one.grad = torch.full((5000,), 1e19)
    with pytest.raises(ValueError, match=r"a gradient must be at most 2\^63, got 1e\+19"):
        optimizer.step()
    one.grad = torch.full((5000,), 9e18)  # the sum of its squares is beyond FP32, no square is
    optimizer.step()
    one.grad = torch.full((5000,), 9e18)
    optimizer.step()
    assert one.isfinite().all()
    assert all(value.float().isfinite().all() for value in kept(optimizer, one).values())


def test_a_sparse_gradient_is_refused():
    one = parameter(100, 50)
    one.grad = torch.eye(100, 50).to_sparse()
    with pytest.raises(ValueError, match=r"a gradient must be dense, got torch\.sparse_coo"):
        Adam8bit([one]).step()


def test_a_parameter_that_left_its_state_is_refused():
    one = parameter(100, 50)
    optimizer = Adam8bit([one])
    steps(optimizer, one)
    one.data, one.grad = one.data.view(-1), None
    one.grad = torch.ones(5000)
    with pytest.raises(ValueError, match=r"shape \(5000,\) and its state \(100, 50\)"):
        optimizer.step()
    one.data = one.data.view(100, 50)
    optimizer.state[one]["exp_avg"] = optimizer.state[one]["exp_avg"].to("meta")
    one.grad = torch.ones(100, 50)
    with pytest.raises(ValueError, match="a parameter is on cpu and its state on meta"):
        optimizer.step()


@pytest.mark.parametrize(
    ("maker", "sentence"),
    [
        (lambda w: Adam8bit(w, block_size=128), "the state dict has block_size 128, the optimizer 256"),
        (lambda w: Adam8bit(w, min_8bit_size=1), "the state dict has min_8bit_size 1, the optimizer 4096"),
        (torch.optim.Adam, "the state dict has no block_size"),
        (
            lambda w: Adam8bit([{"params": [one]} for one in w]),
            r"groups of \[1, 1\] parameters, .* \[2\]",
        ),
    ],
)
def test_a_foreign_state_dict_is_refused_whole(maker, sentence):
    weights = [parameter(80, 60), parameter(7)]
    other = maker([twin(weight) for weight in weights])
    steps(other, *(w for group in other.param_groups for w in group["params"]))
    optimizer = Adam8bit(weights)
    steps(optimizer, *weights)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=sentence):
        optimizer.load_state_dict(other.state_dict())
    for number, state in before["state"].items():
        now = optimizer.state_dict()["state"][number]
        assert all(torch.equal(torch.as_tensor(now[name]), torch.as_tensor(value)) for name, value in state.items())


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: s.update(exp_avg=s["exp_avg"].float()), "exp_avg of parameter 0 is torch.float32 of shape"),
        (lambda s: s.pop("exp_avg_absmax"), "holds exp_avg, exp_avg_sq, exp_avg_sq_absmax, and must hold"),
        (lambda s: s.update(exp_avg_absmax=s["exp_avg_absmax"][:-1]), r"of shape \(18,\), and must be .*\(19,\)"),
        (lambda s: s["exp_avg_sq_absmax"].fill_(float("nan")), "must be finite, and holds 19 other values"),
        (lambda s: s.update(step=0), "the step of parameter 0 must be at least 1, got 0"),
    ],
)
def test_a_spoiled_state_is_refused(spoil, sentence):
    one = parameter(80, 60)
    optimizer = Adam8bit([one])
    steps(optimizer, one)
    saved = copy.deepcopy(optimizer.state_dict())
    spoil(saved["state"][0])
    with pytest.raises(ValueError, match=sentence):
        Adam8bit([twin(one)]).load_state_dict(saved)


def test_a_step_of_a_large_parameter_needs_little_memory_beyond_it():
    from qlab.measure import PeakBytes  # noqa: PLC0415

    one = parameter(2**20)
    optimizer = Adam8bit([one])
    steps(optimizer, one)
    with PeakBytes() as peak:
        optimizer.step()
    assert peak.bytes < 8 * 4 * room.CPU_PIECE


def test_empty_parameters_and_no_gradients_at_all():
    empty = torch.nn.Parameter(torch.zeros(0, 3))
    optimizer = Adam8bit([empty])
    optimizer.step()
    empty.grad = torch.zeros(0, 3)
    optimizer.step()
