"""Merge upon merge: each step begins at the whole model that the step before has left."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.lesson import Stage
from adapters.spec import LoraSpec, Precision, TrainingSpec
from adapters.training import job
from adapters.training.model import load_trainee
from adapters.types import EditKind, SelfEdit
from benchmarks.merge_control import learn_and_merge
from tests.unit.adapters.conftest import save_random_model

LORA = LoraSpec(rank=4, alpha=8)
SPEC = TrainingSpec(epochs=2, batch_size=2, learning_rate=1e-2, precision=Precision.FLOAT32)


def lesson(text: str) -> Stage:
    return Stage(LORA, SPEC, 1, edits=(SelfEdit(EditKind.PASSAGE, "d", None, text, "rule"),))


def train_here(fields: Mapping[str, Any], folder: Path) -> None:
    file = folder / "job.json"
    file.write_text(json.dumps(fields))
    job.run_job(job.read_job(file), io.StringIO())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(2, 40)[None]).logits
    return found


def test_the_second_step_stands_on_the_first(tmp_path: Path) -> None:
    """Fails when the second adapter is trained on, or merged into, the untouched base."""
    base = save_random_model(tmp_path / "base")
    first = learn_and_merge(base, lesson("Ada lives in Orm."), tmp_path / "1", train=train_here)
    second = learn_and_merge(first, lesson("The lamp is green."), tmp_path / "2", train=train_here)

    on_first = load_trainee(
        first, spec=LORA, seed=1, precision=SPEC.precision, start=tmp_path / "2" / "adapter"
    )
    models = [AutoModelForCausalLM.from_pretrained(each).eval() for each in (base, first, second)]

    torch.testing.assert_close(
        logits(models[2]), logits(on_first.model.eval()), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(logits(models[0]), logits(models[1]), atol=1e-2)
    assert not torch.allclose(logits(models[1]), logits(models[2]), atol=1e-2)


def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    base = save_random_model(tmp_path / "base")

    with pytest.raises(RuntimeError, match="the plan is empty"):
        learn_and_merge(base, Stage(LORA, SPEC, 1), tmp_path / "1", threads=1)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()

    with pytest.raises(FileExistsError):
        learn_and_merge(tmp_path, lesson("Ada."), tmp_path / "1", train=train_here)
