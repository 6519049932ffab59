"""The command `qlab`: thin words around the modules that do the work."""

import argparse
import io
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qlab import bill, config, course, memory
from qlab.bootstrap import port_is_free
from qlab.finetune import command as finetune
from qlab.grading import command as grading
from qlab.labs import build, copies
from qlab.labs.build import CannotBuild
from qlab.labs.execute import ExerciseResult, check_notebook, labs_under
from qlab.labs.notebooks import NotALab

NOBODY_READS = 141  # as a shell counts a program that a closed pipe ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; what goes wrong is one sentence on stderr."""
    parsed = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal or a pipe need not know the character ⁻
    try:
        status = parsed.run(parsed)
        print(end="", flush=True)
        return status
    except (NotALab, CannotBuild, ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return NOBODY_READS
        print(f"qlab {parsed.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _nobody_reads() -> bool:
    """Tell whether what is printed has lost its reader, as in `qlab grade | head`; the rest then goes nowhere."""
    if not hasattr(select, "poll"):
        return True
    closed = []
    for stream in (sys.stdout, sys.stderr):
        watch = select.poll()
        watch.register(stream, 0)
        closed += [stream] if watch.poll(0) else []
    for stream in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(closed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qlab", description="A course and lab on training large models with small means."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: object, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(run=run)
        return added

    lab = command("lab", _lab, "copy the labs into work/ and open JupyterLab on the landing page")
    lab.add_argument("--port", type=int, default=8888)
    lab.add_argument("--no-browser", action="store_true")
    command("doctor", _doctor, "say what this machine has, and what will run on it")
    check = command("check", _check, "execute labs and print the points of each exercise; status 1 unless all are won")
    check.add_argument(
        "paths", nargs="+", metavar="PATH", help="a notebook, a folder, or a topic number for your own copy"
    )
    built = command("build", _build, "make labs/ anew from solutions/ (needs nbgrader)")
    built.add_argument(
        "--check", action="store_true", help="change nothing; status 1 if a lab differs from its solution"
    )
    refresh = command("refresh", _refresh, "carry your answers over into the lab of today, keeping the old copy")
    refresh.add_argument("topic", help="the topic, such as 01")
    _add_bill_options(command("bill", _bill, "predict the memory of a training step; status 1 if it does not fit"))
    finetune.add_options(command("finetune", finetune.run, "fine-tune a Hugging Face model under a byte budget"))
    grading.add_options(command("grade", grading.run, "judge what a class handed in, into nbgrader's gradebook"))
    return parser


def _add_bill_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="such as llama-2-70b; a name it does not know gets the list")
    command.add_argument("--recipe", default="mixed-adam", help="such as qlora (default: %(default)s)")
    command.add_argument("--batch", type=int, default=1, help="sequences on each device (default: %(default)s)")
    command.add_argument("--seq", type=int, help="tokens in a sequence (default: as many as the model allows)")
    command.add_argument("--gpu", metavar="MEMORY", help="as 48GB, 48GiB or 48: says what would fit it")
    command.add_argument("--checkpointing", action="store_true", help="recompute layers in the backward pass")
    command.add_argument("--devices", type=int, default=1, help="devices that share the work (default: %(default)s)")
    command.add_argument(
        "--zero", type=int, default=0, metavar="STAGE", help="ZeRO stage, 0 to 3 (default: %(default)s)"
    )


def _lab(parsed: argparse.Namespace) -> int:
    if not 1 <= parsed.port <= 65535:
        raise ValueError(f"a port is a number from 1 to 65535, got {parsed.port}")
    if not port_is_free(parsed.port):
        raise OSError(f"port {parsed.port} is taken: stop what listens there, or choose another with --port")
    for made in copies.copy_labs():
        print(f"your copy: {made.relative_to(course.root())}")
    root = course.root()
    options = [f"--port={parsed.port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}"]
    options += ["--no-browser"] if parsed.no_browser else []
    options += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # as in a container
    start = [sys.executable, "-m", "jupyterlab", str(course.lesson_path("00_start")), *options]
    tools = str(Path(sys.executable).parent)  # so that `qlab` and `nbgrader` are found in JupyterLab's terminals
    environment = os.environ | {"PATH": os.pathsep.join([tools, os.environ.get("PATH", "")])}
    return subprocess.run(start, cwd=root, env=environment, check=False).returncode


def _doctor(parsed: argparse.Namespace) -> int:
    del parsed
    from qlab import doctor  # noqa: PLC0415 - the other commands need no torch

    print(doctor.as_text(doctor.findings()))
    return 0


def _check(parsed: argparse.Namespace) -> int:
    complete = True
    for path in (lab for given in parsed.paths for lab in _labs_of(given)):
        try:
            results = check_notebook(path)
        except NotALab as error:  # one unreadable notebook in a folder of many does not keep the others waiting
            print(f"qlab check: {error}", file=sys.stderr)
            complete = False
            continue
        _print_results(path, results)
        complete &= all(result.points == result.max_points for result in results)
    return 0 if complete else 1


def _labs_of(given: str) -> tuple[Path, ...]:
    if given.isdecimal():
        copy = course.copy_path(course.topic_stem(given))
        if not copy.exists():
            raise NotALab(f"you have no copy of topic {given} yet: make lab puts it at {copy}")
        return (copy,)
    return labs_under(Path(given))


def _print_results(path: Path, results: Sequence[ExerciseResult]) -> None:
    won, most = sum(r.points for r in results), sum(r.max_points for r in results)
    print(f"{path}: {won} of {most} points")
    for result in results:
        named = f"  [{result.misconception}]" if result.misconception else ""
        print(f"  {result.grade_id:32} {result.points} / {result.max_points}  {result.outcome}{named}")
        for remark in result.remarks if result.outcome not in ("empty", "right") else ():
            print(f"      {remark}")


def _build(parsed: argparse.Namespace) -> int:
    if parsed.check:
        stale = build.differing()
        for path in stale:
            print(f"{path.relative_to(course.root())} differs from its solution: run qlab build")
        return 1 if stale else 0
    changed = build.build()
    print(
        "\n".join(f"built {path.relative_to(course.root())}" for path in changed) or "every lab is as its solution says"
    )
    return 0


def _refresh(parsed: argparse.Namespace) -> int:
    done = copies.refresh(course.topic_stem(parsed.topic))
    print(f"carried over {len(done.carried)} answers; the old copy is kept as {done.backup}")
    if done.left_behind:
        print(
            f"these answers have no place in the lab any more, and lie in the old copy: {', '.join(done.left_behind)}"
        )
    return 0


def _bill(parsed: argparse.Namespace) -> int:
    model, recipe = config.named_config(parsed.model), memory.named_recipe(parsed.recipe)
    sequence = model.sequence if parsed.seq is None else parsed.seq
    run = bill.run_for(recipe, batch=parsed.batch, sequence=sequence, checkpointed=parsed.checkpointing)
    order = bill.Order(config=model, recipe=recipe, run=run, stage=parsed.zero, devices=parsed.devices)
    budget = bill.budget_of(parsed.gpu) if parsed.gpu is not None else None
    print(bill.as_text(order, budget))
    return 1 if budget and not bill.fits(order, budget) else 0
