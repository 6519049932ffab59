"""The richest way to fine-tune that a byte budget holds, chosen by prediction alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qlab.bill import Budget, both, in_gb, shown
from qlab.finetune.settings import LORA, QLORA, WAYS, Settings
from qlab.finetune.skeleton import Weight, step_bytes, weigh
from qlab.memory import GB, GiB

FP32_BYTES = 4
ADAM_STATES = 2
MIN_8BIT_SIZE, STATE_BLOCK = 4096, 256  # bitsandbytes' and qlab's own defaults for 8-bit states


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a step is taken, and the bytes that it is predicted to need, part by part.

    Units:   bytes; `micro_batch` is in sequences; `unpacked` is one 4-bit matrix in 16 bits.
    """

    way: str
    recompute: bool
    micro_batch: int
    accumulation: int
    frozen: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    unpacked: int

    @property
    def total(self) -> int:
        """All parts, as if every one were at its largest at one moment."""
        return self.resident + self.activations + self.unpacked

    @property
    def resident(self) -> int:
        """The parts that do not depend on the micro-batch and are there all the time."""
        return self.frozen + self.adapters + self.gradients + self.optimizer

    def as_record(self) -> dict[str, object]:
        """Return what the numbers of a run depend on."""
        return {"way": self.way, "recompute": self.recompute, "micro_batch": self.micro_batch}


def optimizer_bytes(weight: Weight, optimizer: str) -> int:
    """Size the two moments of every adapter."""
    if optimizer == "adamw":
        return ADAM_STATES * FP32_BYTES * weight.trained
    narrow = [n + FP32_BYTES * -(-n // STATE_BLOCK) if n >= MIN_8BIT_SIZE else FP32_BYTES * n for n in weight.adapters]
    return ADAM_STATES * sum(narrow)


def ways(settings: Settings) -> tuple[str, ...]:
    """Return the ways that may be taken, the richest first."""
    return tuple(WAYS) if settings.way == "auto" else (settings.way,)


def plans(config: Any, settings: Settings) -> Iterator[Plan]:
    """Yield every way to take a step, the richest first, micro-batches from large to small."""
    weight, steps = weigh(config, settings), {}
    trained = FP32_BYTES * weight.trained
    for way in ways(settings):
        for recompute in (False, True):
            if recompute not in steps:
                steps[recompute] = step_bytes(config, settings, recompute=recompute)
            for size in (n for n in range(settings.batch, 0, -1) if settings.batch % n == 0):
                yield Plan(
                    way=way,
                    recompute=recompute,
                    micro_batch=size,
                    accumulation=settings.batch // size,
                    frozen=weight.frozen[way],
                    adapters=trained,
                    gradients=trained,
                    optimizer=optimizer_bytes(weight, settings.optimizer),
                    activations=size * steps[recompute],
                    unpacked=weight.unpacked[way],
                )


def choose(config: Any, settings: Settings, budget: Budget) -> Plan:
    """Return the first plan that fits `budget`: 16 bits before 4, kept before recomputed, large before small.

    Errors:  ValueError with the bytes that are missing, or if the model is shorter than `settings.sequence`.
    """
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and settings.sequence > longest:
        raise ValueError(f"sequence must be at most the model's {longest}, got {settings.sequence}")
    narrowest = ways(settings)[-1]
    if (frozen := weigh(config, settings).frozen[narrowest]) > budget.bytes:
        bits = "4 bits" if narrowest == QLORA else "16 bits"
        other = ", and --way qlora would take about a quarter" if narrowest == LORA else ""
        given = f"the budget of {in_gb(budget.bytes)}"
        raise ValueError(f"the frozen base alone needs {both(frozen)} in {bits}, which {given} cannot hold{other}")
    tried = []
    for plan in plans(config, settings):
        if plan.total <= budget.bytes:
            return plan
        tried.append(plan)
    raise ValueError(_refusal(min(tried, key=lambda plan: plan.total), settings, budget))


def _refusal(smallest: Plan, settings: Settings, budget: Budget) -> str:
    given = f"the budget of {in_gb(budget.bytes)}"
    over = in_gb(smallest.total - budget.bytes)
    room = budget.bytes - smallest.resident - smallest.unpacked
    shorter = int(settings.sequence * room / smallest.activations)
    advice = f"--sequence {shorter} would about fit" if shorter > 1 else "a lower --rank or more memory is needed"
    return (
        f"the smallest step ({smallest.way}, one sequence of {settings.sequence} tokens at a time, layers recomputed)"
        f" needs {both(smallest.total)}, {over} more than {given}; the frozen base takes {in_gb(smallest.frozen)}"
        f" of it: {advice}"
    )


def as_table(plan: Plan, budget: Budget) -> str:
    """Write the plan as people read it: the way, the parts in GB and GiB, and what is left of the budget."""
    layers = "recomputed in the backward pass" if plan.recompute else "kept"
    head = [
        f"way            {WAYS[plan.way]}",
        f"batch          {plan.micro_batch} at a time, {plan.accumulation} times a step",
        f"activations    {layers}",
        "",
        f"{'':26} {'GB':>10} {'GiB':>10}",
    ]
    tail = [("predicted, at most", plan.total), ("budget", budget.bytes), ("left", budget.bytes - plan.total)]
    return "\n".join(head + [f"{name:26} {shown(n, GB):>10} {shown(n, GiB):>10}" for name, n in [*parts(plan), *tail]])


def parts(plan: Plan) -> list[tuple[str, int]]:
    """Name the parts of a plan above 0 bytes."""
    named = [
        ("frozen base", plan.frozen),
        ("adapters (FP32)", plan.adapters),
        ("their gradients", plan.gradients),
        ("optimizer states", plan.optimizer),
        ("activations and buffers", plan.activations),
        ("one matrix unpacked", plan.unpacked),
    ]
    return [(name, count) for name, count in named if count]
