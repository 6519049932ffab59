"""A fine-tuning run from data to adapter: resumed bitwise, refused without a trace, loaded by PEFT."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qlab.bill import budget_of
from qlab.finetune import checkpoints, data, load, plan, run, source, training
from qlab.finetune.libraries import AutoModelForCausalLM, expected_warnings, peft
from qlab.finetune.settings import Settings
from tests import tiny_llama

pytestmark = pytest.mark.xdist_group("finetune")  # one worker imports the libraries, which takes seconds
STEPS = 6
PLANS: dict[object, plan.Plan] = {}


class Silent:
    """A progress bar that shows nothing and remembers what it was told."""

    made: list["Silent"] = []  # noqa: RUF012 - the run makes the bar, the test looks at it afterwards

    def __init__(self, *, total, initial, unit, desc):
        self.steps, self.initial = 0, initial
        self.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def set_postfix_str(self, text, refresh):
        assert text.endswith(" nats/token")

    def update(self):
        self.steps += 1


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_llama.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny_llama.library_text("heapq.py"))
    return path


@pytest.fixture
def order(model, text, tmp_path) -> run.Order:
    asked = Settings(
        model=str(model), data=text, steps=STEPS, batch=2, sequence=64, save_every=2, learning_rate=5e-3, rank=4
    )
    return run.Order(settings=asked, budget=budget_of("1GB"), out=tmp_path / "out", device="cpu")


@pytest.fixture(autouse=True)
def planned_once(monkeypatch):
    """Predict once for all runs that share settings and budget: it takes half of their time."""

    def choose(config, settings, budget):
        key = (settings, budget, settings.model)
        if key not in PLANS:
            PLANS[key] = plan.choose(config, settings, budget)
        return PLANS[key]

    monkeypatch.setattr(run, "choose", choose)


def asked(order: run.Order, **changes) -> run.Order:
    return replace(order, settings=replace(order.settings, **changes))


def carry_out(order: run.Order) -> run.Outcome | None:
    return run.carry_out(order, say=lambda _: None, bar=Silent)


def weights(out: Path) -> bytes:
    return (out / run.ADAPTER_FOLDER / checkpoints.ADAPTER).read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """What no `except` of the run catches."""


def kill_at(monkeypatch, step: int) -> None:
    take = training.Trainer.step

    def step_or_die(trainer):
        if trainer.done == step:
            raise Killed
        return take(trainer)

    monkeypatch.setattr(training.Trainer, "step", step_or_die)


@pytest.mark.parametrize(
    ("changes", "killed_at"),
    [({}, 3), ({"dropout": 0.5}, 5), ({"way": "qlora"}, 4), ({"way": "qlora", "dropout": 0.2}, 1)],
    ids=["lora", "dropout", "qlora", "before the first checkpoint"],
)
def test_a_killed_run_ends_at_the_same_bits(order, tmp_path, monkeypatch, changes, killed_at):
    order = asked(order, **changes)
    whole = carry_out(replace(order, out=tmp_path / "whole"))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_at(patched, killed_at)
        carry_out(order)
    assert not (order.out / run.ADAPTER_FOLDER).exists()
    torch.manual_seed(99)  # the state of the process must not matter
    resumed = carry_out(order)
    assert Silent.made[-1].initial == killed_at // 2 * 2 and Silent.made[-1].steps == STEPS - killed_at // 2 * 2
    assert weights(order.out) == weights(tmp_path / "whole")
    assert files(order.out / run.ADAPTER_FOLDER) == files(tmp_path / "whole" / run.ADAPTER_FOLDER)
    assert resumed == replace(whole, adapter=order.out / run.ADAPTER_FOLDER)
    assert sorted(path.name for path in order.out.iterdir()) == [run.ADAPTER_FOLDER, checkpoints.RECORD]


def test_a_run_that_dies_at_any_write_leaves_nothing_half_written(order, tmp_path, monkeypatch):
    carry_out(replace(order, out=tmp_path / "whole"))
    rename, replaced, flush, deaths = Path.rename, Path.replace, checkpoints._flush, 0
    while True:
        left, out = deaths, tmp_path / f"out-{deaths}"

        def or_die(act):
            def acting(*arguments):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return act(*arguments)

            return acting

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", or_die(rename))
            patched.setattr(Path, "replace", or_die(replaced))
            patched.setattr(checkpoints, "_flush", or_die(flush))
            try:
                carry_out(replace(order, out=out))
                break
            except Killed:
                deaths += 5  # every fifth of them, to save time: files of one folder are flushed one after another
        for path in out.glob("checkpoint-*"):
            if not path.name.endswith(checkpoints.PARTIAL):
                checkpoints.read(path)  # refuses what is not whole
        carry_out(replace(order, out=out))
        assert weights(out) == weights(tmp_path / "whole")
        assert not list(out.glob("*" + checkpoints.PARTIAL)), deaths
    assert deaths > 10


def test_training_helps_and_the_before_is_the_base_alone(order):
    outcome = carry_out(asked(order, steps=30))
    assert outcome.after.nats_per_token < outcome.before.nats_per_token - 0.03
    assert len(outcome.losses) == outcome.steps == 30
    found = source.find(order.settings.model)
    ready = run.look(order)
    base = load.load_base(found, "lora", torch.device("cpu"))
    assert training.quality(base, ready.held_out, micro_batch=2) == outcome.before
    assert 1 < outcome.before.nats_per_token / outcome.before.bits_per_byte < 2  # 1.45 / ln 2 bytes a token


def test_peft_loads_the_adapter_and_computes_what_the_run_did(order):
    outcome = carry_out(order)
    base = AutoModelForCausalLM.from_pretrained(order.settings.model, dtype=torch.bfloat16)
    with expected_warnings():
        loaded = peft.PeftModel.from_pretrained(base, str(outcome.adapter))
    held_out = run.look(order).held_out
    assert training.quality(loaded, held_out, micro_batch=2) == outcome.after
    config = json.loads((outcome.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 32, order.settings.model)


def test_micro_batches_do_not_change_what_is_learned(order, tmp_path):
    order = asked(order, batch=4)
    whole = carry_out(order)
    every = plan.plans(source.read_config(Path(order.settings.model)), order.settings)
    (small,) = [p for p in every if (p.way, p.recompute, p.micro_batch) == ("lora", True, 1)]
    tight = replace(order, budget=replace(order.budget, bytes=small.total), out=tmp_path / "small")
    parts = carry_out(tight)
    record = json.loads((tight.out / checkpoints.RECORD).read_text())
    assert record["asked"]["plan"] == {"way": "lora", "recompute": True, "micro_batch": 1}
    assert parts.losses == pytest.approx(whole.losses, abs=0.02)  # a BF16 product of another shape rounds otherwise
    assert parts.losses != whole.losses


def test_a_damaged_checkpoint_is_refused_and_removing_it_goes_back_one(order, tmp_path, monkeypatch):
    carry_out(replace(order, out=tmp_path / "whole"))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_at(patched, 5)
        carry_out(order)
    newest = checkpoints.checkpoint_folder(order.out, 4)
    for name in (checkpoints.ADAPTER, checkpoints.OPTIMIZER, checkpoints.STATE, "adapter_config.json"):
        whole = (newest / name).read_bytes()
        for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-9] + b"!" + whole[-8:], None):
            (newest / name).unlink() if damaged is None else (newest / name).write_bytes(damaged)
            before = files(order.out)
            with pytest.raises(ValueError, match=rf"{name} .*remove .*checkpoint-000004 to go on from"):
                carry_out(order)
            assert files(order.out) == before
            (newest / name).write_bytes(whole)
    shutil.rmtree(newest)
    carry_out(order)
    assert Silent.made[-1].initial == 2
    assert weights(order.out) == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 8}, "rank was 4, is 8"),
        ({"steps": 7}, "steps was 6, is 7"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"way": "qlora"}, "way was auto, is qlora; way was lora, is qlora"),
        ({"data": "other"}, "data was text.txt, is other.txt; data_sha256 differs"),
        ({"model": "other"}, "model was .*; model_sha256 differs"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_another_runs_folder_is_not_touched(order, tmp_path, changes, said):
    carry_out(order)
    before = files(order.out)
    if "data" in changes:
        changes = {"data": tmp_path / "other.txt"}
        changes["data"].write_text(tiny_llama.library_text("bisect.py"))
    if "model" in changes:
        changes = {"model": str(tiny_llama.save(tmp_path / "other", intermediate_size=192))}
    with pytest.raises(ValueError, match=f"out holds another run \\({said}\\): choose another --out"):
        carry_out(asked(order, **changes))
    assert files(order.out) == before


def test_a_finished_run_is_told_and_not_repeated(order):
    first = carry_out(order)
    before = files(order.out)
    assert carry_out(order) == first
    assert files(order.out) == before


@pytest.mark.parametrize("name", [checkpoints.ADAPTER, run.RESULT])
def test_a_damaged_adapter_is_not_called_finished(order, name):
    carry_out(order)
    path = order.out / run.ADAPTER_FOLDER / name
    path.write_bytes(path.read_bytes()[:100])
    before = files(order.out)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is missing or .*, remove .*adapter to make it anew"):
        carry_out(order)
    assert files(order.out) == before
    path.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is missing"):
        carry_out(order)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 576 vs 534")])
def test_a_disk_that_takes_no_more_is_a_sentence_and_keeps_the_checkpoints(order, monkeypatch, error):
    write = torch.save

    def write_once(state, path):
        if checkpoints.checkpoint_steps(order.out):
            raise error
        write(state, path)

    with monkeypatch.context() as patched, pytest.raises(ValueError, match=r"checkpoint-000004 cannot be written \("):
        patched.setattr(torch, "save", write_once)
        carry_out(order)
    assert checkpoints.checkpoint_steps(order.out) == [2]
    assert carry_out(order).adapter is not None


def test_memory_that_is_not_there_is_a_sentence(order, monkeypatch):
    def exhausted(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.Trainer, "step", exhausted)
    with pytest.raises(ValueError, match=r"^cpu ran out of memory, [\d.]+ GB of it were predicted: free more of it"):
        carry_out(order)


def test_folders_of_something_else(order, tmp_path):
    order.out.mkdir()
    (order.out / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match=r"holds files of something else, thesis\.txt among them"):
        carry_out(order)
    (order.out / checkpoints.RECORD).write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        carry_out(order)
    (order.out / checkpoints.RECORD).write_text('{"asked": {"settings": 3}}')
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        carry_out(order)
    assert files(order.out).keys() == {"thesis.txt", checkpoints.RECORD}
    with pytest.raises(ValueError, match="is a file, and a folder is needed"):
        carry_out(replace(order, out=order.settings.data))


def test_nothing_is_written_before_everything_is_known(order, tmp_path):
    (tmp_path / "short.txt").write_text("a line\n" * 100)
    for wrong in (
        asked(order, targets="none"),
        asked(order, data=tmp_path / "none"),
        asked(order, data=tmp_path / "short.txt"),
        asked(order, model="owner/none"),
        replace(order, budget=budget_of("0.0001GB")),
        replace(order, device="cuda:99"),
    ):
        with pytest.raises(ValueError):  # each sentence has a test of its own
            carry_out(wrong)
    assert carry_out(replace(order, plan_only=True)) is None
    assert not order.out.exists()


def test_the_part_that_is_too_short_is_named(order, tmp_path):
    (tmp_path / "short.txt").write_text("a line\n" * 100)
    with pytest.raises(
        ValueError, match=r"the held-out part of .*short\.txt: \d+ tokens are too few for a window of 64"
    ):
        carry_out(asked(order, data=tmp_path / "short.txt"))


def test_two_processes_do_not_write_into_one_folder(order, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_at(patched, 3)
        carry_out(order)
    before = files(order.out)
    with checkpoints.held(order.out), pytest.raises(ValueError, match="another process is at work in"):
        carry_out(order)
    assert files(order.out) == before
    assert carry_out(order).adapter is not None


def test_another_models_tokenizer(order, tmp_path):
    folder = tiny_llama.save(tmp_path / "other", vocab_size=200)
    with pytest.raises(ValueError, match=r"gives a token 3\d\d, its model has 200 rows for tokens"):
        carry_out(asked(order, model=str(folder)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_step_and_keeps_it(order, tmp_path, monkeypatch, number):
    carry_out(replace(order, out=tmp_path / "whole"))
    take = training.Trainer.step

    def step(trainer):
        if trainer.done == 2:
            os.kill(os.getpid(), number)
        return take(trainer)

    handler, said = signal.getsignal(number), []
    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "step", step)
        outcome = run.carry_out(order, say=said.append, bar=Silent)
    assert signal.getsignal(number) is handler
    assert outcome.adapter is None and outcome.steps == 3
    assert said[-1] == "stopped after step 3 of 6: the same command goes on from there"
    assert checkpoints.checkpoint_steps(order.out) == [2, 3]
    carry_out(order)
    assert weights(order.out) == weights(tmp_path / "whole")


def test_a_second_interrupt_stops_at_once():
    with training.interruptible() as note:
        os.kill(os.getpid(), signal.SIGINT)
        assert note.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_loss_that_is_not_finite_is_a_sentence_and_keeps_the_checkpoints(order, monkeypatch):
    honest = training.summed_nats

    def step(trainer):
        monkeypatch.setattr(training, "summed_nats", honest if trainer.done < 3 else lambda *a: honest(*a) * torch.nan)
        return take(trainer)

    take = training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", step)
    with pytest.raises(ValueError, match="the loss must stay finite, got nan at step 4: lower --learning-rate"):
        carry_out(order)
    assert checkpoints.checkpoint_steps(order.out) == [2]


def test_a_measurement_leaves_4_bit_weights_as_they_are(order):
    """On some CPUs bitsandbytes packs the codes anew in evaluation, for good, with rounded constants."""
    base = load.load_base(source.find(order.settings.model), "qlora", torch.device("cpu"))
    before = {name: p.clone() for name, p in base.named_parameters()}
    states = [p.quant_state for p in base.parameters() if hasattr(p, "quant_state")]
    absmax = [state.absmax.clone() for state in states]
    first = training.quality(base, run.look(order).held_out, micro_batch=2)
    assert training.quality(base, run.look(order).held_out, micro_batch=2) == first
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    assert all(state.nested and torch.equal(state.absmax, a) for state, a in zip(states, absmax, strict=True))
    assert not any(module.training for module in base.modules())


def test_every_window_is_read_once_before_any_is_read_again(order):
    many = replace(order.settings, batch=3)
    read = [row for step in range(10) for row in training.window_order(10, many, step)]
    turns = [read[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(turn) == list(range(10)) for turn in turns)
    assert turns[0] != turns[1] != turns[2]
    assert training.window_order(2, replace(many, batch=7), 3) == training.window_order(2, replace(many, batch=7), 3)


def test_the_learning_rate_rises_and_falls_to_almost_nothing(order):
    long = replace(order.settings, steps=100)
    rates = [training.learning_rate(long, step) / long.learning_rate for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1]) and max(rates) == 1
    assert rates[2:] == sorted(rates[2:], reverse=True) and 0 < rates[-1] < 0.02
    assert training.learning_rate(replace(long, steps=1), 0) == long.learning_rate


def test_prompts_are_read_and_not_learned(order, tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"What is {i}?", "completion": f" It is {i} and nothing else at all."} for i in range(200)]
    path.write_text("\n".join(map(json.dumps, pairs)))
    ready = run.look(asked(order, data=path))
    assert (ready.train.targets == data.IGNORED).any() and (ready.train.targets != data.IGNORED).any()
    assert carry_out(asked(order, data=path)).after is not None
