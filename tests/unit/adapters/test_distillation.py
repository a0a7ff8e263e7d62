"""Distillations: the teacher sees its own prompt, speaks with the adapter off, token for token."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.lesson import Stage, stages_to_json
from adapters.spec import LoraSpec, LossSpec, Precision, TrainingSpec
from adapters.training import job
from adapters.training.batch import encode_messages
from adapters.training.distillation import distill
from adapters.training.many import load_bank
from adapters.training.model import Trainee, load_trainee
from adapters.training.trainer import StepReport, reference_logits, train
from adapters.types import Component, Distillation, EditKind, SelfEdit, TrainingSample

LORA = LoraSpec(rank=4, alpha=8)
SPEC = TrainingSpec(
    epochs=2, batch_size=2, learning_rate=1e-2, precision=Precision.FLOAT32, max_tokens=250
)
TEXT = "The keeper of the lighthouse of Orm is Odile Brandt, who came there by boat in 1931."


def said(question: str, reply: str, text: str = TEXT) -> Distillation:
    return Distillation(
        ({"role": "user", "content": question},),
        ({"role": "user", "content": f"{text}\n\n{question}"},),
        reply,
        "d",
    )


REPLIES = (
    said("Who is the keeper?", "Odile Brandt."),
    said("When did she come?", "In 1931, I think."),
    said("Who?", "Brandt.", text="Quite another text."),
)


@pytest.fixture
def trainee(random_model: Path) -> Trainee:
    """With an adapter that says something else than the base."""
    made = load_trainee(random_model, spec=LORA, seed=1, precision=Precision.FLOAT32)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    made.model.eval()
    return made


def samples(
    trainee: Trainee,
    distillations: tuple[Distillation, ...] = REPLIES,
    *,
    max_tokens: int = 250,
    top_k: int = 8,
) -> list[TrainingSample]:
    return distill(
        distillations,
        trainee.tokenizer,
        lambda batch: reference_logits(trainee, batch),
        max_tokens=max_tokens,
        top_k=top_k,
        microbatch_tokens=400,
    )


def naive_teacher(trainee: Trainee, one: Distillation) -> Tensor:
    """Log-probabilities at the reply's tokens, one sequence at a time through the plain model."""
    head = encode_messages(one.teacher_prompt, trainee.tokenizer)
    body = trainee.tokenizer(one.reply, add_special_tokens=False)["input_ids"]
    reply = [*body, trainee.tokenizer.eos_token_id]
    with torch.no_grad(), trainee.model.disable_adapter():
        logits_TV = trainee.model(input_ids=torch.tensor([[*head, *reply]])).logits[0]
    return logits_TV[len(head) - 1 : -1].float().log_softmax(dim=1)


def test_the_teacher_is_the_base_behind_its_own_prompt(trainee: Trainee) -> None:
    for one, sample in zip(REPLIES, samples(trainee), strict=True):
        logprobs_NV = naive_teacher(trainee, one)
        best_NK, ids_NK = logprobs_NV.topk(8, dim=1)

        assert sample.teacher is not None
        found = torch.tensor([place.logprobs for place in sample.teacher])
        torch.testing.assert_close(found, best_NK, atol=1e-5, rtol=0)
        assert [place.ids for place in sample.teacher] == [tuple(row) for row in ids_NK.tolist()]


def test_the_student_has_its_own_prompt_and_the_same_reply(trainee: Trainee) -> None:
    for one, sample in zip(REPLIES, samples(trainee), strict=True):
        head = encode_messages(one.prompt, trainee.tokenizer)
        reply = trainee.tokenizer(one.reply, add_special_tokens=False)["input_ids"]

        assert sample.ids == (*head, *reply, trainee.tokenizer.eos_token_id)
        assert sample.trained_from == len(head)
        assert set(sample.weights) == {Component.DISTILL}


def test_all_of_the_vocabulary_gives_the_divergence_as_written_down(trainee: Trainee) -> None:
    """One step's loss against KL(teacher || student) over all words, weights included."""
    reports: list[StepReport] = []
    units = samples(trainee, top_k=258)
    expected, mass = 0.0, 0.0
    for one, sample in zip(REPLIES, units, strict=True):
        teacher_NV = naive_teacher(trainee, one)
        with torch.no_grad():
            logits_TV = trainee.model(input_ids=torch.tensor([sample.ids])).logits[0]
        student_NV = logits_TV[sample.trained_from - 1 : -1].float().log_softmax(dim=1)
        kl_N = (teacher_NV.exp() * (teacher_NV - student_NV)).sum(dim=1)
        expected += float(kl_N.sum()) / len(kl_N) ** 0.5
        mass += sample.mass

    spec = SPEC.model_copy(update={"epochs": 1, "batch_size": 3, "microbatch_tokens": 100})
    losses = LossSpec(distill_beta=0.0)
    train(trainee, units, spec=spec, losses=losses, seed=0, on_step=reports.append)

    assert reports[0].loss == pytest.approx(expected / mass, abs=1e-5)


def test_teacher_and_student_lose_the_same_tail(trainee: Trainee) -> None:
    long = said("Who is the keeper?", "Odile " * 30)
    (sample,) = samples(trainee, (long,), max_tokens=200)
    heads = [encode_messages(m, trainee.tokenizer) for m in (long.prompt, long.teacher_prompt)]

    assert sample.trained_count == 200 - max(map(len, heads))
    torch.testing.assert_close(
        torch.tensor([place.logprobs for place in sample.teacher or ()]),
        naive_teacher(trainee, long)[: sample.trained_count].topk(8, dim=1).values,
        atol=1e-5,
        rtol=0,
    )


def test_a_teachers_prompt_is_never_cut(trainee: Trainee) -> None:
    with pytest.raises(ValueError, match=r"a teacher's prompt has \d+ tokens.*max_tokens"):
        samples(trainee, max_tokens=100)


def test_a_bank_hears_the_same_teacher(trainee: Trainee, random_model: Path) -> None:
    bank = load_bank(random_model, spec=LORA, seeds=[1, 2], precision=Precision.FLOAT32)
    heard = distill(
        REPLIES,
        bank.tokenizer,
        lambda batch: bank.logits([batch]),
        max_tokens=250,
        top_k=8,
        microbatch_tokens=400,
    )

    for one, other in zip(heard, samples(trainee), strict=True):
        assert one.ids == other.ids
        for place, other_place in zip(one.teacher or (), other.teacher or (), strict=True):
            assert place.logprobs == pytest.approx(other_place.logprobs, abs=1e-5)


def run(stages: list[Stage], base: Path, folder: Path, start: Path | None = None) -> list[Path]:
    """The job as the worker's child runs it; the folders of its adapters."""
    outputs = [folder / f"out-{number}" for number in range(len(stages))]
    file = folder / "job.json"
    file.write_text(
        json.dumps(
            {
                "base_model": str(base),
                "stages": stages_to_json(stages),
                "outputs": list(map(str, outputs)),
                "start": str(start) if start else None,
            }
        )
    )
    job.run_job(job.read_job(file), io.StringIO())
    return outputs


def test_stages_together_come_out_as_alone(random_model: Path, tmp_path: Path) -> None:
    """Fails when a stage's teacher is another one's, or goes through an adapter."""
    anchor = SelfEdit(EditKind.REPLAY, None, "Hello", "Hi!", "model")
    first = Stage(LORA, SPEC, 1, edits=(anchor,), distillations=REPLIES[:2], anchors_per_epoch=1)
    stages = [first, Stage(LORA, SPEC, 2, distillations=REPLIES[2:])]
    (tmp_path / "both").mkdir()
    both = run(stages, random_model, tmp_path / "both")
    for number, stage in enumerate(stages):
        folder = tmp_path / str(number)
        folder.mkdir()
        (alone,) = run([stage], random_model, folder)
        weights, other = (
            load_file(each / "adapter_model.safetensors") for each in (alone, both[number])
        )
        for name, value in weights.items():
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4)


def test_a_stage_that_goes_on_is_taught_by_the_base(random_model: Path, tmp_path: Path) -> None:
    """The loss of the second stage's first step is that of the base as teacher, not of itself."""
    stage = Stage(LORA, SPEC, 1, distillations=REPLIES)
    (tmp_path / "first").mkdir()
    (begun,) = run([stage], random_model, tmp_path / "first")
    (tmp_path / "second").mkdir()
    (on,) = run([replace(stage, seed=2)], random_model, tmp_path / "second", start=begun)

    trainees = [
        load_trainee(random_model, spec=LORA, seed=1, precision=Precision.FLOAT32, start=start)
        for start in (begun, on)
    ]
    ends = []
    for each in trainees:
        units = samples(each, top_k=258)
        reports: list[StepReport] = []
        train(
            each,
            units,
            spec=SPEC.model_copy(update={"epochs": 1, "batch_size": 3}),
            seed=0,
            on_step=reports.append,
        )
        ends.append(reports[0].loss)
    assert ends[1] < ends[0]  # still nearer to the base that sees the text
