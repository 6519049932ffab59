"""The options of `qlab finetune`, and what they mean; imports nothing heavy until it is run."""

import argparse
from pathlib import Path

from qlab.bill import budget_of
from qlab.finetune import needs
from qlab.finetune.settings import ALL_LINEAR, OPTIMIZERS, WAYS, Settings

DEFAULT = "(default: %(default)s)"


def add_options(command: argparse.ArgumentParser) -> None:
    """Give `command` the options of a fine-tuning run; defaults are those of `Settings`."""
    command.add_argument(
        "--model", required=True, metavar="PATH_OR_HUB_ID", help="a folder, or owner/name in the cache"
    )
    command.add_argument("--data", required=True, type=Path, metavar="FILE", help="a text in UTF-8, or JSON Lines")
    command.add_argument("--budget", required=True, metavar="MEMORY", help="as 8GB, 8GiB or 8")
    command.add_argument("--out", type=Path, help="folder to write to (default: work/finetune/MODEL)")
    command.add_argument("--way", choices=("auto", *WAYS), default=Settings.way, help=f"auto takes what fits {DEFAULT}")
    command.add_argument("--targets", default=ALL_LINEAR, metavar="PATTERN", help=f"layers to adapt, by name {DEFAULT}")
    for name, kind, help in (
        ("rank", int, "rank of the adapters"),
        ("alpha", float, "their scale times the rank"),
        ("dropout", float, "share of an adapter's inputs left out"),
        ("steps", int, "steps to take"),
        ("batch", int, "sequences in a step"),
        ("sequence", int, "tokens in a sequence"),
        ("learning-rate", float, "its highest value"),
        ("save-every", int, "steps between checkpoints"),
        ("seed", int, "of adapters, order and dropout"),
    ):
        preset = getattr(Settings, name.replace("-", "_"))
        command.add_argument(f"--{name}", type=kind, default=preset, help=f"{help} {DEFAULT}")
    command.add_argument("--optimizer", choices=OPTIMIZERS, default=Settings.optimizer, help=DEFAULT[1:-1])
    command.add_argument("--device", default="auto", help=f"auto, cpu, cuda or cuda:1 {DEFAULT}")
    command.add_argument("--download", action="store_true", help="fetch from the Hub what is not in the cache")
    command.add_argument("--plan", action="store_true", help="say what would be done, and do nothing")


def run(parsed: argparse.Namespace) -> int:
    """Carry out the command and return its exit status; 130 if it was interrupted, with a checkpoint.

    Errors:  ValueError for whatever cannot be done.
    """
    needs.require()
    settings = Settings(
        model=parsed.model,
        data=parsed.data,
        way=parsed.way,
        targets=parsed.targets,
        rank=parsed.rank,
        alpha=parsed.alpha,
        dropout=parsed.dropout,
        steps=parsed.steps,
        batch=parsed.batch,
        sequence=parsed.sequence,
        learning_rate=parsed.learning_rate,
        optimizer=parsed.optimizer,
        save_every=parsed.save_every,
        seed=parsed.seed,
    )
    budget = budget_of(parsed.budget)
    if not parsed.download:
        needs.stay_offline()
    from qlab.finetune.run import Order, carry_out  # noqa: PLC0415 - seconds of imports, after all cheap refusals

    out = parsed.out or Path("work", "finetune", Path(parsed.model).name)
    order = Order(
        settings=settings,
        budget=budget,
        out=out,
        device=parsed.device,
        download=parsed.download,
        plan_only=parsed.plan,
    )
    outcome = carry_out(order)
    return 130 if outcome is not None and outcome.adapter is None else 0
