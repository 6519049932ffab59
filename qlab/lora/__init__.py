"""LoRA and QLoRA: a frozen weight, whole or in 4 bits, and a product of two narrow matrices that is trained."""

from qlab.lora.adapted import AdaptedLinear, LoRALinear
from qlab.lora.files import adapter_state, load_adapters, save_adapters
from qlab.lora.inject import adapted_layers, frozen_bytes, inject, trainable, unload
from qlab.lora.quantized import MergedToCodes, QLoRALinear, linear_through_codes

__all__ = [
    "AdaptedLinear",
    "LoRALinear",
    "MergedToCodes",
    "QLoRALinear",
    "adapted_layers",
    "adapter_state",
    "frozen_bytes",
    "inject",
    "linear_through_codes",
    "load_adapters",
    "save_adapters",
    "trainable",
    "unload",
]
