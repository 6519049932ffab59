"""One fine-tuning run from a command's words to an adapter on the disk, resumable wherever it is killed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qlab.bill import Budget, in_gb
from qlab.finetune import checkpoints, data, training
from qlab.finetune.libraries import versions
from qlab.finetune.load import load_base, pick_device, prepare
from qlab.finetune.plan import Plan, as_table, choose
from qlab.finetune.settings import Settings
from qlab.finetune.source import Source, find, read_tokenizer

ADAPTER_FOLDER, RESULT = "adapter", "result.json"
HELD_OUT_WINDOWS = 32  # enough for a difference, few enough to score twice
Say = Callable[[str], None]
Bar = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Order:
    """A run as it is asked for: what, how much memory, on which device, where to, and whether the Hub may be asked.

    Units:   with `plan_only` nothing is loaded and nothing is written.
    """

    settings: Settings
    budget: Budget
    out: Path
    device: str = "auto"
    download: bool = False
    plan_only: bool = False


@dataclass(frozen=True)
class Ready:
    """All that is known before a weight is loaded."""

    order: Order
    source: Source
    plan: Plan
    device: torch.device
    train: data.Windows
    held_out: data.Windows

    @property
    def record(self) -> dict[str, Any]:
        """What a run must have in common with the one whose files are in its folder."""
        order = self.order
        return {
            "settings": order.settings.as_record() | {"model": self.source.base_name},
            "plan": self.plan.as_record(),
            "device": self.device.type,
            "model_sha256": self.source.fingerprint,
            "data_sha256": checkpoints.file_hash(order.settings.data),
        }


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `adapter` is None if it was interrupted."""

    steps: int
    before: training.Quality
    after: training.Quality | None
    losses: tuple[float, ...]
    adapter: Path | None


def carry_out(order: Order, *, say: Say = print, bar: Bar | None = None) -> Outcome | None:
    """Carry out `order`, or go on with it where it was left; None if only the plan was asked for.

    Errors:  ValueError, with nothing overwritten, for whatever cannot be done.
    """
    ready = look(order)
    say(as_table(ready.plan, order.budget))
    check_out(ready)
    if order.plan_only:
        return None
    adapter = order.out / ADAPTER_FOLDER
    if adapter.exists():  # it has this name only when all of it is there
        outcome = _read_result(adapter)
        _remove_checkpoints(order.out)
        say(f"\nfinished already: the adapter is in {adapter}")
        return outcome
    if not (order.out / checkpoints.RECORD).is_file():
        record = {"asked": ready.record, "made_with": versions() | {"torch": torch.__version__}}
        checkpoints.write_file(order.out / checkpoints.RECORD, json.dumps(record, indent=1) + "\n")
    with checkpoints.held(order.out):
        try:
            return _train(ready, say, bar)
        except torch.OutOfMemoryError:
            needed, remedy = in_gb(ready.plan.total), "free more of it, or give a smaller --budget and another --out"
            raise ValueError(f"{ready.device} ran out of memory, {needed} of it were predicted: {remedy}") from None


def look(order: Order) -> Ready:
    """Look at data, model, device and budget, and load no weight.

    Errors:  ValueError if any of them will not do.
    """
    settings, device = order.settings, pick_device(order.device)
    documents = data.read_documents(settings.data)
    source = find(settings.model, download=order.download)
    plan = choose(source.config, settings, order.budget)
    tokenizer, windows = read_tokenizer(source), []
    for name, part in zip(("training", "held-out"), data.hold_out(documents), strict=True):
        try:
            windows.append(data.windows(part, tokenizer, sequence=settings.sequence))
        except ValueError as error:
            raise ValueError(f"the {name} part of {settings.data}: {error}") from None
    largest, rows = max(int(w.inputs.max()) for w in windows), source.config.get_text_config().vocab_size
    if largest >= rows:
        raise ValueError(
            f"the tokenizer of {source.name} gives a token {largest}, its model has {rows} rows for tokens"
        )
    return Ready(order, source, plan, device, windows[0], windows[1].first(HELD_OUT_WINDOWS))


def check_out(ready: Ready) -> None:
    """Return if the folder to write to is new, empty, or this very run's.

    Errors:  ValueError that names what is there.
    """
    out = ready.order.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, and a folder is needed: choose another --out")
    others = [path for path in out.iterdir() if not path.name.endswith(checkpoints.PARTIAL)] if out.exists() else []
    if not others:
        return
    path = out / checkpoints.RECORD
    if not path.is_file():
        raise ValueError(f"{out} holds files of something else, {others[0].name} among them: choose another --out")
    try:
        there = json.loads(path.read_text(encoding="utf-8"))["asked"]
        differing = [line for key, own in ready.record.items() for line in _differences(key, there[key], own)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged: choose another --out, nothing here is overwritten") from None
    if differing:
        raise ValueError(
            f"{out} holds another run ({'; '.join(differing)}): choose another --out, nothing is overwritten"
        )


def _differences(key: str, there: Any, own: Any) -> list[str]:
    if isinstance(own, dict):
        return [line for name, value in own.items() for line in _differences(name, there[name], value)]
    if there == own:
        return []
    return [f"{key} differs" if key.endswith("sha256") else f"{key} was {there}, is {own}"]


def _train(ready: Ready, say: Say, bar: Bar | None) -> Outcome:
    order, plan = ready.order, ready.plan
    settings, out = order.settings, order.out
    steps = checkpoints.checkpoint_steps(out)
    # read before the model is loaded: a damaged checkpoint is told at once
    kept = checkpoints.read(checkpoints.checkpoint_folder(out, steps[-1])) if steps else None
    model = prepare(load_base(ready.source, plan.way, ready.device), settings, plan)
    trainer = training.Trainer(model, training.make_optimizer(model, settings), ready.train, settings, plan.micro_batch)
    torch.manual_seed(settings.seed)
    if kept is None:
        before = training.quality(model, ready.held_out, micro_batch=plan.micro_batch)
    else:
        notes, tensors = kept
        checkpoints.restore(model, trainer.optimizer, tensors)
        trainer.losses, before = list(notes["losses"]), training.Quality(**notes["before"])
        say(f"\ngoing on after step {trainer.done} of {settings.steps}")
    say(f"\nheld out before: {training.shown_quality(before)}")
    if not _loop(trainer, out, before, bar):
        say(f"stopped after step {trainer.done} of {settings.steps}: the same command goes on from there")
        return Outcome(trainer.done, before, None, tuple(trainer.losses), None)
    after = training.quality(model, ready.held_out, micro_batch=plan.micro_batch)
    return _finish(
        ready, trainer, Outcome(trainer.done, before, after, tuple(trainer.losses), out / ADAPTER_FOLDER), say
    )


def _loop(trainer: training.Trainer, out: Path, before: training.Quality, bar: Bar | None) -> bool:
    """Train to the last step; False if an interrupt ended it early. Either way the last step is in a checkpoint."""
    settings = trainer.settings

    def save() -> None:
        notes = {"losses": trainer.losses, "before": asdict(before)}
        checkpoints.save(out, trainer.done, trainer.model, trainer.optimizer, notes)

    with training.interruptible() as interrupt, _bar(bar, settings, trainer.done) as shown:
        while trainer.done < settings.steps and not interrupt.asked:
            shown.set_postfix_str(f"{trainer.step():.3f} nats/token", refresh=False)
            shown.update()
            if trainer.done % settings.save_every == 0 or trainer.done == settings.steps or interrupt.asked:
                save()
    return trainer.done == settings.steps


def _bar(bar: Bar | None, settings: Settings, done: int) -> Any:
    if bar is None:
        from tqdm import tqdm as bar  # noqa: PLC0415 - a page brings its own
    return bar(total=settings.steps, initial=done, unit="step", desc="fine-tuning")


def _finish(ready: Ready, trainer: training.Trainer, outcome: Outcome, say: Say) -> Outcome:
    def fill(folder: Path) -> None:
        checkpoints.save_adapter(trainer.model, folder, ready.source.base_name)
        result = asdict(outcome) | {"adapter": checkpoints.file_hash(folder / checkpoints.ADAPTER)}
        (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    checkpoints.write_folder(outcome.adapter, fill)
    _remove_checkpoints(ready.order.out)
    say(f"held out after:  {training.shown_quality(outcome.after)}")
    if ready.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(ready.device)
        say(f"measured peak:   {in_gb(peak)} of {in_gb(ready.plan.total)} predicted")
    say(f"the adapter is in {outcome.adapter}: PeftModel.from_pretrained(base, {str(outcome.adapter)!r}) loads it")
    return outcome


def _remove_checkpoints(out: Path) -> None:
    for step in checkpoints.checkpoint_steps(out):
        shutil.rmtree(checkpoints.checkpoint_folder(out, step))


def _read_result(adapter: Path) -> Outcome:
    path, remedy = adapter / RESULT, f"nothing here is overwritten, remove {adapter} to make it anew"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        before, after, asked = training.Quality(**kept["before"]), training.Quality(**kept["after"]), kept["adapter"]
        outcome = Outcome(kept["steps"], before, after, tuple(kept["losses"]), adapter)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is missing or damaged: {remedy}") from None
    weights = adapter / checkpoints.ADAPTER
    if not weights.is_file() or checkpoints.file_hash(weights) != asked:
        raise ValueError(f"{weights} is missing or not what was written: {remedy}")
    return outcome
