"""The model with its numbers: frozen in 16 or 4 bits on one device, adapters beside it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qlab.finetune.libraries import AutoModelForCausalLM, BitsAndBytesConfig, bitsandbytes, expected_warnings
from qlab.finetune.plan import Plan
from qlab.finetune.settings import QLORA, Settings
from qlab.finetune.skeleton import checkpointed, linear_layers, skeleton, with_adapters
from qlab.finetune.source import Source


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the first CUDA GPU, or the CPU where there is none.

    Errors:  ValueError if this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{name} is not there: torch finds {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def load_base(source: Source, way: str, device: torch.device) -> nn.Module:
    """Load the frozen base on `device`, in BF16 or, for QLoRA, in NF4 with double quantization.

    Errors:  ValueError if the files do not hold what the configuration says, or a weight is on another device.
    """
    narrow = {"quantization_config": _four_bits(source)} if way == QLORA else {}
    try:
        with expected_warnings():
            model, info = AutoModelForCausalLM.from_pretrained(
                source.folder,
                dtype=torch.bfloat16,
                device_map={"": device},
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **narrow,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{source.folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise ValueError(f"{source.folder} lacks {len(info['missing_keys'])} weights, {first} among them")
    check_devices(model, device)
    return model.requires_grad_(False)


def _four_bits(source: Source) -> BitsAndBytesConfig:
    model = skeleton(source.config)
    layers = linear_layers(model)
    kept = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name not in layers]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=kept,  # its name is older than 4 bits, and holds for them too
    )


def check_devices(model: nn.Module, device: torch.device) -> None:
    """Return if every weight and buffer of `model` is on `device`.

    Errors:  ValueError that names one which is not.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, and the run on {device}: all weights must be there")


def prepare(model: nn.Module, settings: Settings, plan: Plan) -> nn.Module:
    """Put seeded adapters beside the target layers, and recompute layers if the plan says so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # peft draws from the global generator
        adapted = with_adapters(model, settings)
    if plan.recompute:
        checkpointed(model)
    return adapted.train()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name the parameters that are trained."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation inside a `with`, its 4-bit layers excepted.

    On a CPU with BF16 products, bitsandbytes 0.50 packs the codes of a layer in evaluation anew and for good, its
    constants rounded to BF16: the weights would not be the same after a measurement as before.
    """
    before = {module: module.training for module in model.modules()}
    model.eval()
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.training = True
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
