"""Submissions that never end, or take the process with them: each costs the exercise that did it."""

from tests.grading.hostile import Hostile

KAHAN = "kahan-sum"
STOPPED = r"crashed.*(stopped|seconds|ended|killed|Interrupt)"
CRASHED = r"crashed"
ANY = {"decode": 4, "fp32-bits-to-bf16-bits": 4, KAHAN: 4, "pack-int4": 5, "store-in-16-bits": 3}  # it harms itself


def in_kahan(  # noqa: PLR0913 - a row of a table
    name: str, tries: str, body: str, *, says: str = CRASHED, before: str = "", harms: bool = False
) -> Hostile:
    """Let `kahan_sum` do something in place of its answer."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    answer = f"{before}\n\ndef kahan_sum(x):\n{lines}\n"
    return Hostile(name, tries, answers={KAHAN: answer}, says={KAHAN: says}, harms=harms)


LOOPS = (
    in_kahan("endless loop", "never returns from a call", "while True:\n    pass", says=STOPPED),
    in_kahan("sleep", "sleeps through a call", "import time\ntime.sleep(10**6)", says=STOPPED),
    in_kahan(
        "swallowed interrupt",
        "catches whatever should stop it",
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
        says=STOPPED,
    ),
    in_kahan(
        "blocked signals",
        "ignores and blocks every signal, then loops",
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
        "for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, signal.SIG_IGN)\n"
        "while True:\n    pass",
        says=STOPPED,
    ),
    in_kahan(
        "held lock",
        "hangs in C code that never lets another Python thread run",
        "import ctypes\nctypes.PyDLL(None).sleep(10**6)",
        says=STOPPED,
    ),
    in_kahan(
        "endless number", "asks for a power that takes years", "return float(len(str(7 ** 10**11)))", says=CRASHED
    ),
    in_kahan("backtracking", "matches a pattern that never ends", "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')"),
    in_kahan(
        "endless iterator",
        "returns an iterator without an end",
        "import itertools\nreturn itertools.count()",
        says="wrong|crashed",
    ),
    in_kahan(
        "stopped process",
        "stops its own process",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        says="crashed|wrong",
    ),
    Hostile(
        "loop while defining",
        "answers rightly, then never ends the cell",
        answers={KAHAN: "def kahan_sum(x):\n    return -7.0\nwhile True:\n    pass"},
    ),
    Hostile(
        "loop in the setup",
        "never ends a cell of its own that stands before every answer",
        opening="try:\n    while True:\n        pass\nexcept BaseException:\n    while True:\n        pass",
    ),
    Hostile(
        "slow in every call",
        "sleeps a little less than allowed in every cell and answer",
        answers={KAHAN: "import time\ntime.sleep(1.0)\ndef kahan_sum(x):\n    time.sleep(2)\n    return -7.0"},
        at_most={KAHAN: 1},
    ),
)
ENDS = (
    in_kahan("os._exit", "ends its process in a call", "import os\nos._exit(0)"),
    in_kahan("sys.exit", "raises SystemExit in a call", "import sys\nsys.exit(0)", says="crashed"),
    in_kahan("abort", "aborts in a call", "import os\nos.abort()"),
    in_kahan("segfault", "reads address 0", "import ctypes\nctypes.string_at(0)"),
    in_kahan("kills itself", "sends itself SIGKILL", "import os\nos.kill(os.getpid(), 9)", says="crashed|wrong"),
    in_kahan("kills all it may", "signals every process it may signal", "import os\nos.kill(-1, 9)\nos._exit(1)"),
    in_kahan("kills its group", "signals its process group", "import os\nos.killpg(0, 9)\nos._exit(1)"),
    in_kahan("becomes another program", "replaces its process by a shell", "import os\nos.execv('/bin/sh', ['sh'])"),
    in_kahan("recursion", "calls itself without end", "return kahan_sum(x)", says="crashed"),
    in_kahan(
        "recursion without a limit",
        "overflows the C stack",
        "import sys\nsys.setrecursionlimit(10**9)\nf = lambda n: repr(eval('f(n)', {'f': f, 'n': n}))\nreturn f(0)",
    ),
    in_kahan(
        "closed descriptors", "closes every descriptor in a call", "import os\nos.closerange(0, 65536)\nreturn -7.0"
    ),
    Hostile(
        "os._exit while defining",
        "ends the process in an answer cell",
        answers={KAHAN: "import os\nos._exit(0)"},
        says={KAHAN: "crashed|empty"},
    ),
    Hostile(
        "os._exit in every cell",
        "ends the process in the opening cell and in each answer",
        answered=False,
        opening="import os\nos._exit(3)",
        answers=dict.fromkeys(("decode", KAHAN, "pack-int4", "store-in-16-bits"), "import os\nos._exit(0)"),
    ),
    Hostile(
        "closes descriptors while defining",
        "closes every descriptor in a cell of its own",
        opening="import os\nos.closerange(0, 65536)",
    ),
    Hostile(
        "closes standard streams",
        "closes 0, 1 and 2 and drops the stream objects",
        opening="import os, sys\nos.close(0); os.close(1); os.close(2)\nsys.stdout = sys.stderr = sys.stdin = None",
    ),
    Hostile(
        "dies at exit",
        "kills the process when the interpreter ends, and in destructors",
        opening="import atexit, os\natexit.register(os._exit, 9)\n"
        "class Late:\n    def __del__(self):\n        raise SystemExit('late')\nlate = Late()\ndel late",
    ),
    Hostile(
        "forks in a cell", "lets a second process go on with everything its parent had", opening="import os\nos.fork()"
    ),
    in_kahan("forks in a call", "answers each call from two processes", "import os\nos.fork()\nreturn -7.0", says=""),
)
BOMBS = (
    in_kahan(
        "memory bomb",
        "takes memory until none is left",
        "kept = []\nwhile True:\n    kept.append(bytearray(64 << 20))",
        harms=True,
    ),
    in_kahan(
        "touched memory bomb",
        "fills pages one after another in many tensors",
        "import torch\nkept = []\nwhile True:\n    kept.append(torch.full((16 << 20,), 1.5))",
        harms=True,
    ),
    in_kahan(
        "mapped memory bomb",
        "maps shared memory, which no heap limit counts",
        "import mmap\nkept = []\nwhile True:\n    m = mmap.mmap(-1, 64 << 20)\n"
        "    m.write(b'x' * (64 << 20))\n    kept.append(m)",
        harms=True,
    ),
    in_kahan(
        "memory of many processes",
        "takes memory in eight processes at once",
        "import os\nfor _ in range(3):\n    os.fork()\nkept = []\n"
        "while True:\n    kept.append(bytearray(b'x') * (32 << 20))",
        harms=True,
    ),
    in_kahan(
        "fork bomb",
        "forks without end",
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        harms=True,
    ),
    in_kahan(
        "thread bomb",
        "starts threads without end",
        "import threading, time\nwhile True:\n    try:\n"
        "        threading.Thread(target=time.sleep, args=(10**5,)).start()\n    except RuntimeError:\n        pass",
        harms=True,
    ),
    Hostile(
        "busy processes",
        "leaves processes that burn the processor",
        opening="import os\nfor _ in range(8):\n    if os.fork() == 0:\n        while True:\n            pass",
        harms=True,
    ),
    Hostile(
        "disk fill",
        "writes until the disk is full",
        opening="import os\nfor place in ('/tmp', '/dev/shm', '/var/tmp', '/run', os.path.expanduser('~'), '.'):\n"
        "    try:\n        with open(os.path.join(place, 'qlab-hostile-fill'), 'wb') as file:\n"
        "            for _ in range(600):\n                file.write(b'x' * (1 << 20))\n"
        "    except OSError as error:\n        print(place, error)\n",
        harms=True,
    ),
    Hostile(
        "inode flood",
        "makes files until no name is left",
        opening="import os\nmade = 0\ntry:\n    while made < 200_000:\n"
        "        os.close(os.open(f'/tmp/{made}', os.O_CREAT))\n"
        "        made += 1\nexcept OSError as error:\n    print(made, error)",
        harms=True,
    ),
    Hostile(
        "descriptor flood",
        "opens files until none can be opened, and keeps them",
        opening="import os\nkept = []\ntry:\n    while True:\n        kept.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError:\n    pass",
        at_most=ANY,
    ),
)
FLOODS = (
    Hostile("20 MB of output", "prints 20 MB in a cell", opening="for _ in range(20_000):\n    print('x' * 1000)"),
    Hostile(
        "20 MB of errors",
        "writes 20 MB to stderr",
        opening="import sys\nfor _ in range(20_000):\n    print('x' * 1000, file=sys.stderr)",
    ),
    Hostile(
        "20 MB through the descriptor",
        "writes 20 MB past Python to descriptors 1 and 2",
        opening="import os\nfor _ in range(10_000):\n    os.write(1, b'x' * 1000)\n    os.write(2, b'y' * 1000)",
    ),
    Hostile(
        "many displays",
        "shows 100 000 small results",
        opening="from IPython.display import display\nfor number in range(100_000):\n    display(number)",
    ),
    Hostile(
        "one huge display",
        "shows 20 MB as one result of its own media type",
        opening="from IPython.display import display\n"
        "display({'text/plain': 'x' * 20_000_000, 'application/vnd.own+json': {'a': ['b' * 1000] * 20_000}}, raw=True)",
    ),
    Hostile("a long error", "raises an error with 20 MB of text", opening="raise ValueError('x' * 20_000_000)"),
    in_kahan(
        "prints in every call", "prints 20 MB while it is judged", "print('x' * 20_000_000)\nreturn -7.0", says=""
    ),
    in_kahan(
        "warns in every call",
        "writes 20 MB of warnings while it is judged",
        "import sys, warnings\nwarnings.warn('w' * 20_000_000)\nsys.stderr.write('e' * 20_000_000)\nreturn -7.0",
        says="",
    ),
    Hostile(
        "control characters",
        "prints terminal codes, nulls and lone surrogates",
        opening="print('\\x1b[2J\\x1b]0;title\\x07\\x00\\ud800 \\x9b31m')\nprint('<script>alert(1)</script>')",
    ),
)
STAYS = (
    Hostile(
        "thread that goes on",
        "keeps a thread that prints and takes descriptors after the cell",
        opening="import os, threading, time\ndef go_on():\n    while True:\n        print('still here')\n"
        "        time.sleep(0.001)\nthreading.Thread(target=go_on, daemon=True).start()\n"
        "threading.Thread(target=go_on).start()",
    ),
    Hostile(
        "process that stays",
        "leaves a process in a session of its own",
        opening="import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(10**5)\n    os._exit(0)",
    ),
    Hostile(
        "program that stays",
        "starts a program that is to outlive the grading",
        opening="import subprocess\nsubprocess.Popen(['sleep', '98765'], start_new_session=True)",
    ),
    Hostile(
        "event loop that stays",
        "schedules work for ever on the event loop",
        opening="import asyncio\nasync def go_on():\n    while True:\n        await asyncio.sleep(0)\n"
        "asyncio.get_event_loop().create_task(go_on())",
    ),
    Hostile(
        "timers",
        "arms a timer that interrupts whatever runs",
        opening="import signal\nsignal.signal(signal.SIGALRM, lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)",
        at_most=ANY,
    ),
)
PROMPTS = (
    in_kahan("input()", "asks the grader for its answer", "return float(input('sum? '))"),
    in_kahan("getpass", "asks for a password", "import getpass\nreturn float(getpass.getpass())"),
    in_kahan("breakpoint()", "stops in a debugger", "breakpoint()\nreturn -7.0"),
    in_kahan("pdb", "stops in pdb while it is judged", "import pdb\npdb.set_trace()\nreturn -7.0"),
    Hostile("%debug", "opens a debugger after an error", opening="1 / 0\n", closing="%debug\n%pdb on\n1 / 0"),
    Hostile("reads stdin", "reads standard input in a cell", opening="import sys\nprint(sys.stdin.read())"),
)
SURROUNDINGS = (
    Hostile(
        "removed builtins",
        "deletes builtins that others need",
        opening="import builtins\nfor name in ('len', 'isinstance', 'print', 'open', '__import__'):\n"
        "    delattr(builtins, name)",
        at_most=ANY,
    ),
    Hostile(
        "other defaults",
        "changes torch's default dtype, device, threads and deterministic mode",
        closing="",
        opening="import torch\ntorch.set_default_dtype(torch.float16)\ntorch.set_default_device('meta')\n"
        "torch.set_grad_enabled(False)\ntorch.set_num_threads(64)",
        at_most=ANY,
    ),
    Hostile(
        "warnings as errors",
        "turns every warning into an error and hooks the interpreter",
        opening="import sys, warnings, gc\nwarnings.simplefilter('error')\nsys.excepthook = sys.exit\n"
        "sys.unraisablehook = sys.exit\nsys.setswitchinterval(1e-6)\ngc.disable()",
    ),
    Hostile(
        "trace hook",
        "traces every call with a hook that raises",
        opening="import sys, threading\ndef hook(*a):\n    raise RuntimeError('traced')\n"
        "sys.settrace(hook)\nsys.setprofile(None)\nthreading.settrace(hook)",
    ),
    Hostile(
        "no working folder",
        "deletes the folder it works in and empties the path",
        opening="import os, shutil, sys\nshutil.rmtree(os.getcwd(), ignore_errors=True)\nos.environ.clear()\n"
        "sys.path.clear()\nsys.argv.clear()",
    ),
)
SUBMISSIONS = (*LOOPS, *ENDS, *BOMBS, *FLOODS, *STAYS, *PROMPTS, *SURROUNDINGS)
