"""Running cells in the sandbox as a notebook's kernel would, without being one."""

import bdb
import builtins
import contextlib
import getpass
import pdb
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from traitlets import Type
from traitlets.config import Config

from qlab.grading.inside.outputs import Descriptor, Outputs, Stream, flush_compiled

MOST_OF_A_PROGRAM = 2**21  # bytes of what a line of shell prints
INLINE = "module://matplotlib_inline.backend_inline"
SETTINGS = Config(
    HistoryManager={"enabled": False},
    InteractiveShell={"colors": "nocolor", "xmode": "Plain", "autoindent": False, "enable_tip": False},
)


class Publisher(DisplayPublisher):
    """Takes what `display` is given."""

    def publish(self, data: Any, metadata: Any = None, *_: Any, **options: Any) -> None:
        outputs, transient = self.shell.outputs, options.get("transient") or {}
        display_id = transient.get("display_id")
        if isinstance(display_id, str):
            outputs.show_as(display_id, data, metadata, update=bool(options.get("update")))
        else:
            outputs.show("display_data", data, metadata)

    def clear_output(self, wait: bool = False) -> None:
        self.shell.outputs.clear(wait=bool(wait))


class ResultHook(DisplayHook):
    """Takes the value of a cell's last line."""

    def write_output_prompt(self) -> None:
        """Print no prompt: the output carries its number."""

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
        count = self.shell.execution_count
        self.shell.outputs.show("execute_result", format_dict, md_dict or {}, execution_count=count)

    def log_output(self, format_dict: Any) -> None:
        """Keep no log."""

    def finish_displayhook(self) -> None:
        self._is_active = False


class Shell(InteractiveShell):
    """IPython without a terminal, a history or a kernel: its outputs go to `outputs`."""

    display_pub_class = Type(Publisher)
    displayhook_class = Type(ResultHook)
    outputs: Outputs

    @contextlib.contextmanager
    def _tee(self, channel: str) -> Iterator[None]:  # IPython would keep all that is written a second time
        yield

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        self.outputs.fail(getattr(etype, "__name__", str(etype)), _said_by(evalue), [str(line) for line in stb])

    def ask_exit(self) -> None:
        """Go on: `exit` in a cell ends the cell's line, and neither the process nor the notebook."""

    def enable_gui(self, gui: str | None = None) -> None:
        """Start no event loop: there is no window."""

    def system(self, cmd: str) -> None:
        """Run a line of shell, without a terminal; what it prints goes to the cell."""
        line = self.var_expand(cmd, depth=1)
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                line, shell=True, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, check=False
            )
            said.seek(0)
            sys.stdout.write(said.read(MOST_OF_A_PROGRAM).decode("utf-8", "replace"))
        self.user_ns["_exit_code"] = done.returncode


class CellRunner:
    """The shell of one sandboxed process, and the cells that ran in it."""

    def __init__(self) -> None:
        self.outputs = Outputs()
        self.shell = _new_shell(self.outputs)
        self._streams = Stream("stdout", 1, self.outputs), Stream("stderr", 2, self.outputs)
        self._descriptors: tuple[Descriptor, ...] = ()
        self._armed = False
        warnings.filterwarnings("ignore", message="To exit: use", category=UserWarning)
        forbid_prompts(self.shell)

    def enter(self) -> None:
        """Take over this process's streams; called once, in the process that runs the cells."""
        self._descriptors = Descriptor(1, "stdout"), Descriptor(2, "stderr")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(self, source: str, seconds: float, *, output_bytes: int) -> dict[str, Any]:
        """Run a cell and return its outputs, how it ended (`ok`, `error` or `timeout`) and its seconds."""
        started = time.monotonic()
        self._discard()
        self.outputs.begin(output_bytes)
        kept = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self._streams
        try:
            status = self._run_within(source, seconds)
            self._collect(output_bytes)
        finally:
            sys.stdout, sys.stderr = kept
        if status == "timeout":
            self.outputs.stopped(seconds)
        return {"outputs": self.outputs.taken(), "status": status, "seconds": time.monotonic() - started}

    def _run_within(self, source: str, seconds: float) -> str:
        self._armed, self._rang = True, False
        signal.signal(signal.SIGALRM, self._interrupt)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
        failed = True
        try:
            failed = _failed(self.shell.run_cell(source, store_history=True))
        except BaseException as error:  # the shell itself, which a cell can change, or an alarm while it tidies up
            self.outputs.fail(type(error).__name__, _said_by(error), [])
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        if failed:
            return "timeout" if self._rang else "error"
        return "ok"

    def _interrupt(self, *_: Any) -> None:
        if self._armed:
            self._rang = True
            raise KeyboardInterrupt

    def _discard(self) -> None:
        """Forget what was printed while no cell ran: by the learner's functions, while they were checked."""
        with contextlib.suppress(Exception):  # a cell may have put anything there
            sys.stdout.flush()
        flush_compiled()
        for descriptor in self._descriptors:
            descriptor.discard()

    def _collect(self, output_bytes: int) -> None:
        if "matplotlib.pyplot" in sys.modules:
            with contextlib.suppress(Exception):  # a cell may have changed pyplot
                sys.modules["matplotlib.pyplot"].close("all")
        flush_compiled()
        for descriptor in self._descriptors:
            descriptor.collect(self.outputs, most_bytes=output_bytes)
            descriptor.place()


def forbid_prompts(shell: InteractiveShell) -> None:
    """Let what would wait for a person raise at once, with a sentence."""

    def refuse(name: str) -> Callable[..., Any]:
        def refused(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"{name} waits for somebody to type, and nobody does while a notebook is graded")

        return refused

    builtins.input = getpass.getpass = refuse("input()")
    sys.breakpointhook = refuse("breakpoint()")
    bdb.Bdb.set_trace = pdb.Pdb.set_trace = pdb.Pdb.interaction = pdb.set_trace = refuse("a debugger")
    pdb.post_mortem = pdb.pm = refuse("a debugger")
    shell.debugger = refuse("%debug")
    shell.set_next_input = lambda *_, **__: None


def warm(runner: CellRunner) -> None:
    """Run what the first cells would otherwise import, draw and compile, and leave no trace of it."""
    names = dict(runner.shell.user_ns)
    figure = "import matplotlib.pyplot as p\np.plot([0, 1])\np.title('0')\np.show()"
    for source in (figure, "1 / 0", "display(1)\n2", "%time 1"):
        runner.shell.run_cell(source, silent=False, store_history=False)
    runner.shell.user_ns.clear()
    runner.shell.user_ns.update(names)
    runner.outputs.begin(0)


def _new_shell(outputs: Outputs) -> Shell:
    import matplotlib  # noqa: PLC0415 - its backend must be chosen before pyplot is imported
    from matplotlib_inline import backend_inline  # noqa: PLC0415 - as above

    with tempfile.TemporaryDirectory() as folder:  # for a profile that nothing reads
        shell = Shell.instance(config=SETTINGS, ipython_dir=folder)
    shell.outputs = outputs
    matplotlib.use(INLINE)
    matplotlib.interactive(True)
    backend_inline.configure_inline_support(shell, INLINE)
    return shell


def _failed(result: ExecutionResult) -> bool:
    return result.error_before_exec is not None or result.error_in_exec is not None


def _said_by(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an error of the learner's own making may raise when it is read
        return "an error that cannot be read"
