"""A whole model out of a base model and an adapter: `python -m adapters.merge JOB_FILE`.

The job is JSON: `{"base_model", "adapter", "output"}`, three folders, the last of which does not exist
yet. A process of its own, because whoever asks for it must not load PyTorch.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapters.model_folder import tokenizer_files


def merge(base_model: Path, adapter: Path, output: Path) -> None:
    """Write a model that says what the base model with the adapter says.

    The sum is formed in float32 and stored in the base model's own type. Tokenizer and chat template
    are copied as they are.

    Raises:
        FileExistsError: `output` is there already.
    """
    output.mkdir(parents=True)
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto")
    stored = base.dtype
    model = PeftModel.from_pretrained(base.to(torch.float32), str(adapter))
    whole = model.merge_and_unload(safe_merge=True).to(stored)
    whole.save_pretrained(output, safe_serialization=True)
    for name in tokenizer_files(base_model):
        shutil.copyfile(base_model / name, output / name)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m adapters.merge JOB_FILE\n")
        return 2
    job = json.loads(Path(arguments[0]).read_text())
    merge(*(Path(job[key]) for key in ("base_model", "adapter", "output")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
