"""The sandbox under attack: what a submission must not reach, what it must not outlive, and how its end is told."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qlab.grading.inside import confine_calls, confine_seccomp
from qlab.grading.limits import MIB, Limits
from qlab.grading.sandbox import (
    Kernel,
    NoIsolation,
    Sandbox,
    SandboxFailed,
    isolation,
    pool,
    require_isolation,
    view,
    warm,
)
from qlab.grading.wire import ConnectionEnded, TimedOut

BARE = "qlab.grading.inside.bare.serve"
COLD = "qlab.grading.inside.bare.serve_cold"
LIMITS = Limits(memory_bytes=1024 * MIB, scratch_bytes=32 * MIB, processes=24, open_files=128)
REPOSITORY = Path(__file__).parents[2]
A_SECRET = "QLAB_TEST_SECRET"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    needs_isolation()
    os.environ[A_SECRET] = "the seed is 7"
    with Sandbox(limits=LIMITS, serve=BARE) as started:
        yield started
    del os.environ[A_SECRET]


@pytest.fixture
def kernel(sandbox: Sandbox) -> Iterator[Kernel]:
    started = sandbox.start_kernel()
    yield started
    started.kill()


def needs_isolation() -> None:
    try:
        require_isolation()
    except NoIsolation as missing:
        if os.environ.get("QLAB_REQUIRE_SANDBOX") == "1":
            raise
        pytest.skip(str(missing))


def ask(kernel: Kernel, source: str, *, seconds: float = 20.0) -> str:
    kernel.connection.send(source.encode())
    return kernel.connection.receive(deadline=time.monotonic() + seconds).decode()


def run_shell(kernel: Kernel, command: str) -> str:
    return ask(
        kernel,
        f"""import subprocess
done = subprocess.run(["bash", "-c", {command!r}], stdout=-1, stderr=subprocess.STDOUT, text=True, timeout=10)
answer = done.stdout""",
    )


def wait_for(condition, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


def processes_with(marker: str) -> list[int]:
    """Processes of this machine whose command line holds a marker."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if marker.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


# what a submission finds


def test_torch_is_already_imported_and_runs_on_one_thread_or_more(kernel):
    assert ask(kernel, "import sys; answer = 'torch' in sys.modules and 'torch._dynamo' in sys.modules") == "True"
    parallel = "import torch; torch.set_num_threads(4); a = torch.ones(600, 600); answer = (a @ a).sum().item()"
    assert ask(kernel, parallel) == str(600.0**3)


def test_a_loader_of_data_with_its_own_processes_works(kernel):
    source = """import torch
data = torch.utils.data.TensorDataset(torch.arange(8))
answer = sorted(int(x) for batch in torch.utils.data.DataLoader(data, batch_size=2, num_workers=2) for x in batch[0])"""
    assert ask(kernel, source) == str(list(range(8)))


def test_it_is_the_first_process_of_a_world_with_no_other(kernel):
    assert ask(kernel, "import os; answer = os.getpid(), os.listdir('/proc'), os.getuid()") == "(1, [], 65534)"


def test_two_kernels_draw_different_numbers_and_share_no_files(sandbox, kernel):
    other = sandbox.start_kernel()
    draw = "import random, torch, numpy; answer = random.random(), torch.rand(1).item(), numpy.random.rand()"
    mine, theirs = (eval(ask(each, draw)) for each in (kernel, other))
    assert all(a != b for a, b in zip(mine, theirs, strict=True))
    for folder in ("/tmp", "/dev/shm", "."):
        ask(kernel, f"open({folder!r} + '/left', 'w').write('a message')")
        assert ask(other, f"import os; answer = 'left' in os.listdir({folder!r})") == "False"
    other.kill()


def test_it_has_the_recorded_runs_a_lab_shows_and_an_empty_course(kernel):
    source = "import os; from qlab.course import root; answer = sorted(os.listdir(root())), os.listdir(root() / 'labs')"
    assert ask(kernel, source) == "(['labs', 'lessons'], [])"
    assert (
        ask(kernel, "from qlab.page import recorded; answer = recorded('03_quantization', 'damage') is not None")
        == "True"
    )


# what it must not reach


@pytest.mark.parametrize(
    "name", ["solutions", "labs", "tests", "lessons", "nbgrader_config.py", ".git", "pyproject.toml"]
)
def test_nothing_of_the_course_is_there(kernel, name):
    assert ask(kernel, f"import os; answer = os.path.lexists({str(REPOSITORY / name)!r})") == "False"


def test_no_file_it_can_list_holds_a_notebook_or_a_gradebook_of_the_course(kernel):
    found = run_shell(kernel, "find / -xdev -name '03_quantization*' -o -xdev -name 'gradebook*' 2>/dev/null; exit 0")
    assert found.split() == [] or all("/course/lessons/recorded/" in path for path in found.split())


def test_the_environment_holds_nothing_of_the_graders(kernel):
    seen = ask(kernel, "import os; answer = '\\n'.join(os.environ)").split()
    assert A_SECRET not in seen
    assert set(seen) <= {*view.environment(), "PWD"}
    environment_in_memory = ask(kernel, f"import ctypes; answer = ctypes.CDLL(None).getenv(b'{A_SECRET}')")
    assert environment_in_memory == "0"


def test_it_holds_no_descriptor_but_its_own(kernel):
    source = """import os
answer = []
for number in range(3, 256):
    try:
        os.fstat(number)
        answer.append(number)
    except OSError:
        pass"""
    assert ask(kernel, source) == "[3]"
    assert ask(kernel, "import os; answer = [os.readlink('/dev/fd/0')]").startswith("FileNotFoundError")


@pytest.mark.parametrize(
    "path", ["/", "/usr", "/etc", "/dev", "/proc", "/course", str(REPOSITORY / "qlab"), sys.prefix]
)
def test_it_writes_nowhere_but_in_its_scratch(kernel, path):
    told = ask(kernel, f"open({path!r} + '/mine', 'w').write('x'); answer = 'written'")
    assert told.startswith(("OSError: [Errno 30]", "PermissionError", "OSError: [Errno 28]"))


@pytest.mark.parametrize(
    "source",
    [
        "import socket; socket.socket(socket.AF_INET); answer = 'made'",
        "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); answer = 'made'",
        "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); answer = 'made'",
        "import socket; socket.socket(socket.AF_VSOCK); answer = 'made'",
        "import socket; socket.create_connection(('127.0.0.1', 80), 2); answer = 'made'",
        "import socket; answer = socket.getaddrinfo('example.org', 80)",
    ],
)
def test_there_is_no_network(kernel, source):
    assert "Error" in ask(kernel, source).split(":")[0] or ask(kernel, source).startswith("gaierror")


def test_abstract_sockets_of_one_kernel_are_unknown_to_another(sandbox, kernel):
    listen = "import socket, builtins; s = socket.socket(socket.AF_UNIX); s.bind('\\0meet'); s.listen(); builtins.s = s"
    ask(kernel, listen)
    other = sandbox.start_kernel()
    connect = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0meet'); answer = 'met'"
    assert ask(kernel, connect) == "met"
    assert ask(other, connect).startswith("ConnectionRefusedError")
    other.kill()


def test_it_can_neither_signal_nor_trace_another_process(kernel):
    assert ask(kernel, "import os; answer = os.getppid()") == "0"
    source = f"""import os
answer = []
for pid in [*range(2, 300), {os.getpid()}]:
    try:
        os.kill(pid, 0)
        answer.append(pid)
    except ProcessLookupError:
        pass"""
    assert ask(kernel, source) == "[]"


def test_every_denied_call_is_denied(kernel):
    column = confine_seccomp.ARCHITECTURES[os.uname().machine][1]
    numbers = {name: each[column] for name, each in confine_seccomp.DENIED.items() if each[column] >= 0}
    source = f"""import ctypes
libc = ctypes.CDLL(None, use_errno=True)
answer = {{name: (libc.syscall(n, 0, 0, 0, 0, 0, 0), ctypes.get_errno()) for name, n in {numbers}.items()}}"""
    assert ask(kernel, source) == str(dict.fromkeys(numbers, (-1, 1)))


def test_it_enters_no_namespace_by_any_door(kernel):
    number = confine_seccomp.CLONE[confine_seccomp.ARCHITECTURES[os.uname().machine][1]]
    new = confine_calls.CLONE_NEWUSER | 17
    source = f"""import ctypes
libc = ctypes.CDLL(None, use_errno=True)
answer = libc.syscall({number}, {new}, 0, 0, 0, 0), ctypes.get_errno(), libc.syscall(435, 0, 0), ctypes.get_errno()"""
    assert ask(kernel, source) == "(-1, 1, -1, 38)"
    assert "not permitted" in run_shell(kernel, "unshare --user --map-root-user id")


def test_setuid_programs_give_nothing(kernel):
    assert run_shell(kernel, "su -c id root < /dev/null; id -u").endswith("65534\n")
    assert ask(kernel, "import os; os.setuid(0); answer = os.getuid()").startswith("OSError: [Errno 22]")
    source = "import ctypes; answer = [ctypes.CDLL(None).prctl(23, n, 0, 0, 0) for n in (1, 8, 21)]"
    assert ask(kernel, source) == "[0, 0, 0]"


def test_a_32_bit_program_has_no_calls_at_all():
    code = confine_seccomp.program("x86_64")
    first = [struct.unpack("<HBBI", code[at : at + 8]) for at in range(0, 24, 8)]
    assert first[1][3] == confine_seccomp.ARCHITECTURES["x86_64"][0]
    assert first[2][3] == confine_seccomp.KILL_PROCESS
    assert len(confine_seccomp.program("aarch64")) % 8 == 0


# what it must not take


def test_memory_past_the_limit_is_refused_and_the_kernel_lives(kernel):
    assert ask(kernel, "import torch; torch.empty(5 * 2**30, dtype=torch.uint8).fill_(1)").startswith("RuntimeError")
    assert ask(kernel, "import mmap; mmap.mmap(-1, 5 * 2**30)").startswith(("OSError", "MemoryError"))
    assert ask(kernel, "b'x' * (5 * 2**30)").startswith("MemoryError")
    assert ask(kernel, "answer = 1 + 1") == "2"


def test_memory_taken_by_many_processes_together_ends_what_took_it(kernel):
    source = """import os, time
children = []
for _ in range(6):
    children.append(os.fork())
    if children[-1] == 0:
        held = bytearray(os.urandom(2**20) * 300)
        time.sleep(3)
        os._exit(0)
answer = {os.waitpid(child, 0)[1] for child in children}"""
    try:
        assert "9" in ask(kernel, source)  # a control group of version 1 ends single processes
    except ConnectionEnded:
        assert "memory" in kernel.why_ended()


def test_a_fork_bomb_troubles_its_own_kernel_alone(sandbox, kernel):
    source = """import os, time
def bomb():
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)
bomb()"""
    other = sandbox.start_kernel()
    kernel.connection.send(source.encode())
    time.sleep(0.5)
    assert ask(other, "import os; pid = os.fork(); pid or os._exit(0); answer = os.waitpid(pid, 0)[1]") == "0"
    other.kill()
    before = time.monotonic()
    kernel.kill()
    assert time.monotonic() - before < 5
    assert kernel.why_ended() in {"it was stopped", "it started more than 24 processes or threads"}


def test_what_starts_many_processes_lets_others_go_first(kernel):
    source = """import os, time
children = [os.fork() for _ in range(10) if os.getpid() == 1]
if os.getpid() != 1:
    time.sleep(30)
until = time.monotonic() + 5
while os.nice(0) < 19 and time.monotonic() < until:
    time.sleep(0.02)
answer = os.nice(0), {os.getpriority(os.PRIO_PROCESS, child) for child in children}"""
    assert ask(kernel, source) == "(19, {19})"


def test_threads_count_as_processes(kernel):
    source = """import threading, time
made = []
try:
    for _ in range(200):
        thread = threading.Thread(target=time.sleep, args=(5,), daemon=True)
        thread.start()
        made.append(thread)
except RuntimeError:
    pass
time.sleep(0.3)
answer = len(made)"""
    try:
        assert int(ask(kernel, source)) <= LIMITS.processes
    except ConnectionEnded:
        assert kernel.why_ended() == "it started more than 24 processes or threads"


def test_a_full_disk_is_its_own(sandbox, kernel):
    fill = """import os
written = 0
try:
    for number in range(100):
        with open(f'/tmp/{number}', 'wb') as file:
            written += file.write(os.urandom(2**20) * 4)
except OSError as error:
    answer = written, error.errno"""
    written, number = eval(ask(kernel, fill))
    assert (written <= LIMITS.scratch_bytes, number) == (True, 28)
    assert ask(kernel, "open('/dev/shm/more', 'wb').write(bytes(2**20))").startswith("OSError: [Errno 28]")
    other = sandbox.start_kernel()
    assert ask(other, "answer = open('/tmp/mine', 'wb').write(bytes(2**20))") == str(2**20)
    other.kill()


def test_many_files_and_many_descriptors_end(kernel):
    assert ask(kernel, "for n in range(10**6): open(f'/tmp/{n}', 'w').close()").startswith("OSError: [Errno 28]")
    assert ask(kernel, "kept = []\nwhile True: kept.append(open('/dev/null'))").startswith("OSError: [Errno 24]")


# how it ends, and what is left


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import os; os._exit(7)", "its process ended (exit status 7)"),
        ("import os; os.abort()", "its process was killed by signal"),
        ("import ctypes; ctypes.string_at(8)", "its process was killed by signal SEGV"),
        ("import os; os.closerange(0, 1000)", "its process ended"),
        ("import os, time; os.close(3); time.sleep(30)", "it closed its connection to the judge"),
    ],
)
def test_how_a_kernel_ended_is_told_in_a_sentence(kernel, source, sentence, monkeypatch):
    monkeypatch.setattr("qlab.grading.sandbox.kernel.REPORT_SECONDS", 2.0)
    assert kernel.why_ended() == ""
    with pytest.raises((ConnectionEnded, TimedOut)):
        ask(kernel, source, seconds=10)
    assert kernel.why_ended().startswith(sentence)


def test_nothing_outlives_a_kernel_that_was_killed(sandbox):
    kernel = sandbox.start_kernel()
    marker = f"{os.getpid()}.5"
    run_shell(kernel, f"exec >&- 2>&-; setsid sleep {marker} & setsid bash -c 'trap \"\" TERM; sleep {marker}; :' & :")
    assert wait_for(lambda: len(processes_with(f"sleep\0{marker}")) == 2)
    kernel.kill()
    kernel.kill()
    assert processes_with(f"sleep\0{marker}") == []
    assert kernel.why_ended() == "it was stopped"
    assert kernel.cpu_seconds > 0


def test_the_processor_time_of_all_it_started_is_counted(sandbox):
    kernel = sandbox.start_kernel()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    ask(kernel, f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {burn!r}])")
    ask(kernel, "import time\nstart = time.process_time()\nwhile time.process_time() < start + 0.2: pass")
    kernel.kill()
    assert 0.5 <= kernel.cpu_seconds < 2.0


def test_processes_that_ran_when_it_was_killed_are_counted_too(sandbox):
    kernel = sandbox.start_kernel()
    burn = "import time\nwhile True: pass"
    ask(
        kernel, f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-S', '-c', {burn!r}]); time.sleep(1)"
    )
    kernel.kill()
    assert kernel.cpu_seconds >= 0.2


def test_many_threads_may_start_kernels_at_once(sandbox):
    answers: list[str] = []

    def use() -> None:
        kernel = sandbox.start_kernel()
        answers.append(ask(kernel, "answer = 6 * 7"))
        kernel.kill()

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == ["42"] * 6


# the sandbox itself


def test_a_dead_sandbox_starts_again_once_and_says_so_the_second_time():
    needs_isolation()
    with Sandbox(limits=LIMITS, serve=COLD, pool=0) as sandbox:
        kernel = sandbox.start_kernel()
        sandbox._warm._kill()
        assert wait_for(lambda: kernel.why_ended() == "the sandbox has ended")
        assert kernel.sandbox_failed
        kernel.kill()
        kernel = sandbox.start_kernel()
        assert ask(kernel, "answer = 1") == "1"
        sandbox._warm._kill()
        kernel.kill()
        assert wait_for(lambda: not sandbox._warm.alive)
        with pytest.raises(SandboxFailed, match="ended twice"):
            sandbox.start_kernel()


def test_a_grader_that_is_killed_leaves_no_process():
    needs_isolation()
    script = f"""
import time
from qlab.grading.sandbox import Sandbox
sandbox = Sandbox(serve={COLD!r})
kernel = sandbox.start_kernel()
kernel.connection.send(b"import subprocess; subprocess.Popen(['sleep', '{os.getpid()}.25'])")
kernel.connection.receive(deadline=time.monotonic() + 10)
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=REPOSITORY) as grader:
        assert grader.stdout.readline() == b"ready\n"
        assert len(processes_with(f"sleep\0{os.getpid()}.25")) == 1
        grader.kill()
    assert wait_for(lambda: not processes_with(f"sleep\0{os.getpid()}.25"))


def test_processor_time_past_the_limit_ends_the_kernel():
    needs_isolation()
    with Sandbox(limits=replace(LIMITS, submission_seconds=0.5), serve=COLD, pool=0) as sandbox:
        kernel = sandbox.start_kernel()
        kernel.connection.send(b"while True: pass")
        assert wait_for(lambda: kernel.why_ended() != "")
        assert kernel.why_ended() == "it used more processor time than a submission may"
        kernel.kill()


def test_without_groups_the_watch_ends_a_fork_bomb(monkeypatch):
    needs_isolation()
    monkeypatch.setattr(warm.groups, "parent", lambda: None)
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    with Sandbox(limits=LIMITS, serve=COLD, pool=0) as sandbox:
        kernel = sandbox.start_kernel()
        kernel.connection.send(bomb.encode())
        if os.geteuid() == 0:  # no limit of processes holds for root: the watch does, among hundreds of others
            assert wait_for(lambda: kernel.why_ended() != "", seconds=60)
            assert kernel.why_ended() == "it started more than 24 processes or threads"
        kernel.kill()
        assert kernel.why_ended()


def test_without_nested_namespaces_each_kernel_has_a_bubblewrap_of_its_own(monkeypatch):
    needs_isolation()
    here = replace(require_isolation(), nested=False)
    assert "one for each submission" in str(here)
    monkeypatch.setattr(pool, "require_isolation", lambda: here)
    marker = f"{os.getpid()}.75"
    with Sandbox(limits=LIMITS, serve=COLD, pool=0) as sandbox:
        kernel = sandbox.start_kernel()
        run_shell(kernel, f"exec >&- 2>&-; setsid sleep {marker} &")
        assert ask(kernel, f"import os; answer = os.path.exists({str(REPOSITORY / 'solutions')!r})") == "False"
        assert ask(kernel, "import socket; socket.socket()").startswith("PermissionError")
        assert ask(kernel, "open('/tmp/big', 'wb').write(bytes(33 * 2**20))").startswith("OSError")
        assert processes_with(f"sleep\0{marker}")
        kernel.kill()
        assert not processes_with(f"sleep\0{marker}")


def test_unsafe_grading_works_without_any_isolation_and_still_limits(monkeypatch):
    monkeypatch.setattr(isolation.shutil, "which", lambda name: None)
    with Sandbox(limits=LIMITS, serve=COLD, pool=0, unsafe=True) as sandbox:
        kernel = sandbox.start_kernel()
        assert ask(kernel, "b'x' * (5 * 2**30)").startswith("MemoryError")
        kernel.kill()
        assert kernel.why_ended() == "it was stopped"


@pytest.mark.parametrize(
    ("platform", "which"), [("darwin", "/usr/bin/bwrap"), ("linux", None), ("linux", "/bin/false")]
)
def test_without_isolation_grading_is_refused_with_what_to_do(monkeypatch, platform, which):
    monkeypatch.setattr(isolation.sys, "platform", platform)
    monkeypatch.setattr(isolation.shutil, "which", lambda name: which)
    require_isolation.cache_clear()
    try:
        with pytest.raises(NoIsolation, match=r"Linux|install bubblewrap|user namespaces|sysctl"):
            Sandbox()
    finally:
        require_isolation.cache_clear()


def test_a_ready_kernel_is_handed_out_at_once(sandbox):
    spans = []
    for _ in range(3):
        assert wait_for(lambda: bool(sandbox._ready))
        before = time.perf_counter()
        kernel = sandbox.start_kernel()
        spans.append(time.perf_counter() - before)
        kernel.kill()
    assert min(spans) < 0.02


def test_a_course_inside_its_own_environment_is_covered(monkeypatch):
    monkeypatch.setattr(view.sys, "prefix", str(REPOSITORY))
    words = view.arguments(nested=True, scratch_bytes=MIB)
    words = words[words.index("--ro-bind") :]
    shown, covered = words.index(str(REPOSITORY)), words.index("--tmpfs")
    assert words[shown - 1 : shown + 2] == ["--ro-bind", str(REPOSITORY), str(REPOSITORY)]
    assert (shown < covered, words[covered + 1]) == (True, str(REPOSITORY))
    after = words[covered + 2 :]
    assert not any(str(REPOSITORY / name) in after for name in ("", "solutions", "labs", "lessons", "tests"))
    assert str(REPOSITORY / "qlab") in after


@pytest.mark.parametrize("nested", [True, False])
def test_an_installation_below_tmp_is_seen_and_stays_read_only(nested):
    needs_isolation()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="a place ä ") as folder:
        shutil.copytree(REPOSITORY / "qlab", Path(folder, "qlab"))
        Path(folder, "secret").touch()
        script = f"""
from dataclasses import replace
import qlab, sys, time
from qlab.grading.limits import Limits
from qlab.grading.sandbox import Sandbox, pool, require_isolation
here = require_isolation()
pool.require_isolation = lambda: replace(here, nested=here.nested and {nested})
with Sandbox(serve={COLD!r}, pool=0) as sandbox:
    kernel = sandbox.start_kernel()
    for source in sys.argv[1:]:
        kernel.connection.send(source.encode())
        print(kernel.connection.receive(deadline=time.monotonic() + 20).decode())
"""
        asked = [
            "import qlab.packing; answer = qlab.packing.__file__",
            f"import os; answer = os.listdir({folder!r})",
            f"open({str(Path(folder, 'qlab', 'course.py'))!r}, 'a')",
            "answer = open('/tmp/own', 'w').write('four')",
        ]
        command, path = [sys.executable, "-c", script, *asked], os.environ | {"PYTHONPATH": folder}
        told = subprocess.run(command, env=path, cwd="/", capture_output=True, text=True, check=True).stdout
        where, listed, appended, wrote = told.splitlines()
        assert where == str(Path(folder, "qlab", "packing.py"))
        assert (listed, appended.split(":")[0], wrote) == ("['qlab']", "OSError", "4")
