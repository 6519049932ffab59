"""The options of `qlab finetune`, and what they mean; imports nothing heavy until it is run."""

import argparse
import os
from dataclasses import fields
from functools import partial
from pathlib import Path

from qlab.bill import budget_of
from qlab.finetune import needs
from qlab.finetune.settings import ALL_LINEAR, OPTIMIZERS, WAYS, Settings

DEFAULT = "(default: %(default)s)"


def add_options(command: argparse.ArgumentParser) -> None:
    """Give `command` the options of a fine-tuning run; defaults are those of `Settings`."""
    command.add_argument(
        "--model", required=True, metavar="PATH_OR_HUB_ID", help="a folder, or owner/name in the Hub's local cache"
    )
    command.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="a text in UTF-8, or JSON Lines (.jsonl)"
    )
    command.add_argument(
        "--budget", required=True, metavar="MEMORY", help="what a step may take: 8GB, 8GiB, or 8 for 8GB"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where to write and to go on (default: work/finetune/, and the model's name)",
    )
    each = "; ".join(f"{way}: {what}" for way, what in WAYS.items())
    command.add_argument(
        "--way", choices=("auto", *WAYS), default=Settings.way, help=f"{each}; auto: the first that fits {DEFAULT}"
    )
    matched = f"layers to adapt: {ALL_LINEAR}, or a regular expression for their whole names {DEFAULT}"
    command.add_argument("--targets", default=ALL_LINEAR, metavar="PATTERN", help=matched)
    _add_numbers(command)
    command.add_argument(
        "--optimizer", choices=OPTIMIZERS, default=Settings.optimizer, help=f"of the adapters {DEFAULT}"
    )
    command.add_argument("--device", default="auto", help=f"auto, cpu, cuda or cuda:1 {DEFAULT}")
    command.add_argument("--download", action="store_true", help="fetch from the Hub what is not in the cache")
    command.add_argument("--plan", action="store_true", help="say what would be done, and do nothing")


def _add_numbers(command: argparse.ArgumentParser) -> None:
    for name, kind, help in (
        ("rank", int, "rank of the adapters"),
        ("alpha", float, "their scale times the rank"),
        ("dropout", float, "share of an adapter's inputs left out"),
        ("steps", int, "steps to take"),
        ("batch", int, "sequences in a step"),
        ("sequence", int, "tokens in a sequence"),
        ("learning-rate", float, "its highest value"),
        ("save-every", int, "steps from one checkpoint to the next"),
        ("seed", int, "of adapters, order and dropout"),
    ):
        preset = getattr(Settings, name.replace("-", "_"))
        command.add_argument(f"--{name}", type=kind, default=preset, help=f"{help} {DEFAULT}")


def run(parsed: argparse.Namespace) -> int:
    """Carry out the command and return its exit status; 130 if it was interrupted, with a checkpoint.

    Errors:  ValueError for whatever cannot be done.
    """
    needs.require()
    settings = Settings(**{field.name: getattr(parsed, field.name) for field in fields(Settings)})
    budget = budget_of(parsed.budget)
    if not parsed.download:
        needs.stay_offline()
    from qlab.finetune.run import Order, carry_out  # noqa: PLC0415 - seconds of imports, after all cheap refusals

    name = Path(os.path.abspath(Path(parsed.model).expanduser())).name  # of "." too, and links keep theirs
    out = parsed.out or Path("work", "finetune", name)
    order = Order(
        settings=settings,
        budget=budget,
        out=out,
        device=parsed.device,
        download=parsed.download,
        plan_only=parsed.plan,
    )
    outcome = carry_out(order, say=partial(print, flush=True))  # a log shows it when it is said
    return 130 if outcome is not None and outcome.adapter is None else 0
