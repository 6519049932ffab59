"""Answers to `loss_scaler`: classes, each made from four settings."""

import copy
from collections import deque
from dataclasses import dataclass

import torch
from torch import nn

from qlab import loss_scaling
from tests.answers.bank import Answer, Bank

BANK = Bank("loss-scaler")


class Base:
    """What the answers below change one thing of."""

    def __init__(self, scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000):
        self.scale, self.good_steps = scale, 0
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval

    def step(self, optimizer, found_inf):
        if not found_inf:
            optimizer.step()
        return not found_inf

    def update(self, found_inf):
        if found_inf:
            self.scale *= self.backoff_factor
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale *= self.growth_factor
            self.good_steps = 0

    def state_dict(self):
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state):
        self.scale, self.good_steps = state["scale"], state["good_steps"]


class QlabsWithAStep(loss_scaling.LossScaler):
    def step(self, optimizer, found_inf):
        if not found_inf:
            optimizer.step()
        return not found_inf


class AroundGradScaler:
    """Ask torch: a gradient of 1 or infinity goes through `GradScaler`, which is right by definition."""

    def __init__(self, scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000):
        self.scaler = torch.amp.GradScaler("cpu", scale, growth_factor, backoff_factor, growth_interval=growth_interval)
        self.scaler.scale(torch.zeros(()))
        self.weight = nn.Parameter(torch.zeros(()))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.0)

    @property
    def scale(self):
        return self.scaler.get_scale()

    @property
    def good_steps(self):
        return self.scaler.state_dict()["_growth_tracker"]

    def step(self, optimizer, found_inf):
        return found_inf or (optimizer.step(), True)[1] if not found_inf else False

    def update(self, found_inf):
        self.weight.grad = torch.tensor(float("nan") if found_inf else 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self):
        return copy.deepcopy(self.scaler.state_dict())

    def load_state_dict(self, state):
        self.scaler.load_state_dict(state)


class AroundTheKernel(Base):
    """Keep both states in tensors, and let torch's own kernel update them in place."""

    def __init__(self, scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000):
        super().__init__(scale, growth_factor, backoff_factor, growth_interval)
        self.scale, self.good_steps = torch.tensor(float(scale)), torch.tensor(0, dtype=torch.int32)

    def update(self, found_inf):
        settings = self.growth_factor, self.backoff_factor, self.growth_interval
        torch._amp_update_scale_(self.scale, self.good_steps, torch.tensor(float(found_inf)), *settings)

    def state_dict(self):
        return {"a": self.scale.clone(), "b": self.good_steps.clone()}

    def load_state_dict(self, state):
        self.scale, self.good_steps = state["a"].clone(), state["b"].clone()


class InOneExpression(Base):
    def update(self, found_inf):
        good = 0 if found_inf else self.good_steps + 1
        grows = good >= self.growth_interval
        self.scale = self.scale * (self.backoff_factor if found_inf else self.growth_factor if grows else 1)
        self.good_steps = 0 if grows else good

    def step(self, optimizer, found_inf):
        return False if found_inf else [optimizer.step(), True][-1]

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


class KeepsTheHistory(Base):
    """Count good steps from the last steps themselves."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.history = deque(maxlen=self.growth_interval)

    @property
    def good_steps(self):
        return len(self.history)

    @good_steps.setter
    def good_steps(self, value):
        self.history = deque([None] * value, maxlen=getattr(self, "growth_interval", None))

    def update(self, found_inf):
        self.history.append(found_inf)
        if found_inf:
            self.history.clear()
            self.scale = self.scale * self.backoff_factor
        elif len(self.history) == self.growth_interval:
            self.history.clear()
            self.scale = self.scale * self.growth_factor

    def state_dict(self):
        return {"all": [self.scale, len(self.history), self.growth_interval]}

    def load_state_dict(self, state):
        self.scale, count, self.growth_interval = state["all"]
        self.good_steps = count


@dataclass
class AsADataclass:
    first: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    scale: float = 0.0
    good_steps: int = 0

    def __post_init__(self):
        self.scale = self.first

    def step(self, optimizer, found_inf):
        if found_inf:
            return torch.tensor(False)
        optimizer.step()
        return torch.tensor(True)

    def update(self, found_inf):
        if found_inf:
            self.scale, self.good_steps = self.scale * self.backoff_factor, 0
        else:
            turns, self.good_steps = divmod(self.good_steps + 1, self.growth_interval)
            self.scale *= self.growth_factor**turns

    def state_dict(self):
        return copy.copy(self.__dict__)

    def load_state_dict(self, state):
        self.__dict__.update(state)


for right in (Base, QlabsWithAStep, AroundGradScaler, AroundTheKernel, InOneExpression, KeepsTheHistory, AsADataclass):
    BANK.add(right.__name__, right)


def wrong(misconception):
    def keep(answer):
        BANK.add(answer.__name__, answer, misconception=misconception)
        return answer

    return keep


@wrong("step-updates-too")
class StepUpdatesToo(Base):
    def step(self, optimizer, found_inf):
        stepped = super().step(optimizer, found_inf)
        self.update(found_inf)
        return stepped


@wrong("wrong-value")
class CountsDownAfterASkip(Base):
    def update(self, found_inf):
        if found_inf:
            self.scale, self.good_steps = self.scale * self.backoff_factor, self.good_steps - 1
        else:
            super().update(found_inf)


@wrong("loses-the-count")
class LoadsTheScaleAlone(Base):
    def load_state_dict(self, state):
        self.scale, self.good_steps = state["scale"], 0


@wrong("never-shrinks")
class NeverShrinks(Base):
    def update(self, found_inf):
        if found_inf:
            self.good_steps = 0
        else:
            super().update(False)


@wrong("never-shrinks")
class IgnoresOverflow(Base):
    def update(self, found_inf):
        if not found_inf:
            super().update(False)


@wrong("counts-overflow-steps-as-good")
class CountsEveryStep(Base):
    def update(self, found_inf):
        if found_inf:
            self.scale *= self.backoff_factor
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale *= self.growth_factor
            self.good_steps = 0


@wrong("counts-overflow-steps-as-good")
class CountsTheSkippedStep(Base):
    def update(self, found_inf):
        if found_inf:
            self.scale *= self.backoff_factor
            self.good_steps = 1
        else:
            super().update(False)


@wrong("keeps-the-count-after-a-skip")
class KeepsTheCount(Base):
    def update(self, found_inf):
        if found_inf:
            self.scale *= self.backoff_factor
        else:
            super().update(False)


@wrong("grows-after-a-skip")
class GrowsAfterASkip(Base):
    def update(self, found_inf):
        if found_inf:
            self.scale *= self.growth_factor
            self.good_steps = 0
        else:
            super().update(False)


@wrong("grows-after-a-skip")
class TurnedAround(Base):
    def update(self, found_inf):
        super().update(not found_inf)


@wrong("never-grows")
class NeverGrows(Base):
    def update(self, found_inf):
        if found_inf:
            self.scale *= self.backoff_factor
            self.good_steps = 0
        else:
            self.good_steps += 1


@wrong("forgets-to-count-anew")
class GrowsEachStepFromThen(Base):
    def update(self, found_inf):
        if found_inf:
            self.scale *= self.backoff_factor
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps >= self.growth_interval:
            self.scale *= self.growth_factor


@wrong("grows-one-step-late")
class GrowsOneStepLate(Base):
    def update(self, found_inf):
        if found_inf:
            self.scale *= self.backoff_factor
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps > self.growth_interval:
            self.scale *= self.growth_factor
            self.good_steps = 0


@wrong("grows-every-step")
class GrowsEveryStep(Base):
    def update(self, found_inf):
        self.scale *= self.backoff_factor if found_inf else self.growth_factor
        self.good_steps = 0 if found_inf else self.good_steps + 1


@wrong("ignores-its-factors")
class TwiceAndHalf(Base):
    def update(self, found_inf):
        if found_inf:
            self.scale /= 2
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale *= 2
            self.good_steps = 0


@wrong("divides-by-the-growth-factor")
class OneFactor(Base):
    def update(self, found_inf):
        self.backoff_factor = 1 / self.growth_factor
        super().update(found_inf)


@wrong("divides-by-the-backoff-factor")
class DividesByTheBackoff(Base):
    def update(self, found_inf):
        if found_inf:
            self.scale /= self.backoff_factor
            self.good_steps = 0
        else:
            super().update(found_inf)


@wrong("stops-at-one")
class StopsAtOne(Base):
    def update(self, found_inf):
        super().update(found_inf)
        self.scale = max(1.0, self.scale)


@wrong("steps-on-inf")
class StepsOnInf(Base):
    def step(self, optimizer, found_inf):
        optimizer.step()
        return not found_inf


@wrong("never-steps")
class ForgetsTheParentheses(Base):
    def step(self, optimizer, found_inf):
        if not found_inf:
            optimizer.step  # noqa: B018
        return not found_inf


@wrong("steps-wrongly")
class StepsTwice(Base):
    def step(self, optimizer, found_inf):
        for _ in range(0 if found_inf else 2):
            optimizer.step()
        return not found_inf


@wrong("returns-the-skip")
class ReturnsTheSkip(Base):
    def step(self, optimizer, found_inf):
        if not found_inf:
            optimizer.step()
        return found_inf


@wrong("returns-nothing")
class ReturnsNothing(Base):
    def step(self, optimizer, found_inf):
        if not found_inf:
            optimizer.step()


@wrong("returns-nothing")
class SavesNothing(Base):
    def state_dict(self):
        _ = {"scale": self.scale, "good_steps": self.good_steps}


@wrong("state-is-a-view")
class SavesAView(Base):
    def state_dict(self):
        return self.__dict__

    def load_state_dict(self, state):
        self.__dict__.update(state)


@wrong("loses-the-count")
class SavesTheScaleOnly(Base):
    def state_dict(self):
        return {"scale": self.scale}

    def load_state_dict(self, state):
        self.scale = state["scale"]


@wrong("loses-the-scale")
class LoadsNothing(Base):
    def load_state_dict(self, state):
        pass


@wrong("wrong-start")
class IgnoresTheInitialScale(Base):
    def __init__(self, scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000):
        super().__init__(65536.5, growth_factor, backoff_factor, growth_interval)


@wrong("wrong-value")
class ShrinksTwiceInARow(Base):
    def update(self, found_inf):
        if found_inf and self.good_steps == 0:
            self.scale *= self.backoff_factor
        super().update(found_inf)


class Crashes(Base):
    def update(self, found_inf):
        self.scale *= self.backof_factor


BANK.answers.append(Answer("loss-scaler", "crashes", (Crashes,), outcome="crashed"))
