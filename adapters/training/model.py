"""Loading the base model, attaching a fresh LoRA, saving it as a PEFT folder.

Decides device and precision; knows nothing of data, loss or schedule.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adapters.spec import LoraSpec, Precision
from adapters.training.block_attention import attend_in_blocks

_TEACHER = "teacher"
_ADAPTER_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})


class Base(NamedTuple):
    """A base model, its tokenizer, and where it is to compute."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device


@dataclass(frozen=True, slots=True)
class Trainee:
    """A frozen base with one trainable LoRA, its tokenizer, and where it computes."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    compute_dtype: torch.dtype
    reference: Path | None = None
    """What judged answers are held against: a PEFT folder; None is the base."""

    def autocast(self) -> torch.autocast:
        """Context of one forward pass, to be entered anew for each."""
        return autocast(self.device, self.compute_dtype)

    def give_back(self) -> Base:
        """The base as it was before, without the adapter; the trainee is of no use any more."""
        return Base(self.model.unload(), self.tokenizer, self.device)


def load_trainee(
    folder: Path,
    *,
    spec: LoraSpec,
    seed: int,
    precision: Precision = Precision.AUTO,
    start: Path | None = None,
) -> Trainee:
    """Load the base model of `folder` and attach LoRA to every linear layer but the head.

    The LoRA matrices are float32; the base is as `load_base` has it. The adapter's first weights
    depend on `seed` alone, and it equals the base model until the first step; or they are those of
    `start`, a PEFT folder.

    Raises:
        ValueError: `start` is no LoRA of this `spec`.
    """
    base = load_base(folder, precision)
    return attach(base, spec=spec, seed=seed, precision=precision, start=start)


def attach(
    base: Base, *, spec: LoraSpec, seed: int, precision: Precision, start: Path | None = None
) -> Trainee:
    """`load_trainee` for a base that is loaded already; its layers are changed in place.

    Raises:
        ValueError: `start` is no LoRA of this `spec`.
    """
    torch.manual_seed(seed)
    model = get_peft_model(base.model, lora_config(spec))
    if start is not None:
        _begin_with(model, start, spec)
    dtype = compute_dtype(base.device, precision)
    return Trainee(model.to(base.device), base.tokenizer, base.device, dtype)


@contextmanager
def speaking_as(trainee: Trainee, folder: Path) -> Iterator[None]:
    """While it lasts the model answers with the adapter of a PEFT folder, frozen, not its own.

    Neither its own adapter nor the random state is changed by it.

    Raises:
        OSError, ValueError: the folder holds no LoRA of this base model.
    """
    random_state = torch.get_rng_state()
    model = trainee.model
    own = model.active_adapter
    model.load_adapter(str(folder), _TEACHER, torch_device=str(trainee.device))
    torch.set_rng_state(random_state)  # PEFT draws first weights before it loads the others
    try:
        model.set_adapter(_TEACHER)
        yield
    finally:
        model.set_adapter(own)
        model.delete_adapter(_TEACHER)


def _begin_with(model: PeftModel, start: Path, spec: LoraSpec) -> None:
    config = json.loads((start / "adapter_config.json").read_text())
    if (config["r"], config["lora_alpha"]) != (spec.rank, spec.alpha):
        raise ValueError(
            f"the adapter to train on has rank {config['r']} and alpha {config['lora_alpha']}, the "
            f"config asks for {spec.rank} and {spec.alpha}; make them equal, or begin at the base"
        )
    outcome = set_peft_model_state_dict(model, load_file(start / "adapter_model.safetensors"))
    missing = [name for name in outcome.missing_keys if "lora_" in name]
    if missing or outcome.unexpected_keys:
        raise ValueError("the adapter to train on is of other layers than the config's")


def load_base(folder: Path, precision: Precision = Precision.AUTO) -> Base:
    """The base model, not yet moved to the device that is named: new weights are drawn on CPU.

    It is bfloat16 on CUDA and float32 elsewhere. Where a CPU multiplies in bfloat16, the frozen
    weights of its linear layers are that too, as autocast would make them for each product anew;
    embeddings, norms, and what goes from layer to layer stay float32.
    """
    on_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if on_cuda else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16 if on_cuda else torch.float32
    )
    if not on_cuda:
        attend_in_blocks(base)
        if compute_dtype(device, precision) is torch.bfloat16:
            _halve_linear_layers(base)
    return Base(base, tokenizer, device)


def _halve_linear_layers(base: PreTrainedModel) -> None:
    """All but the head, whose weights are the embeddings' in many models."""
    head = base.get_output_embeddings()
    for module in base.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.to(torch.bfloat16)


def lora_config(spec: LoraSpec) -> LoraConfig:
    """PEFT's config of a plain LoRA on every linear layer but the head."""
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )


def save_adapter(model: PeftModel, folder: Path, *, base_name: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, and nothing else, to `folder`.

    The config's lists are sorted and the base model goes by name, not by path, so equal weights
    give equal files on every machine.
    """
    model.save_pretrained(str(folder), safe_serialization=True)
    for stray in folder.iterdir():
        if stray.name not in _ADAPTER_FILES:
            stray.unlink()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_name
    # PEFT names every layer of a small model in full; all of a kind are trained, so the kind will do.
    config["target_modules"] = sorted({n.rpartition(".")[2] for n in config["target_modules"]})
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def weaken(model: PeftModel, strength: float) -> None:
    """Keep this part of what the adapter adds to its base, in place: `B A` becomes `strength B A`.

    The scale alpha / rank stays, so that the adapter is a plain one of its shape.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.mul_(strength)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Context of one forward pass whose matrix products are in `dtype`.

    Enter it anew for each: autocast keeps its casts of the LoRA weights until it is left.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)


def compute_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """bfloat16 where it is asked for or where the machine multiplies it faster."""
    match precision:
        case Precision.FLOAT32:
            return torch.float32
        case Precision.BFLOAT16:
            return torch.bfloat16
        case Precision.AUTO:
            capabilities = torch.cpu.get_capabilities()
            is_fast = device.type == "cuda" or bool(
                capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
            )
            return torch.bfloat16 if is_fast else torch.float32
