"""The libraries of the real path, imported once and in silence; every other module of the room takes them from here."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from qlab.finetune import needs

# Loggers that complain while they are imported, of nothing that the fine-tuning uses:
CHATTER = (
    "torchao",  # of its own CUDA extensions, on a machine without CUDA; peft imports it
    "torch.utils._pytree",  # of torchao, which registers enumerations that torch knows by now
    "bitsandbytes",  # of an optional package with faster kernels for a CPU
)


@contextmanager
def _without_chatter() -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in CHATTER}
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torchao 0.18 has a backslash too many in a docstring; Python says so when it first compiles the file
            for category in (DeprecationWarning, SyntaxWarning):  # before and from Python 3.12
                warnings.filterwarnings("ignore", message=".*invalid escape sequence", category=category)
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


needs.require()
with _without_chatter():
    import bitsandbytes
    import huggingface_hub
    import peft
    import transformers
    from safetensors import SafetensorError
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from transformers.pytorch_utils import Conv1D

__all__ = [
    "AttentionInterface",
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BitsAndBytesConfig",
    "Conv1D",
    "SafetensorError",
    "bitsandbytes",
    "expected_warnings",
    "huggingface_hub",
    "peft",
    "transformers",
    "versions",
]


@contextmanager
def expected_warnings() -> Iterator[None]:
    """Leave out what the libraries say about each other and the learner can do nothing about."""
    with warnings.catch_warnings():
        # peft 0.21 asks a model by a name that transformers 5 deprecates
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {module.__name__: module.__version__ for module in (transformers, peft, bitsandbytes)}
