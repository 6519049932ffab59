"""What crosses the border as bytes: exactly plain values, and nothing else, whatever the bytes are."""

import collections
import enum
import math
import random

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from qlab.checks.expect import Suspect
from qlab.checks.mixed_precision.scaler_slips import Settings
from qlab.checks.report import Outcome, PartResult
from qlab.grading.limits import Limits
from qlab.grading.peer import budget
from qlab.grading.peer.budget import TooLarge
from qlab.grading.peer.reading import PROGRESS, Malformed, Reader, set_state
from qlab.grading.peer.tensors import DTYPES, MOST_BYTES, NO_NUMBERS
from qlab.grading.peer.writing import Writer

HANDLE = "handle"


def written(value, *, trusted=False):
    writer = Writer(lambda w, value: w.text(b"s", HANDLE), trusted=trusted, most_bytes=2**26)
    writer.put(value)
    return bytes(writer.bytes)


def read(data, *, trusted=True):
    def handle(reader, tag):
        raise Malformed("an unknown tag")

    reader = Reader(data, handle, trusted=trusted)
    value = reader.take()
    assert reader.place == len(data)
    return value


def carried(value):
    """Carry a value from the sandbox to the judge."""
    return read(written(value))


PLAIN = [
    None,
    ...,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    2**200,
    -(2**200),
    0.0,
    -0.0,
    math.inf,
    5e-324,
    1j,
    complex(math.inf, -0.0),
    "",
    "ä€𝄞\0",
    b"\0\xff",
    bytearray(b"ab"),
    [1, [2.0, "x"], []],
    (1, (), (None,)),
    {"a": [1], 2: {"b": ()}},
    {1, 2.5, "c"},
    frozenset({(1, 2)}),
    torch.Size([2, 3]),
    slice(1, None, 2),
    range(3, 9, 2),
    torch.float8_e4m3fn,
    torch.device("cpu"),
]


@pytest.mark.parametrize("value", PLAIN)
def test_plain_values_arrive_as_they_are(value):
    got = carried(value)
    assert got == value and type(got) is type(value)
    assert repr(got) == repr(value)


def test_not_a_number_keeps_its_kind():
    assert math.isnan(carried(math.nan)) and type(carried(math.nan)) is float


class Liar(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class Words(str):
    def __contains__(self, other):
        return True


class Colour(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (Liar(3), 3),
        (Words("a"), "a"),
        (Colour.RED, 1),
        (Point(1, 2), (1, 2)),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.UserDict(a=1), {"a": 1}),
        (np.str_("a"), "a"),
    ],
)
def test_subclasses_arrive_as_the_plain_type(value, wanted):
    got = carried(value)
    assert got == wanted and type(got) is type(wanted)


@pytest.mark.parametrize("name", sorted(name for name in DTYPES if not name.startswith(NO_NUMBERS)))
def test_tensors_of_every_type(name):
    dtype = DTYPES[name]
    try:
        tensor = torch.arange(24 * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(2, 3, 4)
        got = carried(tensor if dtype is not torch.bool else tensor != 0)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch itself cannot make it: {error}")
    assert got.dtype is dtype and got.shape == (2, 3, 4)
    wanted = [i % 256 for i in range(24 * dtype.itemsize)]
    assert got.flatten().view(torch.uint8).tolist() == ([0] + [1] * 23 if name == "bool" else wanted)


def test_strides_arrive_and_memory_is_its_own():
    x = torch.arange(12.0).reshape(3, 4)
    for view in (x.T, x[:, 1], x[1:, ::2], torch.ones(1).expand(5, 3), x[:0], torch.tensor(3.0), x.unsqueeze(1)):
        got = carried(view)
        assert torch.equal(got, view) and got.stride() == view.stride()
        assert got.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert carried(torch.zeros(1000, 1000)[:, 0]).untyped_storage().nbytes() == 4_000


def test_gradients_are_wanted_in_the_sandbox_and_never_in_the_judge():
    x = torch.ones(2, requires_grad=True)
    for value in (x, x * 2, nn.Parameter(torch.ones(2))):
        assert not carried(value).requires_grad and type(carried(value)) is torch.Tensor
        there = read(written(value, trusted=True), trusted=False)
        assert there.requires_grad and there.is_leaf


def test_sparse_conjugate_and_quantized_tensors_arrive_dense():
    x = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    assert torch.equal(carried(x.to_sparse()), x) and carried(x.to_sparse()).layout is torch.strided
    z = torch.tensor([1 + 2j])
    assert carried(z.conj()).tolist() == [1 - 2j] and carried(torch.imag(z.conj())).tolist() == [-2.0]


def test_a_tensor_without_memory_is_no_plain_data():
    assert carried(torch.empty(3, device="meta")) == HANDLE


class Lies(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.detach:
            return torch.full((3,), 7.0)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_tensor_that_lies_of_itself_is_its_bytes():
    got = carried(torch.ones(2).as_subclass(Lies))
    assert type(got) is torch.Tensor and got.tolist() == [1.0, 1.0]


def test_truth_values_are_true_or_false_whatever_the_byte():
    data = written(torch.tensor([True, False])).replace(b"\x01\x00", b"\x02\x00")
    assert (read(data) == torch.tensor([True, False])).all() and read(data).view(torch.uint8).tolist() == [1, 0]
    data = written(np.array([True, False])).replace(b"\x00\x00\x00\x02\x01\x00", b"\x00\x00\x00\x02\x07\x00")
    assert read(data).tobytes() == b"\x01\x00"


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1.5),
        np.bool_(True),
        np.uint32(7),
        np.arange(6).reshape(2, 3),
        np.zeros((0, 3)),
        np.arange(6, dtype=">f4")[::2],
        np.array(3 + 1j),
        np.array([["a", "bcd"]]),
        np.array(["a", None, 3], dtype=object),
        np.array([], dtype=str),
        ml_dtypes.bfloat16(1.5),
        np.ones(3, dtype=ml_dtypes.float8_e4m3fn),
        np.ones(3, dtype=ml_dtypes.int4),
    ],
    ids=lambda value: f"{type(value).__name__} {value.dtype}",
)
def test_numpy_arrays_and_scalars(value):
    got = carried(value)
    assert type(got) is type(value) and got.dtype == value.dtype
    assert np.array_equal(np.asarray(got), np.asarray(value))


@pytest.mark.parametrize("value", [np.array([b"a"]), np.array([1], dtype="M8[s]"), print, object(), int])
def test_the_rest_is_handed_over_by_reference(value):
    assert carried(value) == HANDLE


def test_records_of_qlab_go_to_the_sandbox_and_those_of_checks_to_the_judge():
    config = Limits(processes=3)
    assert read(written(config, trusted=True), trusted=False) == config
    assert written(config) == written(HANDLE)
    assert carried(PartResult("a", Outcome.RIGHT)) == PartResult("a", Outcome.RIGHT)
    assert carried(Settings(1.0, 2.0, 0.5, 3)) == Settings(1.0, 2.0, 0.5, 3)
    with pytest.raises(ValueError, match="no record is called"):
        read(written(config, trusted=True))


@pytest.mark.parametrize(
    "name",
    ["builtins:eval", "os:system", "qlab.checks.report:Refused", "qlab.checks.learner:Said"],
)
def test_no_other_class_is_built(name):
    data = written(Suspect("a", "b", torch.ones(1)), trusted=True).replace(b"qlab.checks.expect:Suspect", name.encode())
    data = data[:1] + len(name).to_bytes(4, "big") + data[5:]
    with pytest.raises(ValueError, match="no record"):
        read(data)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def endless():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [nested(80), endless(), 1 << 100_000, torch.zeros(1).expand(2**40), bytes(2**26 + 1)],
    ids=["nested", "endless", "integer", "tensor", "bytes"],
)
def test_too_large_a_value_is_refused_where_it_is_written(value):
    with pytest.raises(TooLarge):
        written(value)


@pytest.mark.parametrize(
    ("layout", "data"),
    [
        (((2,), (1,), False), bytes(4)),
        (((2,), (-1,), False), bytes(8)),
        (((-2,), (1,), False), bytes(8)),
        (((2,), (1, 1), False), bytes(8)),
        (((MOST_BYTES,), (0,), False), bytes(4)),
        (((0, 2**40, 2**40), (0, 0, 0), False), b""),
        (((True,), (1,), False), bytes(4)),
        (([2], (1,), False), bytes(8)),
        (((2,) * 40, (0,) * 40, False), bytes(4)),
        (((1,), (2**61,), False), bytes(4)),
        (((2.0,), (1,), False), bytes(8)),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, data):
    writer = Writer(None, trusted=False, most_bytes=2**20)
    writer.text(b"X", "float32")
    writer.put((*layout, data))
    with pytest.raises(ValueError):
        read(bytes(writer.bytes))


def test_no_generator_comes_to_the_judge():
    assert carried(torch.Generator()) == HANDLE
    with pytest.raises(Malformed):
        read(written(torch.Generator(), trusted=True))


def test_what_takes_more_memory_than_its_bytes_is_bounded(monkeypatch):
    monkeypatch.setattr(budget, "MOST_VALUES", 2_000)
    assert read(b"l" + (1_000).to_bytes(4, "big") + b"N" * 1_000) == [None] * 1_000
    for tag, each in ((b"X", written(torch.zeros(0))), (b"A", written(np.zeros(0))), (b"S", written(set()))):
        assert each.startswith(tag)
        with pytest.raises(TooLarge, match="too many"):
            read(b"l" + (1_000).to_bytes(4, "big") + each * 1_000)


def test_keys_that_collide_are_few():
    for make in (dict.fromkeys, set, frozenset):
        read(written(make(range(5_000))))
        with pytest.raises(TooLarge, match="too many"):
            written(make(range(10_001)))
    with pytest.raises(TooLarge, match="too many"):
        read(b"d" + (10_001).to_bytes(4, "big") + b"N" * 20_002)


def test_an_array_of_lists_stays_one():
    array = np.empty(2, dtype=object)
    array[0], array[1] = [1], [2]
    assert carried(array).tolist() == [[1], [2]] and carried(array).shape == (2,)


def test_many_tensors_of_one_kind_go_as_one():
    tensors = [torch.tensor([float(i)]) for i in range(1_000)]
    data = written(tensors)
    assert len(data) < 5_000 and torch.equal(torch.stack(read(data)), torch.stack(tensors))
    mixed = [*tensors, torch.ones(2), torch.ones(1).half(), nn.Parameter(torch.ones(1))]
    assert [t.tolist() for t in carried(mixed)] == [t.tolist() for t in mixed]
    assert [type(t) for t in carried([1, *tensors])[:2]] == [int, torch.Tensor]


def test_what_all_tensors_of_a_message_show_is_bounded():
    wide = torch.zeros(1).expand(MOST_BYTES // 8)
    assert len(carried([wide, wide])) == 2
    with pytest.raises(TooLarge, match="show"):
        written([wide, wide, wide])
    with pytest.raises(TooLarge, match="show more"):
        read(b"l" + (3).to_bytes(4, "big") + written(wide) * 3)


def test_the_texts_of_a_message_are_bounded(monkeypatch):
    data = b"l" + (3).to_bytes(4, "big") + 3 * (b"s" + (40).to_bytes(4, "big") + b"\xff" * 40)
    monkeypatch.setattr(budget, "MOST_TEXT", 120)
    assert read(data) == ["\ufffd" * 40] * 3
    monkeypatch.setattr(budget, "MOST_TEXT", 119)
    with pytest.raises(TooLarge, match="texts are longer"):
        read(data)
    with pytest.raises(TooLarge, match="texts are longer"):
        written(["x" * 60, "x" * 60])


@pytest.mark.parametrize("draws", [0, 1, 623, 624, 625, 2_000])
def test_a_generator_takes_the_states_that_generators_have(draws):
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)
    for _ in range(draws):
        torch.randint(0, 9, (1,), generator=one)
    set_state(other, one.get_state().numpy().tobytes())
    assert torch.equal(torch.rand(700, generator=one), torch.rand(700, generator=other))


@pytest.mark.parametrize(("left", "place"), [(624, 624), (624, 600), (1, 625), (0, 625), (-1, 626), (1, 1), (2, 0)])
def test_a_generator_takes_no_state_that_it_would_read_past(left, place):
    state = bytearray(torch.Generator().get_state().numpy().tobytes())
    PROGRESS.pack_into(state, 0, 1, left, 1, place)
    with pytest.raises(Malformed):
        set_state(torch.Generator(), bytes(state))


@pytest.mark.parametrize("state", [b"", b"x", bytes(5056)])
def test_a_generator_takes_no_other_bytes(state):
    with pytest.raises(Malformed):
        set_state(torch.Generator(), state)


def test_an_endless_range_does_not_cross():
    with pytest.raises(TooLarge):
        written(range(2**40))
    writer = Writer(None, trusted=False, most_bytes=100)
    writer.many(b"r", (0, 2**40, 1))
    with pytest.raises(Malformed):
        read(bytes(writer.bytes))


def test_announcements_without_bytes_are_refused():
    for data in (
        b"l\xff\xff\xff\xff",
        b"d\xff\xff\xff\xff",
        b"s\xff\xff\xff\xff",
        b"b\0\0\0\5abc",
        b"I\0\1\0\0",
        b"",
        b"\x07",
    ):
        with pytest.raises(ValueError):
            read(data)


def test_lone_surrogates_do_not_reach_the_judge():
    assert carried("a\ud800").startswith("a\ufffd")


def test_damaged_bytes_raise_nothing_but_value_errors():
    values = [*PLAIN, torch.ones(2, 3), np.ones(3), Settings(1.0, 2.0, 0.5, 3)]
    seeds, chance = [written(v) for v in values] + [written(values)], random.Random(5)
    for _ in range(6_000):
        data = bytearray(chance.choice(seeds)[:6_000])
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data))
            data[place] = chance.choice((chance.randrange(256), 0, 255, data[place] ^ 1))
        try:
            read(bytes(data))
        except (ValueError, AssertionError, RuntimeError, KeyError, IndexError, OverflowError, TypeError):
            continue


def test_what_can_be_written_can_be_read():
    chance = random.Random(3)
    makers = (
        *(chance.random, lambda: torch.zeros(chance.randrange(3)), lambda: np.float32(1), lambda: {1: 2}),
        *(lambda: {chance.random()}, lambda: Outcome.RIGHT, lambda: range(5), lambda: [torch.zeros(1)] * 70),
    )
    for make in makers:
        writer = Writer(None, trusted=False, most_bytes=2**26)
        value = [make() for _ in range(30)]
        writer.put(value)
        reader = Reader(bytes(writer.bytes), None, trusted=True)
        reader.take()
        assert reader.budget.values <= writer.budget.values <= 2 * reader.budget.values
        assert reader.budget.shown == writer.budget.shown
