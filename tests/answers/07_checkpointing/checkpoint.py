"""Answers to `checkpoint`."""

import contextlib
import itertools

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint as torchs
from torch.utils.checkpoint import set_checkpoint_early_stop

from qlab.checkpointing import checkpoint as qlab_checkpoint
from tests.answers.bank import Bank

BANK = Bank("checkpoint")
BANK.add("by_qlab", qlab_checkpoint)


class Again(torch.autograd.Function):
    """Run a function anew in the backward pass."""

    @staticmethod
    def forward(ctx, f, *args):
        ctx.f, ctx.state = f, torch.get_rng_state()
        ctx.save_for_backward(*args)
        return f(*args)

    @staticmethod
    def backward(ctx, grad):
        args = [a.detach().requires_grad_(a.requires_grad) for a in ctx.saved_tensors]
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            result = ctx.f(*args)
        grads = iter(torch.autograd.grad(result, [a for a in args if a.requires_grad], grad))
        return None, *(next(grads) if a.requires_grad else None for a in args)


@BANK.right
def an_autograd_function(f, *args):
    return Again.apply(f, *args)


@BANK.right
def with_the_arguments_and_the_state_on_the_context(f, *args):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.state, ctx.args = torch.get_rng_state(), args
            return f(*args)

        @staticmethod
        def backward(ctx, grad):
            now = torch.get_rng_state()
            torch.set_rng_state(ctx.state)
            args = []
            for arg, wanted in zip(ctx.args, ctx.needs_input_grad, strict=True):
                copy = arg.detach()
                copy.requires_grad = wanted
                args.append(copy)
            with torch.set_grad_enabled(True):
                result = f(*args)
            torch.set_rng_state(now)
            result.backward(grad)
            return tuple(arg.grad for arg in args)

    return Function.apply(*args)


@BANK.right
def with_the_state_among_the_saved_tensors(f, *args):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(torch.get_rng_state(), *args)
            return f(*args)

        @staticmethod
        def backward(ctx, grad):
            state, *saved = ctx.saved_tensors
            args = [arg.detach().requires_grad_(arg.requires_grad) for arg in saved]
            with torch.random.fork_rng(), torch.enable_grad():
                torch.set_rng_state(state)
                result = f(*args)
                wanted = [place for place, arg in enumerate(args) if arg.requires_grad]
                found = torch.autograd.grad(result, [args[place] for place in wanted], grad)
            grads = [None] * len(args)
            for place, one in zip(wanted, found, strict=True):
                grads[place] = one
            return tuple(grads)

    return Function.apply(*args)


@BANK.right
def with_setup_context(f, *args):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*args):
            Function.state = torch.get_rng_state()
            return f(*args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.state = Function.state

        @staticmethod
        def backward(ctx, grad):
            now = torch.get_rng_state()
            try:
                torch.set_rng_state(ctx.state)
                args = [a.detach().requires_grad_(a.requires_grad) for a in ctx.saved_tensors]
                with torch.enable_grad():
                    f(*args).backward(grad)
            finally:
                torch.set_rng_state(now)
            return tuple(a.grad for a in args)

    return Function.apply(*args)


@BANK.right
def by_hooks_on_what_autograd_saves(f, *args):
    state, numbers, kept = torch.get_rng_state(), itertools.count(), []

    def unpack(number):
        if not kept:
            now = torch.get_rng_state()
            torch.set_rng_state(state)
            with torch.enable_grad(), saved_tensors_hooks(lambda t: kept.append(t.detach()), lambda t: t):
                f(*args)
            torch.set_rng_state(now)
        return kept[number]

    with saved_tensors_hooks(lambda _: next(numbers), unpack):
        return f(*args)


@BANK.right
def by_a_vector_jacobian_product(f, *args):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.state = torch.random.get_rng_state()
            ctx.save_for_backward(*args)
            with torch.no_grad():
                return f(*args)

        @staticmethod
        def backward(ctx, grad):
            args = ctx.saved_tensors
            places = [place for place, wanted in enumerate(ctx.needs_input_grad) if wanted]

            def of_the_wanted(*some):
                every = list(args)
                for place, value in zip(places, some, strict=True):
                    every[place] = value
                return f(*every)

            with torch.random.fork_rng(devices=[]):
                torch.random.set_rng_state(ctx.state)
                _, found = torch.autograd.functional.vjp(of_the_wanted, tuple(args[p] for p in places), grad)
            by_place = dict(zip(places, found, strict=True))
            return tuple(by_place.get(place) for place in range(len(args)))

    return Function.apply(*args)


def function(*, run=lambda f, args: f(*args), replay=None, keep=None, states=None):
    """Make an answer from its parts, so that each slip is one line."""
    before, again = states or (torch.get_rng_state, fork_at)

    def answer(f, *args):
        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *args):
                ctx.state = before()
                ctx.save_for_backward(*args)
                result = run(f, args)
                ctx.kept = keep(f, args) if keep else None
                return result

            @staticmethod
            def backward(ctx, grad):
                args = [a.detach().requires_grad_(a.requires_grad) for a in ctx.saved_tensors]
                wanted = [a for a in args if a.requires_grad]
                with again(ctx.state), torch.enable_grad():
                    found = replay(f, args, wanted, grad) if replay else torch.autograd.grad(f(*args), wanted, grad)
                found = iter(found)
                return tuple(next(found) if a.requires_grad else None for a in args)

        return Function.apply(*args)

    return answer


@contextlib.contextmanager
def fork_at(state):
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        yield


@contextlib.contextmanager
def not_put_back(state):
    torch.set_rng_state(state)
    yield


def no_state():
    return None


def nothing(_):
    return contextlib.nullcontext()


def forked(_):
    return torch.random.fork_rng(devices=[])


def wrong(name, misconception, **parts):
    BANK.add(name, function(**parts), misconception=misconception)


wrong("without_any_state", "does-not-restore-rng", states=(no_state, nothing))
wrong("forks_and_sets_nothing", "does-not-restore-rng", states=(no_state, forked))
wrong("leaves_the_old_state_behind", "disturbs-the-generator", states=(torch.get_rng_state, not_put_back))


@contextlib.contextmanager
def seeded(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


wrong("remembers_the_seed", "restores-the-seed", states=(torch.initial_seed, seeded))
wrong(
    "seeds_both_runs",
    "reseeds-the-generator",
    states=(no_state, lambda _: seeded(0)),
    run=lambda f, args: (torch.manual_seed(0), f(*args))[1],
)


def in_a_fork(f, args):
    with torch.random.fork_rng(devices=[]):
        return f(*args)


wrong("forks_in_the_forward_pass_too", "rewinds-the-generator", run=in_a_fork)
wrong("runs_f_twice_to_be_sure", "disturbs-the-generator", run=lambda f, args: [f(*args), f(*args)][0])
wrong(
    "one_run_for_each_gradient",
    "runs-f-too-often",
    replay=lambda f, args, wanted, grad: [torch.autograd.grad(fork_run(f, args), one, grad)[0] for one in wanted],
)


def fork_run(f, args):
    with torch.random.fork_rng(devices=[]):
        return f(*args)


wrong(
    "takes_the_sum_for_the_loss",
    "ignores-the-upstream",
    replay=lambda f, args, wanted, grad: torch.autograd.grad(f(*args).sum(), wanted),
)
wrong(
    "the_first_gradient_only",
    "first-argument-only",
    replay=lambda f, args, wanted, grad: [
        *torch.autograd.grad(f(*args), wanted[0], grad),
        *[None] * (len(wanted) - 1),
    ],
)


def with_grad(f, args):
    with torch.enable_grad():
        return f(*[a.detach().requires_grad_(a.is_floating_point()) for a in args])


def kept(f, args):
    with torch.random.fork_rng(devices=[]):
        return with_grad(f, args)


wrong("keeps_a_graph_on_the_context", "disturbs-the-generator", keep=with_grad)
wrong(
    "keeps_a_graph_it_forgets",
    "keeps-the-activations",
    run=lambda f, args: f(*args),
    keep=kept,
)


@BANK.wrong("keeps-the-activations")
def runs_f_plainly(f, *args):
    return f(*args)


@BANK.wrong("keeps-the-activations")
def keeps_the_graph_of_the_first_run(f, *args):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.args = [a.detach().requires_grad_(a.requires_grad) for a in args]
            with torch.enable_grad():
                ctx.result = f(*ctx.args)
            return ctx.result.detach()

        @staticmethod
        def backward(ctx, grad):
            wanted = [a for a in ctx.args if a.requires_grad]
            found = iter(torch.autograd.grad(ctx.result, wanted, grad))
            return tuple(next(found) if a.requires_grad else None for a in ctx.args)

    return Function.apply(*args)


@BANK.wrong("never-runs-f-again")
def moves_what_is_saved_out_of_sight(f, *args):
    def there(tensor):
        return tensor.double() if tensor.is_floating_point() else tensor

    def back(tensor):
        return tensor.float() if tensor.is_floating_point() else tensor

    with saved_tensors_hooks(there, back):
        return f(*args)


@BANK.wrong("drops-gradients")
def in_no_grad(f, *args):
    with torch.no_grad():
        return f(*args)


@BANK.wrong("drops-gradients")
def detached(f, *args):
    return f(*args).detach()


@BANK.wrong("drops-gradients")
def a_leaf_of_its_own(f, *args):
    with torch.no_grad():
        result = f(*args)
    return result.requires_grad_()


@BANK.wrong("drops-gradients")
def gradients_left_in_the_copies(f, *args):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*args)
            return f(*args)

        @staticmethod
        def backward(ctx, grad):
            copies = [a.detach().requires_grad_(a.requires_grad) for a in ctx.saved_tensors]
            with torch.enable_grad():
                f(*copies).backward(grad)
            return (None,) * len(copies)

    return Function.apply(*args)


LAST = {}


@BANK.wrong("wrong-value")
def one_state_for_all_calls(f, *args):
    LAST["state"] = torch.get_rng_state()
    return function(states=(no_state, lambda _: fork_at(LAST["state"])))(f, *args)


@BANK.wrong("saves-the-state-too-late")
def state_after_the_run(f, *args):
    box = {}

    def run(f, args):
        result = f(*args)
        box["state"] = torch.get_rng_state()
        return result

    return function(run=run, states=(no_state, lambda _: fork_at(box["state"])))(f, *args)


@BANK.wrong("calls-torch-checkpoint")
def hands_over_to_the_library(f, *args):
    return torchs(f, *args, use_reentrant=False)


@BANK.wrong("calls-torch-checkpoint")
def hands_over_to_the_library_without_stopping_early(f, *args):
    with set_checkpoint_early_stop(False):
        return torch.utils.checkpoint.checkpoint(f, *args, use_reentrant=False)


@BANK.wrong("calls-torch-checkpoint")
def hands_over_to_the_reentrant_library_and_warns(f, *args):
    return torch.utils.checkpoint.CheckpointFunction.apply(f, True, *args)


@BANK.wrong("returns-nothing")
def returns_nothing(f, *args):
    f(*args)


@BANK.wrong("wrong-shape")
def sums_the_result(f, *args):
    return Again.apply(f, *args).sum()


@BANK.wrong("wrong-value")
def rounds_the_arguments(f, *args):
    return Again.apply(f, *(a.bfloat16().float() if a.is_floating_point() else a for a in args))


@BANK.crashes
def every_argument_wants_a_gradient(f, *args):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*args)
            ctx.state = torch.get_rng_state()
            return f(*args)

        @staticmethod
        def backward(ctx, grad):
            copies = [a.detach().requires_grad_() for a in ctx.saved_tensors]
            with fork_at(ctx.state), torch.enable_grad():
                result = f(*copies)
            return torch.autograd.grad(result, copies, grad)

    return Function.apply(*args)


@BANK.crashes
def forgets_to_turn_autograd_on(f, *args):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*args)
            return f(*args)

        @staticmethod
        def backward(ctx, grad):
            copies = [a.detach().requires_grad_(a.requires_grad) for a in ctx.saved_tensors]
            return torch.autograd.grad(f(*copies), [a for a in copies if a.requires_grad], grad)

    return Function.apply(*args)


class OnTheArgumentsThemselves(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f, *args):
        ctx.f, ctx.state = f, torch.get_rng_state()
        ctx.save_for_backward(*args)
        return f(*args)

    @staticmethod
    def backward(ctx, grad):
        args = ctx.saved_tensors
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            result = ctx.f(*args)
        found = iter(torch.autograd.grad(result, [a for a in args if a.requires_grad], grad))
        return None, *(next(found) if a.requires_grad else None for a in args)


@BANK.wrong("reaches-past-the-arguments")
def without_detaching(f, *args):
    return OnTheArgumentsThemselves.apply(f, *args)
