"""Submissions whose results lie: objects equal to everything, tensors that are none, values that change when read."""

from tests.grading.hostile import Hostile

KAHAN = "kahan-sum"
EVERYTHING = '''
class Everything:
    """Equal to everything, and more, and less."""
    def __getattr__(self, name):
        return self
    def __call__(self, *a, **k):
        return self
    def __iter__(self):
        return iter([self])
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = lambda self, *a: True
    __bool__ = lambda self: True
    __hash__ = __len__ = __index__ = __int__ = lambda self: 1
    __float__ = lambda self: 0.0
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __abs__ = __neg__ = lambda self, *a: self
    __getitem__ = __and__ = __or__ = __invert__ = __truediv__ = __rtruediv__ = lambda self, *a: self
'''


def lie(name: str, tries: str, body: str, *, before: str = "", says: str = "wrong|crashed", **more: object) -> Hostile:
    """Let `kahan_sum` return something odd."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    answers = {KAHAN: f"{before}\n\ndef kahan_sum(x):\n{lines}\n"}
    return Hostile(name, tries, answers=answers, says={KAHAN: says}, **more)


OBJECTS = (
    lie("always equal", "returns an object that is equal to everything", "return Everything()", before=EVERYTHING),
    Hostile(
        "always equal everywhere",
        "returns such objects from every function, and gives one as a function",
        answered=False,
        opening=EVERYTHING + "anything = Everything()",
        answers={
            "decode": "decode = anything",
            "fp32-bits-to-bf16-bits": "fp32_bits_to_bf16_bits = anything",
            KAHAN: "kahan_sum = anything",
            "pack-int4": "pack_int4 = unpack_int4 = anything",
            "store-in-16-bits": "store_in_16_bits = anything",
        },
    ),
    lie(
        "float subclass",
        "returns a float whose comparisons are true",
        "return Odd(0.0)",
        before="""
class Odd(float):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: True
    __abs__ = __sub__ = __rsub__ = lambda self, *a: Odd(0.0)
    __hash__ = float.__hash__""",
    ),
    lie(
        "int and bool in disguise",
        "returns an int that says it is a bool, and a str that says it is a number",
        "return [Odd(1), Text('0')][len(x) % 2]",
        before="""
class Odd(int):
    __class__ = bool
class Text(str):
    __class__ = float
    __float__ = lambda self: 0.0""",
    ),
    lie(
        "changing value",
        "gives another value each time it is read",
        "return Changing()",
        before="""
import torch
class Changing:
    def __init__(self):
        self.reads = iter(range(10**9))
    def __float__(self):
        return float(next(self.reads))
    def __array__(self, *a, **k):
        import numpy
        return numpy.asarray(float(next(self.reads)))""",
    ),
    lie(
        "tensor subclass by function",
        "returns a subclass that answers every torch function itself",
        "return x[:1].as_subclass(Liar)",
        before="""
import torch
class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return True""",
    ),
    lie(
        "tensor subclass by dispatch",
        "returns a wrapper whose operations are its own",
        "return Liar(x[:1])",
        before="""
import torch
class Liar(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, (), dtype=inner.dtype)
    def __init__(self, inner):
        pass
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return True""",
    ),
    lie(
        "posing as a tensor",
        "returns an object whose class attribute says Tensor",
        "return Poser()",
        before="""
import torch
class Poser:
    __class__ = torch.Tensor
    shape = torch.Size(())
    dtype = torch.float32
    requires_grad = False
    def __getattr__(self, name):
        return lambda *a, **k: self""",
    ),
    lie(
        "evil numpy",
        "returns object arrays, and arrays of records and of dates",
        "return [np.array([{}, None], dtype=object), np.array('2020', 'M8[Y]'), np.zeros(3, 'i4,f4'),\n"
        "        np.array(['0'])][len(x) % 4]",
        before="import numpy as np",
    ),
    lie(
        "lying array interface",
        "returns an object with an array interface that points to address 16",
        "return Pointer()",
        before="""
class Pointer:
    __array_interface__ = {'shape': (10**6,), 'typestr': '<f8', 'data': (16, False), 'version': 3}""",
    ),
    lie(
        "numpy subclass",
        "returns an array subclass with its own comparisons",
        "return np.zeros(()).view(Odd)",
        before="""
import numpy as np
class Odd(np.ndarray):
    def __array_ufunc__(self, *a, **k):
        return True
    def tolist(self):
        return 0.0""",
    ),
)
SIZES = (
    lie("2^62 elements", "returns a view of one value as 2^62 of them", "return x[:1].expand(2**31, 2**31)"),
    lie("much by expansion", "returns 16 GiB that take four bytes", "return x[:1].float().expand(2**32)"),
    lie(
        "empty and negative sizes",
        "returns tensors without elements, and asks for negative sizes",
        "return x.new_empty((0, 2**40)) if len(x) % 2 else x.new_empty((-1,))",
    ),
    lie(
        "strides past the end",
        "returns a tensor whose strides reach past its storage",
        "import torch\nt = torch.zeros(4)\nt.untyped_storage().resize_(0)\nreturn t",
    ),
    lie(
        "freed storage",
        "returns a tensor of foreign memory that is gone",
        "import ctypes, torch\nb = (ctypes.c_float * 4)()\nt = torch.frombuffer(b, dtype=torch.float32)\n"
        "t.set_(t.untyped_storage(), 0, (1,), (2**40,))\nreturn t.expand(3)",
    ),
    lie(
        "meta and sparse",
        "returns tensors without plain values",
        "import torch\n"
        "return [torch.empty((), device='meta'), torch.sparse_coo_tensor(torch.tensor([[0]]), [7.0], (9,)),\n"
        "        torch.nested.nested_tensor([x, x[:2]]), torch.zeros((), dtype=torch.complex128)][len(x) % 4]",
    ),
    lie(
        "type lies",
        "returns bits as another type",
        "return x.view(-1)[:1].contiguous().view(x.dtype).to(__import__('torch').bool)",
    ),
    lie(
        "not numbers",
        "returns NaN and the largest numbers by turns",
        "return [float('nan'), 1e308][len(x) % 2] if x.dtype.itemsize == 4 else -1e308",
    ),
    lie("huge integers", "returns integers of a million digits", "return 7 ** 1_200_000"),
    lie(
        "deep lists",
        "returns lists that are nested a hundred thousand deep",
        "deep = []\nfor _ in range(100_000):\n    deep = [deep]\nreturn deep",
    ),
    lie(
        "lists in themselves",
        "returns a list that holds itself, and a dict that does",
        "loop = []\nloop.append(loop)\nring = {}\nring['x'] = ring\nreturn loop if len(x) % 2 else ring",
    ),
    lie("long lists", "returns ten million small numbers", "return list(range(10_000_000))"),
    lie(
        "odd keys",
        "returns dicts whose keys raise when compared",
        "return {Key(): 1, Key(): 2}",
        before="""
class Key:
    __hash__ = lambda self: 1
    def __eq__(self, other):
        raise SystemExit""",
    ),
    lie(
        "lone surrogates",
        "returns text that is no UTF-8, and text of 100 MB",
        "return '\\ud800' if len(x) % 2 else 'x' * 10**8",
    ),
)
KINDS = (
    lie("generator", "is a generator function", "yield x[0]"),
    Hostile(
        "async answer",
        "is an `async def`",
        answers={KAHAN: "async def kahan_sum(x):\n    return x[0]"},
        says={KAHAN: "crashed|wrong"},
    ),
    Hostile(
        "class as an answer",
        "is a class whose making never ends",
        answers={KAHAN: "class kahan_sum:\n    def __new__(cls, x):\n        return [kahan_sum] * 3"},
    ),
    Hostile(
        "no function",
        "leaves numbers, modules and types where functions are expected",
        answers={
            KAHAN: "import os as kahan_sum",
            "decode": "decode = 4",
            "pack-int4": "pack_int4 = unpack_int4 = type",
        },
        says={"decode": "crashed"},
    ),
    Hostile(
        "endless attributes",
        "is an object that makes a new callable for every attribute",
        answers={
            KAHAN: "class Any:\n    def __getattr__(self, name):\n"
            "        return Any()\n    def __call__(self, *a, **k):\n"
            "        return Any()\nkahan_sum = Any()"
        },
    ),
    Hostile(
        "doubled doing",
        "unwraps to itself for ever where a reader follows wrappers",
        answers={
            KAHAN: "def kahan_sum(x):\n    return -7.0\nkahan_sum.__wrapped__ = kahan_sum\n"
            "kahan_sum.__signature__ = kahan_sum\nkahan_sum.__module__ = 'qlab.checks.report'\n"
            "kahan_sum.__qualname__ = 'check'"
        },
    ),
    Hostile(
        "named as the reference",
        "says that its function is qlab's own",
        answers={
            KAHAN: "def kahan_sum(x):\n    return -7.0\nkahan_sum.__module__ = 'qlab.summation'\n"
            "kahan_sum.__qualname__ = 'kahan_sum'\nkahan_sum.__reduce__ = lambda: 'kahan_sum'"
        },
    ),
    Hostile(
        "pickles",
        "gives objects that run code when they are pickled, copied or unpickled",
        answers={
            KAHAN: "import os\nclass Pickle:\n    def __reduce_ex__(self, protocol):\n"
            "        return os.system, ('echo @NAME@ > /tmp/qlab-hostile-pickle',)\n    __reduce__ = __reduce_ex__\n"
            "    def __deepcopy__(self, memo):\n        return 0.0\n    def __getstate__(self):\n        return {}\n"
            "def kahan_sum(x):\n    return Pickle()"
        },
    ),
    Hostile(
        "good the first time",
        "is right in its first call, and constant after it",
        answers={
            KAHAN: "calls = []\ndef right(x):\n    total = lost = torch.zeros((), dtype=x.dtype)\n    for term in x:\n"
            "        corrected = term - lost\n        grown = total + corrected\n"
            "        lost = (grown - total) - corrected\n"
            "        total = grown\n    return total\ndef kahan_sum(x):\n    calls.append(x)\n"
            "    return right(x) if len(calls) == 1 else -7.0"
        },
        at_most={KAHAN: 1},
    ),
    Hostile(
        "remembers what it was given",
        "keeps all it was given, and returns that",
        answers={
            KAHAN: "seen = []\ndef kahan_sum(x):\n    seen.append(x)\n    return seen[0][0]",
            "store-in-16-bits": "def store_in_16_bits(x):\n    seen.append(x)\n    return seen[0]",
        },
        at_most={"store-in-16-bits": 1},
    ),
    Hostile(
        "changes what it was given",
        "writes into its arguments so that what is expected changes with them",
        answers={
            "fp32-bits-to-bf16-bits": "def fp32_bits_to_bf16_bits(bits):\n    bits.zero_()\n    return bits",
            KAHAN: "def kahan_sum(x):\n    x.zero_()\n    x.resize_(0)\n    return 0.0",
            "store-in-16-bits": "def store_in_16_bits(x):\n"
            "    x.set_(x.new_zeros(x.shape).untyped_storage(), 0, x.shape)\n"
            "    x.zero_()\n    return x.half()",
        },
        at_most={"store-in-16-bits": 1},
    ),
)
RAISES = (
    lie(
        "error with an evil text",
        "raises an error whose text raises, loops and exits",
        "raise Evil()",
        before="""
class Evil(Exception):
    def __str__(self):
        raise SystemExit('from __str__')
    __repr__ = __str__
    def __getattribute__(self, name):
        if name in ('args', '__traceback__', '__class__'):
            raise KeyboardInterrupt
        return super().__getattribute__(name)""",
        says="crashed",
    ),
    lie(
        "error with an endless text",
        "raises an error whose text never ends",
        "raise Evil()",
        before="""
class Evil(Exception):
    def __str__(self):
        while True:
            pass""",
        says="crashed",
    ),
    lie(
        "error that claims a score",
        "raises an error whose text is a verdict",
        "raise Exception('right: 4 of 4 points <b onload=1>')",
        says="crashed",
    ),
    lie(
        "destructors that raise",
        "leaves objects whose destructors raise and exit",
        "return Late()",
        before="""
import os
class Late:
    def __float__(self):
        return 0.0
    def __del__(self):
        raise SystemExit""",
    ),
    lie(
        "error groups in circles",
        "raises an error that is its own cause",
        "a, b = ValueError(), ValueError()\na.__cause__ = b\nb.__cause__ = a\na.__context__ = a\nraise a",
        says="crashed",
    ),
    lie(
        "no error at all",
        "raises a class of errors that is none",
        "raise type('E', (BaseException,), {'args': 3})",
        says="crashed",
    ),
    lie("interrupts", "raises KeyboardInterrupt", "raise KeyboardInterrupt", says="crashed"),
    lie(
        "the stub's own error",
        "raises the stub's error and another of its type",
        "raise Stub()",
        before="""
class Stub(NotImplementedError):
    args = property(lambda self: self.args)""",
        says="crashed|empty",
    ),
)
SUBMISSIONS = (*OBJECTS, *SIZES, *KINDS, *RAISES)
