"""Trainings that go on from one another: the optimiser's moments, teachers, a base kept in memory."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.lesson import Stage, Weights, stages_from_json, stages_to_json
from adapters.spec import LoraSpec, Precision, TrainingSpec
from adapters.training import job
from adapters.training.batch import encode_messages, lesson
from adapters.training.model import load_trainee, speaking_as
from adapters.types import Distillation, EditKind, Judged, PreferencePair, SelfEdit, Unit

LORA = LoraSpec(rank=4, alpha=8)
UNITS: tuple[Unit, ...] = tuple(lesson(tuple(range(n, n + 9)), 1 + n % 3) for n in range(4))
SPEC = TrainingSpec(
    epochs=1,
    batch_size=len(UNITS),
    learning_rate=1e-2,
    schedule="constant",
    warmup_share=0.0,
    precision=Precision.FLOAT32,
)
STAGE = Stage(LORA, SPEC, seed=1, units=UNITS)
TAUGHT = Distillation(
    ({"role": "user", "content": "Who?"},),
    ({"role": "user", "content": "Odile is the keeper. Who?"},),
    "",
    teacher_prefix="Bob. No: ",
    reply_ids=(40, 41, 42, 0),
)


@dataclass
class Yard:
    """Where jobs are carried out."""

    base: Path
    folder: Path

    def run(
        self,
        stage: Stage,
        name: str,
        *,
        start: Path | None = None,
        workshop: job.Workshop | None = None,
        **fields: object,
    ) -> Path:
        return self.run_all([stage], [name], start=start, workshop=workshop, **fields)[0]

    def run_all(
        self,
        stages: list[Stage],
        names: list[str],
        *,
        workshop: job.Workshop | None = None,
        **fields: object,
    ) -> list[Path]:
        outputs = [self.folder / name for name in names]
        order: dict[str, Any] = {
            "base_model": str(self.base),
            "stages": stages_to_json(stages),
            "outputs": list(map(str, outputs)),
            "keeps_moments": len(stages) == 1,
        }
        order |= {key: str(value) for key, value in fields.items() if value is not None}
        file = self.folder / "job.json"
        file.write_text(json.dumps(order))
        job.run_job(job.read_job(file), io.StringIO(), workshop)
        return outputs


@pytest.fixture
def yard(random_model: Path, tmp_path: Path) -> Yard:
    return Yard(random_model, tmp_path)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def bytes_of(folder: Path) -> tuple[bytes, bytes]:
    weights = (folder / "adapter_model.safetensors").read_bytes()
    moments = Weights(folder).moments
    return weights, moments.read_bytes() if moments.exists() else b""


def test_three_trainings_that_go_on_are_one_of_three_steps(yard: Yard) -> None:
    whole = yard.run(replace(STAGE, training=SPEC.model_copy(update={"epochs": 3})), "whole")
    on = replace(STAGE, goes_on=True)
    first = yard.run(STAGE, "0")
    last = yard.run(on, "2", start=yard.run(on, "1", start=first))
    anew = yard.run(STAGE, "anew-2", start=yard.run(STAGE, "anew-1", start=first))

    for name, tensor in tensors(whole).items():
        torch.testing.assert_close(tensors(last)[name], tensor, atol=1e-7, rtol=0)
    assert any((tensors(anew)[n] - t).abs().max() > 1e-4 for n, t in tensors(whole).items())
    steps = [t for n, t in load_file(Weights(last).moments).items() if n.endswith(".step")]
    assert {float(step) for step in steps} == {3.0}


def test_a_part_of_the_strength_is_that_part_of_the_update(yard: Yard) -> None:
    half = replace(STAGE, strength=0.5)
    [whole, *parts] = [
        yard.run(STAGE, "whole"),
        yard.run(half, "half"),
        yard.run_all([half, STAGE], ["half-of-two", "whole-of-two"])[0],
    ]

    full = tensors(whole)
    for part in parts:
        for name, tensor in tensors(part).items():
            wanted = full[name] * (0.5 if ".lora_B." in name else 1.0)
            torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=0)
    shapes = [(folder / "adapter_config.json").read_text() for folder in (whole, *parts)]
    assert len(set(shapes)) == 1


def test_anchors_weigh_what_their_share_says(yard: Yard) -> None:
    """Prompt and place are the same, so the heavier the anchor, the less the weights move."""
    taught = SelfEdit(EditKind.QUESTION, "d", "Who?", "Ada of Orm.", "rule")
    general = SelfEdit(EditKind.REPLAY, None, "Who?", "I do not know.", "model")
    stage = replace(STAGE, units=(), edits=(taught, general), anchors_per_epoch=1)
    stage = replace(stage, training=SPEC.model_copy(update={"epochs": 12}))
    shares = (0.0, 0.99)

    alone = [yard.run(replace(stage, anchor_share=n), f"alone-{n}") for n in shares]
    together = yard.run_all(
        [replace(stage, anchor_share=n) for n in shares], [f"together-{n}" for n in shares]
    )

    for light, heavy in (alone, together):
        updates = [
            sum(float(t.square().sum()) for n, t in tensors(folder).items() if ".lora_B." in n)
            for folder in (light, heavy)
        ]
        assert updates[1] < 0.8 * updates[0]


def test_what_goes_on_from_an_adapter_keeps_its_strength(yard: Yard) -> None:
    first = yard.run(STAGE, "first")

    on = yard.run(replace(STAGE, strength=0.5), "on", start=first)
    assert bytes_of(on)[0] == bytes_of(yard.run(STAGE, "full", start=first))[0]


def test_the_warm_up_is_that_of_the_first_training_only(yard: Yard) -> None:
    """With a warm-up over all of its steps, the first would move by half the rate."""
    slow = replace(STAGE, training=SPEC.model_copy(update={"warmup_share": 1.0}))
    first = yard.run(STAGE, "first")

    on = yard.run(replace(slow, goes_on=True), "on", start=first)
    full = yard.run(replace(STAGE, goes_on=True), "full", start=first)
    cold = yard.run(slow, "cold", start=first)

    assert bytes_of(on) == bytes_of(full)
    assert bytes_of(cold) != bytes_of(yard.run(STAGE, "full-cold", start=first))


def test_a_folder_of_weights_holds_nothing_but_an_artifact(yard: Yard) -> None:
    made = yard.run(STAGE, "made")

    assert sorted(path.name for path in made.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert Weights(made).moments.exists()


def test_who_goes_on_from_nothing_is_told_so(yard: Yard) -> None:
    first = yard.run(STAGE, "first")
    Weights(first).moments.unlink()
    on = replace(STAGE, goes_on=True)

    with pytest.raises(ValueError, match="left no optimiser state"):
        yard.run(on, "on", start=first)
    with pytest.raises(ValueError, match="needs a training to start from"):
        yard.run(on, "on")


def chain(yard: Yard, name: str, workshop: job.Workshop | None) -> list[tuple[bytes, bytes]]:
    """Trainings of all kinds, one after the other; with a workshop in one process."""
    lively = replace(STAGE, lora=LORA.model_copy(update={"dropout": 0.2}))
    first = yard.run(lively, f"{name}-0", workshop=workshop)
    second = yard.run(replace(lively, goes_on=True), f"{name}-1", start=first, workshop=workshop)
    trials = yard.run_all(
        [STAGE, replace(STAGE, seed=2)], [f"{name}-a", f"{name}-b"], workshop=workshop
    )
    taught = yard.run(
        replace(lively, units=(), distillations=(TAUGHT,), goes_on=True),
        f"{name}-2",
        start=second,
        teacher=first,
        workshop=workshop,
    )
    other = replace(STAGE, lora=LoraSpec(rank=2, alpha=8))
    return [
        bytes_of(folder)
        for folder in (
            first,
            second,
            *trials,
            taught,
            yard.run(other, f"{name}-3", workshop=workshop),
        )
    ]


def test_a_base_kept_in_memory_gives_the_same_bytes(yard: Yard) -> None:
    """Fails when a training leaves anything behind in the base: a hook, an adapter, a mode."""
    assert chain(yard, "warm", job.Workshop()) == chain(yard, "cold", None)


def test_the_teacher_speaks_and_leaves_no_trace(yard: Yard) -> None:
    strong = replace(STAGE, training=SPEC.model_copy(update={"epochs": 20}))
    folder = yard.run(strong, "teacher")
    trainee = load_trainee(yard.base, spec=LORA, seed=5, precision=Precision.FLOAT32)
    trainee.model.eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    before = [n for n, p in trainee.model.named_parameters() if p.requires_grad]
    state = torch.get_rng_state()

    with speaking_as(trainee, folder), torch.no_grad():
        heard = trainee.model(ids).logits
    with torch.no_grad():
        own = trainee.model(ids).logits
    assert torch.equal(torch.get_rng_state(), state)

    base = AutoModelForCausalLM.from_pretrained(yard.base)
    with torch.no_grad():
        plain = base(ids).logits
        expected = PeftModel.from_pretrained(base, str(folder))(ids).logits
    torch.testing.assert_close(heard, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(own, plain, atol=1e-5, rtol=0)
    assert (heard - own).abs().max() > 0.1
    assert [n for n, p in trainee.model.named_parameters() if p.requires_grad] == before


def first_loss(yard: Yard, stage: Stage, **fields: object) -> float:
    """Of the first step, before anything is learnt in it."""
    order = {
        "base_model": str(yard.base),
        "stages": stages_to_json([stage]),
        "outputs": [str(yard.folder / "unused")],
    }
    file, out = yard.folder / "job.json", io.StringIO()
    file.write_text(json.dumps(order | {key: str(value) for key, value in fields.items()}))
    job.run_job(job.read_job(file), out)
    loss: float = json.loads(out.getvalue().splitlines()[0])["loss"]
    return loss


def test_who_sees_and_says_the_same_as_the_teacher_learns_nothing(yard: Yard) -> None:
    same = replace(TAUGHT, teacher_prompt=TAUGHT.prompt, teacher_prefix="")
    as_text = replace(same, reply="Odile Brandt.", reply_ids=())
    stage = replace(STAGE, units=(), distillations=(same, as_text))

    assert first_loss(yard, stage) == pytest.approx(0.0, abs=1e-6)


def test_the_reply_stands_behind_the_teachers_prefix_token_by_token(yard: Yard) -> None:
    """Teacher and student come to the same beginning by different ways; one token off shows."""
    begun = {"role": "assistant", "content": TAUGHT.teacher_prefix}
    student = replace(TAUGHT, prompt=(*TAUGHT.teacher_prompt, begun))
    stage = replace(STAGE, units=(), distillations=(student,))
    shifted = replace(student, teacher_prefix=TAUGHT.teacher_prefix[:-1])
    off = replace(stage, distillations=(shifted,))

    assert first_loss(yard, stage) == pytest.approx(0.0, abs=1e-6)
    assert first_loss(yard, off) > 1e-3


def test_weights_teach_themselves_nothing_and_others_do(yard: Yard) -> None:
    first = yard.run(STAGE, "first")
    same = replace(TAUGHT, teacher_prompt=TAUGHT.prompt, teacher_prefix="")
    stage = replace(STAGE, units=(), distillations=(same,))

    assert first_loss(yard, stage, start=first, teacher=first) == pytest.approx(0.0, abs=1e-6)
    assert first_loss(yard, stage, start=first) > 1e-4  # the base thinks otherwise


def test_a_begun_turn_is_left_open(yard: Yard) -> None:
    tokenizer = load_trainee(yard.base, spec=LORA, seed=0).tokenizer
    asked = [{"role": "user", "content": "Who?"}]
    begun = [*asked, {"role": "assistant", "content": "It is <e> "}]

    head = encode_messages(asked, tokenizer)
    ids = encode_messages(begun, tokenizer)

    assert tokenizer.decode(ids[len(head) :]) == "It is e "
    assert ids[: len(head)] == head


def test_units_of_a_stage_come_back_as_they_were() -> None:
    sample, other = (lesson(tuple(range(n, n + 5)), 2) for n in (3, 9))
    units = (sample, Judged(sample, is_liked=False, weight=0.5), PreferencePair(sample, other))
    stage = replace(STAGE, units=units, distillations=(TAUGHT,), goes_on=True)

    assert stages_from_json(json.loads(json.dumps(stages_to_json([stage])))) == [stage]
