"""What fine-tuning needs beyond the course's environment, and how to get it: light, so that it can always be asked."""

import importlib.util
import os

LIBRARIES = ("transformers", "peft", "accelerate", "tokenizers", "bitsandbytes")
HOW = (
    "in the course's folder, run `make lab EXTRAS=finetune`, or"
    ' `pip install -c constraints.txt -e ".[finetune]"` in an environment of your own'
)


def absent() -> tuple[str, ...]:
    """Name the libraries that are not installed; none of them is imported."""
    return tuple(name for name in LIBRARIES if importlib.util.find_spec(name) is None)


def require() -> None:
    """Return if every library is there.

    Errors:  ValueError that names the missing ones and says how to get them.
    """
    if missing := absent():
        are = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{', '.join(missing)} {are} not installed: {HOW}")


def stay_offline() -> None:
    """Forbid the Hub's client every request; it reads this once, when it is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
