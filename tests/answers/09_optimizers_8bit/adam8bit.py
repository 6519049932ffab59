"""Answers to `Adam8bit`, exercise `adam8bit`."""

import copy

import numpy as np
import torch

from qlab.codebooks import BlockwiseCodes, dynamic_map, linear_map, quantize_blockwise
from qlab.optimizers import Adam8bit as Qlabs
from qlab.optimizers import QuantizedMoment, adam_update
from tests.answers.bank import Answer, Bank

BANK = Bank("adam8bit")
SIGNED, UNSIGNED = dynamic_map(signed=True), dynamic_map(signed=False)
CODES = ("exp_avg", "exp_avg_sq")


def to_codes(x, levels, block_size=256):
    coded = quantize_blockwise(x, levels, block_size=block_size)
    return coded.codes, coded.absmax


def from_codes(codes, absmax, levels, block_size=256):
    return BlockwiseCodes(codes.flatten().byte(), absmax, levels, block_size, codes.shape).dequantize()


class ByQlab(Qlabs):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps, min_8bit_size=1)


class Skeleton(torch.optim.Optimizer):
    """What the notebook gives, and its solution in pieces that the answers below change."""

    maps = (SIGNED, UNSIGNED)
    block_size = 256

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, self.state[p], group)

    def update(self, p, state, group):
        if not state:
            state["step"] = 0
            self.keep(state, torch.zeros_like(p), torch.zeros_like(p))
        state["step"] += 1
        moments = self.moments(state)
        self.move(p, *moments, state, group)
        self.keep(state, *moments)

    def moments(self, state):
        size = self.block_size or state["exp_avg"].numel()
        return [from_codes(state[n], state[n + "_absmax"], m, size) for n, m in zip(CODES, self.maps, strict=True)]

    def keep(self, state, *moments):
        for name, x, levels in zip(CODES, moments, self.maps, strict=True):
            state[name], state[name + "_absmax"] = to_codes(x, levels, self.block_size or x.numel())

    def move(self, p, m, v, state, group):
        adam_update(p, p.grad, m, v, step=state["step"], lr=group["lr"], betas=group["betas"], eps=group["eps"])

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.update({name: state[name].to(torch.uint8) for name in CODES})


class InBlocksOf128(Skeleton):
    """Keep smaller blocks: more absmaxes, and still little."""

    block_size = 128


class CodesInPlace(Skeleton):
    """Write new codes into the storages of the old ones."""

    def keep(self, state, *moments):
        if CODES[0] not in state:
            return super().keep(state, *moments)
        for name, x, levels in zip(CODES, moments, self.maps, strict=True):
            codes, absmax = to_codes(x, levels)
            state[name].copy_(codes)
            state[name + "_absmax"].copy_(absmax)
        return None

    def load_state_dict(self, state_dict):
        super().load_state_dict(copy.deepcopy(state_dict))


class StateOfItsOwnShape(torch.optim.Optimizer):
    """Keep one tensor of bytes for each parameter: codes, absmaxes and all, with a step count of its own."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps))

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for p in filter(lambda p: p.grad is not None, group["params"]):
                    self.one(p, group)

    def one(self, p, group):
        n, blocks = p.numel(), -(-p.numel() // 256)
        state = self.state[p]
        if "all" not in state:
            state["all"], state["t"] = torch.zeros(2 * n + 8 * blocks, dtype=torch.uint8), 0
            state["all"][:n] = 127
        state["t"] += 1
        data = state["all"]
        scales = data[2 * n :].clone().view(torch.float32)
        m = SIGNED[data[:n].long()] * scales[:blocks].repeat_interleave(256)[:n]
        v = UNSIGNED[data[n : 2 * n].long()] * scales[blocks:].repeat_interleave(256)[:n]
        g, (b1, b2), t = p.grad.flatten(), group["betas"], state["t"]
        m, v = m + (1 - b1) * (g - m), v * b2 + (1 - b2) * g * g
        p -= (group["lr"] * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + group["eps"])).view_as(p)
        packed = [to_codes(m, SIGNED), to_codes(v, UNSIGNED)]
        state["all"] = torch.cat([codes for codes, _ in packed] + [absmax.view(torch.uint8) for _, absmax in packed])

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["all"] = state["all"].byte()


class MomentsAsRecords(Skeleton):
    """Keep `QuantizedMoment` records, which torch's `load_state_dict` leaves as they are."""

    def keep(self, state, *moments):
        signs = (True, False)
        for name, x, signed in zip(CODES, moments, signs, strict=True):
            state[name] = QuantizedMoment.quantize(x, signed=signed)

    def moments(self, state):
        return [state[name].dequantize() for name in CODES]

    load_state_dict = torch.optim.Optimizer.load_state_dict


class LoadsTheTensorsAsTheyAre(Skeleton):
    """Let torch load the groups alone, and put the state in place without a cast."""

    def load_state_dict(self, state_dict):
        parameters = [p for group in self.param_groups for p in group["params"]]
        super(Skeleton, self).load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        for number, state in state_dict["state"].items():
            self.state[parameters[number]] = dict(state)


class InNumpy(torch.optim.Optimizer):
    """Keep NumPy arrays, which torch neither casts nor counts."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.one(p, self.state[p], group)

    def one(self, p, state, group):
        n, g = p.numel(), p.grad.numpy().ravel().astype(np.float64)
        b1, b2 = group["betas"]
        t = state["step"] = state.get("step", 0) + 1
        m, v = (
            0.0 if t == 1 else levels.numpy()[state[name]] * np.repeat(state[name + "s"], 256)[:n]
            for name, levels in zip("mv", (SIGNED, UNSIGNED), strict=True)
        )
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        change = group["lr"] * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + group["eps"])
        p.data -= torch.from_numpy(change).float().view_as(p)
        for name, x, levels in (("m", m, SIGNED), ("v", v, UNSIGNED)):
            absmax = np.maximum.reduceat(np.abs(x), np.arange(0, n, 256)).astype(np.float32)
            wide = np.repeat(np.where(absmax == 0, 1, absmax), 256)[:n]
            edges = (levels.double().numpy()[1:] + levels.double().numpy()[:-1]) / 2
            state[name], state[name + "s"] = np.searchsorted(edges, x / wide).astype(np.uint8), absmax

    def load_state_dict(self, state_dict):
        parameters = [p for group in self.param_groups for p in group["params"]]
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        for number, state in state_dict["state"].items():
            self.state[parameters[number]] = dict(state)


class ClearsTheGradients(Skeleton):
    """Use a gradient up: no later step may read it."""

    def update(self, p, state, group):
        super().update(p, state, group)
        p.grad = None


class FirstStepWithoutCodes(Skeleton):
    """Begin with moments that were never codes, and count in a tensor."""

    def update(self, p, state, group):
        zeros = (torch.zeros_like(p), torch.zeros_like(p))
        moments = self.moments(state) if state else zeros
        state["step"] = state.get("step", torch.tensor(0.0)) + 1
        self.move(p, *moments, {"step": int(state["step"])}, group)
        self.keep(state, *moments)


for answer in (
    ByQlab,
    ClearsTheGradients,
    FirstStepWithoutCodes,
    Skeleton,
    InBlocksOf128,
    CodesInPlace,
    StateOfItsOwnShape,
    MomentsAsRecords,
    LoadsTheTensorsAsTheyAre,
    InNumpy,
):
    BANK.right(answer)


@BANK.right
def made_by_a_function(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    return Skeleton(list(params), lr, betas, eps)


@BANK.wrong("codes-become-floats")
class LeavesTheTypesToTorch(Skeleton):
    load_state_dict = torch.optim.Optimizer.load_state_dict


@BANK.wrong("keeps-an-fp32-copy")
class CodesBesideTheMoments(Skeleton):
    def moments(self, state):
        return state["copy"]

    def keep(self, state, *moments):
        super().keep(state, *moments)
        state["copy"] = list(moments)


@BANK.wrong("keeps-an-fp32-copy")
class SecondMomentInFP32(Skeleton):
    def moments(self, state):
        return super().moments(state)[0], state["squares"]

    def keep(self, state, *moments):
        super().keep(state, *moments)
        state["squares"] = moments[1]


@BANK.wrong("keeps-an-fp32-copy")
class DequantizesOnceAndKeepsIt(Skeleton):
    """Keep what was dequantized in an attribute of the optimizer, outside its state."""

    def moments(self, state):
        self.last = [*getattr(self, "last", [])[-2:], *super().moments(state)]
        return self.last[-2:]


@BANK.wrong("keeps-an-fp32-copy")
class TorchsAdamItself(torch.optim.Adam):
    pass


KEPT = {}


@BANK.wrong("keeps-an-fp32-copy")
class MomentsInAGlobalDict(Skeleton):
    """Each step's moments as bytes, which no tensor and no attribute of the optimizer leads to."""

    load_state_dict = torch.optim.Optimizer.load_state_dict

    def update(self, p, state, group):
        if not state:
            state["step"], state["place"] = 0, len(KEPT)
            KEPT[state["place"], 0] = [np.zeros(p.shape, np.float32).tobytes()] * 2
        place, step = int(state["place"]), int(state["step"])
        moments = [torch.tensor(np.frombuffer(kept, np.float32)).view(p.shape) for kept in KEPT[place, step]]
        state["step"] = step + 1
        self.move(p, *moments, state, group)
        KEPT[place, step + 1] = [moment.numpy().tobytes() for moment in moments]


@BANK.wrong("keeps-too-much")
class MomentsInBF16(Skeleton):
    def moments(self, state):
        return [state[name].float() for name in CODES]

    def keep(self, state, *moments):
        state.update({name: x.bfloat16() for name, x in zip(CODES, moments, strict=True)})

    load_state_dict = torch.optim.Optimizer.load_state_dict


@BANK.wrong("keeps-an-fp32-copy")
class CodesInInt64(Skeleton):
    def keep(self, state, *moments):
        super().keep(state, *moments)
        state.update({name: state[name].long() for name in CODES})


@BANK.wrong("keeps-too-much")
class AnAbsmaxForEachEight(Skeleton):
    block_size = 8


@BANK.wrong("absmax-per-tensor")
class OneBlockForAll(Skeleton):
    block_size = None


@BANK.wrong("linear-map")
class EvenLevels(Skeleton):
    maps = (linear_map(bits=8, signed=True), linear_map(bits=8, signed=False))


@BANK.wrong("linear-map")
class EvenLevelsForSquares(Skeleton):
    maps = (SIGNED, linear_map(bits=8, signed=False))


@BANK.wrong("steps-with-the-rounded-moments")
class RoundsBeforeTheStep(Skeleton):
    def update(self, p, state, group):
        state["step"] = state.get("step", 0) + 1
        zeros = [torch.zeros_like(p)] * 2
        m, v = self.moments(state) if "exp_avg" in state else zeros
        m, v = torch.lerp(m, p.grad, 1 - group["betas"][0]), torch.lerp(v, p.grad**2, 1 - group["betas"][1])
        self.keep(state, m, v)
        m, v = self.moments(state)
        first, second = (1 - beta ** state["step"] for beta in group["betas"])
        p -= group["lr"] * (m / first) / ((v / second).sqrt() + group["eps"])


@BANK.wrong("no-bias-correction")
class WithoutBiasCorrection(Skeleton):
    def move(self, p, m, v, state, group):
        m.lerp_(p.grad, 1 - group["betas"][0])
        v.lerp_(p.grad**2, 1 - group["betas"][1])
        p -= group["lr"] * m / (v.sqrt() + group["eps"])


@BANK.wrong("epsilon-inside-root")
class EpsilonInsideTheRoot(Skeleton):
    def move(self, p, m, v, state, group):
        m.lerp_(p.grad, 1 - group["betas"][0])
        v.lerp_(p.grad**2, 1 - group["betas"][1])
        first, second = (1 - beta ** state["step"] for beta in group["betas"])
        p -= group["lr"] * (m / first) / (v / second + group["eps"]).sqrt()


@BANK.wrong("ignores-the-groups")
class SettingsOfTheFirstGroup(Skeleton):
    def move(self, p, m, v, state, group):
        super().move(p, m, v, state, self.param_groups[0])


@BANK.wrong("ignores-the-groups")
class TheRateItWasMadeWith(Skeleton):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr, betas, eps)
        self.lr = lr

    def move(self, p, m, v, state, group):
        super().move(p, m, v, state, {**group, "lr": self.lr})


@BANK.wrong("keeps-the-first-rate")
class ReadsTheRateOnce(Skeleton):
    def move(self, p, m, v, state, group):
        super().move(p, m, v, state, {**group, "lr": state.setdefault("lr", group["lr"])})


@BANK.wrong("ignores-the-betas")
class TheUsualBetas(Skeleton):
    def move(self, p, m, v, state, group):
        super().move(p, m, v, state, {**group, "betas": (0.9, 0.999)})


@BANK.wrong("keeps-the-corrected-moments")
class KeepsTheCorrectedMoments(Skeleton):
    def move(self, p, m, v, state, group):
        super().move(p, m, v, state, group)
        for moment, beta in zip((m, v), group["betas"], strict=True):
            moment.div_(1 - beta ** state["step"])


@BANK.wrong("steps-with-the-rounded-moments")
class StepsWithRoundedSquares(Skeleton):
    def move(self, p, m, v, state, group):
        m.lerp_(p.grad, 1 - group["betas"][0])
        v.lerp_(p.grad**2, 1 - group["betas"][1])
        first, second = (1 - beta ** state["step"] for beta in group["betas"])
        rounded = from_codes(*to_codes(v, UNSIGNED), UNSIGNED)
        p -= group["lr"] * (m / first) / ((rounded / second).sqrt() + group["eps"])


@BANK.wrong("goes-on-differently")
class TakesAbsmaxesForBytes(Skeleton):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.update({f"{name}_absmax": state[f"{name}_absmax"].byte().float() for name in CODES})


@BANK.wrong("keeps-its-state-elsewhere")
class AnAttributeForTheState(Skeleton):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mine = {}

    def update(self, p, state, group):
        super().update(p, self.mine.setdefault(p, {}), group)

    load_state_dict = torch.optim.Optimizer.load_state_dict


@BANK.wrong("loads-nothing")
class LoadsNothing(Skeleton):
    def load_state_dict(self, state_dict):
        pass


@BANK.wrong("goes-on-differently")
class StepCountInAnAttribute(Skeleton):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = 0

    def step(self):
        self.steps += 1
        super().step()

    def move(self, p, m, v, state, group):
        super().move(p, m, v, {"step": self.steps}, group)


@BANK.wrong("moves-without-a-gradient")
class TakesNoneForZero(Skeleton):
    """Decay what has no gradient."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.mul_(1 - group["lr"])
                else:
                    self.update(p, self.state[p], group)


@BANK.wrong("never-keeps-the-new-moments")
class CodesOfAnEarlierStep(Skeleton):
    """Keep the moments as they were before the step."""

    def update(self, p, state, group):
        if not state:
            state["step"] = 0
            self.keep(state, torch.zeros_like(p), torch.zeros_like(p))
        state["step"] += 1
        self.move(p, *self.moments(state), state, group)


@BANK.wrong("never-moves")
class MovesACopy(Skeleton):
    def update(self, p, state, group):
        copy_of_p = p.clone()
        copy_of_p.grad = p.grad
        super().update(copy_of_p, state, group)


@BANK.wrong("wrong-value")
class OnePercentTooFar(Skeleton):
    def move(self, p, m, v, state, group):
        super().move(p, m, v, state, {**group, "lr": 1.01 * group["lr"]})


@BANK.wrong("not-an-optimizer")
class NoOptimizer:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        self.params = list(params)

    def step(self):
        pass


@BANK.wrong("returns-nothing")
def returns_nothing(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    Skeleton(params, lr, betas, eps)


@BANK.crashes
class ReadsASettingThatIsNotThere(Skeleton):
    def move(self, p, m, v, state, group):
        super().move(p, m, v, state, {**group, "lr": group["rate"]})


class LooksFloatsUp(Skeleton):
    """Index with the codes that torch made floats of."""

    def moments(self, state):
        return [
            levels[state[name] if state[name].is_floating_point() else state[name].long()]
            * state[name + "_absmax"].repeat_interleave(256)[: state[name].numel()].view(state[name].shape)
            for name, levels in zip(CODES, self.maps, strict=True)
        ]

    load_state_dict = torch.optim.Optimizer.load_state_dict


BANK.answers.append(Answer("adam8bit", "LooksFloatsUp", (LooksFloatsUp,), "codes-become-floats", "crashed"))
