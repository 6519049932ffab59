"""A Llama small enough to be made by a test, with a byte-level tokenizer trained on the standard library."""

import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from qlab.finetune.libraries import transformers

BEGIN, END, VOCABULARY, LONGEST = "<s>", "</s>", 384, 256
SHAPE = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def library_text(*names: str) -> str:
    """Return source files of the standard library, joined."""
    return "\n".join(Path(sysconfig.get_path("stdlib"), name).read_text(encoding="utf-8") for name in names)


def train_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on a module of the standard library."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([library_text("textwrap.py")], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END)


def config(**changes: object) -> transformers.LlamaConfig:
    """Describe the model."""
    given = SHAPE | HEADS | {"vocab_size": VOCABULARY, "max_position_embeddings": LONGEST} | changes
    return transformers.LlamaConfig(bos_token_id=0, eos_token_id=1, tie_word_embeddings=False, **given)


def save(folder: Path, **changes: object) -> Path:
    """Save a model of random weights in BF16 and its tokenizer, as transformers saves them."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config(**changes)).bfloat16().save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    return folder
