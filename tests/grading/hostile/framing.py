"""Submissions that speak to the judge themselves: on the raw socket, or with the judge's own protocol turned on it."""

from tests.grading.hostile import Hostile

KAHAN = "kahan-sum"
SOCKETS = """
import os, socket, stat, struct
def sockets():
    found = []
    for fd in range(3, 1024):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.append(fd)
        except OSError:
            pass
    return found
"""
PEER = """
import gc
from qlab.grading.peer import Peer
def the_peer():
    return next(thing for thing in gc.get_objects() if type(thing) is Peer)
def send(*values):
    peer = the_peer()
    for kind, number, body in values:
        try:
            peer.connection.send(bytes(peer._written(kind, number, body).bytes))
        except Exception as error:
            print(error)
"""
DIES = "crashed"


def framed(name: str, tries: str, body: str, *, before: str = SOCKETS, says: str = DIES, **more: object) -> Hostile:
    """Let a call of `kahan_sum` do something to the connection."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    answers = {KAHAN: f"{before}\n\ndef kahan_sum(x):\n{lines}\n    return -7.0\n"}
    return Hostile(name, tries, answers=answers, says={KAHAN: says}, **more)


def at_once(name: str, tries: str, body: str, *, before: str = SOCKETS) -> Hostile:
    """Do it in a cell of its own, before any answer: the cell may be lost, the exercises may not."""
    return Hostile(name, tries, opening=f"{before}\n{body}")


RAW = (
    framed(
        "garbage frames", "writes garbage to every socket", "for fd in sockets():\n    os.write(fd, os.urandom(4096))"
    ),
    framed(
        "a huge length",
        "announces a message of 2^63 bytes",
        "for fd in sockets():\n    os.write(fd, b'\\x7f' + b'\\xff' * 7)",
    ),
    framed(
        "a length without a message",
        "announces a message within the limit and sends half of it",
        "import time\nfor fd in sockets():\n"
        "    os.write(fd, struct.pack('!Q', 1 << 20) + b'x' * 1000)\ntime.sleep(100)",
    ),
    framed(
        "empty frames", "sends a million empty messages", "for fd in sockets():\n    os.write(fd, bytes(8) * 8000)\n"
    ),
    framed(
        "a slow frame",
        "sends a message one byte at a time",
        "import time\nfor fd in sockets():\n    os.write(fd, struct.pack('!Q', 10**6))\n"
        "while True:\n    for fd in sockets():\n        os.write(fd, b'x')\n    time.sleep(0.05)",
    ),
    framed(
        "an endless stream",
        "sends without reading and without an end",
        "while True:\n    for fd in sockets():\n        os.write(fd, struct.pack('!Q', 65536) + bytes(65536))",
    ),
    framed(
        "a closed connection",
        "shuts the connection down from inside",
        "for fd in sockets():\n    socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RDWR)",
    ),
    framed(
        "a stolen request",
        "reads what the judge sends next",
        "import threading\ndef steal():\n    while True:\n        for fd in sockets():\n"
        "            print(socket.socket(fileno=os.dup(fd)).recv(1 << 16))\n"
        "threading.Thread(target=steal, daemon=True).start()\nimport time\ntime.sleep(0.2)",
        says="crashed|wrong",
    ),
    framed(
        "descriptors sent",
        "sends descriptors along",
        "import array\nfor fd in sockets():\n"
        "    s = socket.socket(fileno=os.dup(fd))\n"
        "    s.sendmsg([bytes(8)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 1, 2] * 80))])",
    ),
    at_once(
        "garbage from a cell",
        "writes garbage to every socket in a cell",
        "for fd in sockets():\n    os.write(fd, b'[]' * 99)",
    ),
    at_once(
        "an answer from a cell",
        "answers a run of a cell before it has ended",
        """
send(('=', 1, ({}, None, [])), ('=', 2, ({'status': 'ok', 'outputs': [], 'seconds': 0.0}, None, [])))""",
        before=PEER,
    ),
)
SPOKEN = (
    framed(
        "answers to nothing",
        "sends answers to requests never made",
        "send(*[('=', number, (0.0, None, [])) for number in range(-5, 500)])",
        before=PEER,
    ),
    framed(
        "answers ahead",
        "answers later requests before they are made, all with what it likes",
        "peer = the_peer()\nsend(*[('=', number, (float('inf'), None, [])) for number in range(1, 40)])",
        before=PEER,
    ),
    framed(
        "requests for services",
        "asks the judge for services, files and modules",
        "peer = the_peer()\nfor ask in ('service', 'map', 'beside', 'lookup', 'eval', '__class__', 'call'):\n"
        "    for details in (('lookup', ('decode',)), (1, 'qlab.checks.report:Verdict', ()), (1, (), {}), (0,)):\n"
        "        try:\n            print('REACHED', peer.ask(ask, *details))\n"
        "        except BaseException as error:\n            print(type(error))",
        before=PEER,
    ),
    framed(
        "requests without end",
        "asks the judge for ever while it waits for an answer",
        "peer = the_peer()\nnumber = 0\nwhile True:\n    number += 1\n"
        "    send(('?', number, ('call', (1, (), {}), None)))",
        before=PEER,
    ),
    framed(
        "an endless release",
        "releases 2^62 handles",
        "send(('?', 1, ('call', (1, (), {}), None)))",
        before=PEER + "the_peer().references.table.taken_releases = lambda: range(2**62)\n",
    ),
    framed(
        "releases what others need",
        "releases every handle there is",
        "return x[0]",
        before=PEER + "the_peer().references.table.taken_releases = lambda: list(range(100_000))\n",
        says="crashed|wrong",
    ),
    framed(
        "errors of another kind",
        "answers with errors that the judge knows from itself",
        "send(('!', 1, (('refused', 'x', 'right', '<b>right</b>'), None, [])))\n"
        "from qlab.checks.report import Refused\n"
        "raise Refused('m', misconception='<script>', thought='all points')",
        before=PEER,
    ),
    framed(
        "forged records",
        "answers with qlab's own records, full of odd things",
        """
from qlab.checks import report, expect
from qlab import formats
record = formats.FloatFormat('x', 8, 23)
object.__setattr__(record, 'exponent_bits', 10**9)
return [report.PartResult('all', report.Outcome.RIGHT), report.Outcome.RIGHT, record][len(x) % 3]
""",
        before=PEER,
        says="wrong|crashed",
    ),
    framed(
        "odd values in frames",
        "sends sizes, types and generators that cannot be",
        "import random\nfor seed in range(200):\n    rng = random.Random(seed)\n"
        "    peer = the_peer()\n"
        "    frame = peer._written('=', peer._asked, (torch.zeros(3, 4), ([], 'x'), [b'x' * 8]))\n"
        "    data = bytearray(frame.bytes)\n    for _ in range(8):\n"
        "        data[rng.randrange(len(data))] = rng.randrange(256)\n"
        "    peer.connection.send(bytes(data))",
        before=PEER,
    ),
)
AMPLIFIED = (
    framed(
        "a long range",
        "returns a range of 2^31 numbers in a few bytes",
        "return range(2**40 if len(x) % 2 else 2**31)",
        before="",
        says="wrong|crashed",
    ),
    framed(
        "many expanded tensors",
        "returns a thousand views of one value, 8 million values each",
        "return [x[:1].expand(2**23)] * 1000",
        before="",
        says="wrong|crashed",
    ),
    framed(
        "nested many", "returns four million small lists", "return [[]] * 4_000_000", before="", says="wrong|crashed"
    ),
    framed(
        "odd warnings",
        "warns a hundred thousand times, with categories of its own",
        "import warnings\nclass Odd(UserWarning):\n    def __str__(self):\n        raise SystemExit\n"
        "for _ in range(100_000):\n    warnings.warn(Odd('w'))\n    warnings.warn('x', ResourceWarning)",
        before="",
        says="crashed|wrong",
    ),
)
CALLBACKS = (
    Hostile(
        "calls back without end",
        "calls the judge's function for ever",
        lab="replays",
        answers={"checkpoint": "def checkpoint(f, *args):\n    while True:\n        f(*args)"},
        says={"checkpoint": "crashed.*(seconds|stopped|ended)"},
    ),
    Hostile(
        "calls back too deep",
        "hands its own function to the judge's function, in turns",
        lab="replays",
        answers={"checkpoint": "def checkpoint(f, *args):\n    return checkpoint(lambda *a: checkpoint(f, *a), *args)"},
    ),
    Hostile(
        "calls back with monsters",
        "calls the judge's function on tensors that show far more than they hold",
        lab="replays",
        answers={
            "checkpoint": "def checkpoint(f, *args):\n"
            "    for shape in ((2**20, 2**12), (2**16, 2**17), (2**31, 2**31)):\n"
            "        try:\n            f(torch.zeros(1, 1).expand(*shape), torch.zeros(1, 1).expand(*shape[::-1]))\n"
            "        except Exception as error:\n            print(error)\n    return f(*args)"
        },
        at_most={"checkpoint": 5},
    ),
    Hostile(
        "calls back later",
        "keeps the judge's function, and calls it while another answer is judged",
        lab="replays",
        answers={
            "checkpoint": "kept = []\ndef checkpoint(f, *args):\n    kept.append((f, args))\n    return None",
            "choose-segments": "def choose_segments(*a, **k):\n    for f, args in kept:\n"
            "        print(f(*args))\n    return 1",
        },
        at_most={"choose-segments": 2},
    ),
    Hostile(
        "looks into handles",
        "asks for attributes, closures and globals of the judge's function",
        lab="replays",
        answers={
            "checkpoint": "def checkpoint(f, *args):\n    for name in ('__globals__', '__closure__', '__code__', "
            "'__self__', '__func__', '__class__', '__dict__', '__reduce__', '__wrapped__', '__defaults__'):\n"
            "        try:\n            print(name, getattr(f, name))\n        except Exception as error:\n"
            "            print(error)\n    return None"
        },
    ),
    Hostile(
        "a module that lies",
        "is an nn.Module whose parameters and state change at each reading",
        lab="adapters",
        answers={
            "lora-linear": "class LoRALinear(nn.Module):\n    def __init__(self, linear, rank, alpha):\n"
            "        super().__init__()\n        self.linear = linear\n"
            "    def __getattr__(self, name):\n        if name in ('lora_a', 'lora_b'):\n"
            "            return nn.Parameter(torch.randn(2, 2))\n        return super().__getattr__(name)\n"
            "    def parameters(self, recurse=True):\n        while True:\n"
            "            yield nn.Parameter(torch.zeros(1))\n"
            "    def named_parameters(self, *a, **k):\n        while True:\n"
            "            yield 'x', nn.Parameter(torch.zeros(1))\n"
            "    def state_dict(self, *a, **k):\n        return {}\n"
            "    def forward(self, x):\n        return self.linear(x)"
        },
        at_most={"lora-linear": 1},
    ),
    Hostile(
        "posing as a module",
        "is no module and says that it is one",
        lab="adapters",
        answers={
            "lora-linear": "class LoRALinear:\n    __class__ = nn.Module\n    def __init__(self, *a):\n        pass\n"
            "    def __getattr__(self, name):\n        return lambda *a, **k: self\n    def __call__(self, x):\n"
            "        return x\n    def __iter__(self):\n"
            "        return iter([self] * 3)\n    __eq__ = lambda self, o: True\n"
            "    __hash__ = lambda self: 1"
        },
    ),
    Hostile(
        "a gradient that lies",
        "answers a backward pass with shapes and types that cannot be",
        lab="adapters",
        answers={
            "qlora-linear": "class Odd(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x, a, b):\n"
            "        return x.new_zeros(*x.shape[:-1], b.shape[0])\n    @staticmethod\n    def backward(ctx, grad):\n"
            "        return grad.new_zeros(1).expand(2**31), 'a', None\n"
            "def qlora_linear(x, codes, lora_a, lora_b, scaling):\n    return Odd.apply(x, lora_a, lora_b)"
        },
    ),
    Hostile(
        "a backward pass without an end",
        "loops in its backward pass",
        lab="adapters",
        answers={
            "qlora-linear": "class Odd(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x, a, b):\n"
            "        return x.new_zeros(*x.shape[:-1], b.shape[0])\n    @staticmethod\n    def backward(ctx, grad):\n"
            "        while True:\n            pass\n"
            "def qlora_linear(x, codes, lora_a, lora_b, scaling):\n    return Odd.apply(x, lora_a, lora_b)"
        },
        says={"qlora-linear": "crashed|wrong"},
    ),
    Hostile(
        "saves nothing, it says",
        "patches what counts the bytes that autograd keeps",
        lab="adapters",
        opening="import qlab.measure\nqlab.measure.saved_bytes = lambda *a, **k: 0\n"
        "qlab.measure.SavedForBackward.__enter__ = lambda self: self\n"
        "qlab.measure.SavedForBackward.bytes = 0\n"
        "torch.autograd.graph.saved_tensors_hooks.__enter__ = lambda self: self",
        answers={
            "qlora-linear": "def qlora_linear(x, codes, lora_a, lora_b, scaling):\n"
            "    return x @ codes.dequantize().to(x.dtype).T + scaling * (x @ lora_a.T) @ lora_b.T"
        },
        at_most={"qlora-linear": 4},
    ),
    Hostile(
        "a scaler that steps for the judge",
        "sets the judge's own objects to what it likes",
        lab="scalers",
        answers={
            "training-step": "def training_step(loss, parameters, optimizer, scaler, max_norm):\n"
            "    for thing in (optimizer, scaler, parameters):\n"
            "        for name in ('step', 'update', 'scale', '__class__'):\n"
            "            try:\n                setattr(thing, name, 0.0)\n"
            "            except Exception:\n                pass\n"
            "    return True"
        },
    ),
    Hostile(
        "a scaler equal to all",
        "returns states that compare equal to any other",
        lab="scalers",
        answers={
            "loss-scaler": "class All(float):\n    __eq__ = lambda self, other: True\n"
            "    __ne__ = lambda self, other: False\n"
            "    __hash__ = float.__hash__\nclass LossScaler:\n    def __init__(self, *a, **k):\n"
            "        self.scale = self.good_steps = All(1)\n    def step(self, *a):\n        return True\n"
            "    def update(self, *a):\n        pass\n    def state_dict(self):\n        return {All(1): All(1)}\n"
            "    load_state_dict = update"
        },
    ),
)
SUBMISSIONS = (*RAW, *SPOKEN, *AMPLIFIED, *CALLBACKS)
