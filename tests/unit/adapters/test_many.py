"""Adapters trained together: each ends up as if alone, whatever the others do."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.spec import LoraSpec, Precision, TrainingSpec
from adapters.training.batch import as_anchor, lesson
from adapters.training.many import Course, LoraBank, load_bank, train_many
from adapters.training.model import load_base, load_trainee, save_adapter
from adapters.training.trainer import StepReport, TrainingCancelled, TrainingDiverged, train
from adapters.types import Component, PreferencePair, TopK, TrainingSample, reply_mask

LORA = LoraSpec(rank=4, alpha=8)
SPEC = TrainingSpec(
    epochs=2, batch_size=2, learning_rate=5e-3, microbatch_tokens=32, precision=Precision.FLOAT32
)


def text(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(2, 258, (length,), generator=generator).tolist())


def rich_course() -> Course:
    """Components of every kind."""
    rl = TrainingSample(
        text(1, 9),
        reply_mask(5, 9),
        {Component.RL: (0.3,) * 4, Component.REF_KL: (0.1,) * 4},
        mass=1.0,
        advantages=(1.0, -1.0, 0.5, 2.0),
    )
    teacher = (TopK((4, 5), (-0.4, -1.9)),) * 3
    pupil = TrainingSample(
        text(2, 8), reply_mask(5, 8), {Component.DISTILL: (1.0,) * 3}, mass=3.0, teacher=teacher
    )
    pair = PreferencePair(lesson(text(3, 10), 6), lesson(text(3, 6) + text(4, 3), 6))
    return Course([rl, pupil, pair], SPEC, seed=5)


COURSES = [
    Course([lesson(text(n, 5 + n), 1) for n in range(5)], SPEC, seed=1),
    Course(
        [lesson(text(n, 30), 20) for n in range(3)],
        SPEC.model_copy(update={"epochs": 5, "learning_rate": 1e-3}),
        seed=2,
        anchors=[as_anchor(lesson(text(9, 12), 4), 3.0)],
        anchors_per_epoch=2,
    ),
    Course([lesson(text(7, 4), 1)], SPEC, seed=3),
    rich_course(),
]
SEEDS = [course.seed for course in COURSES]


def weights(bank: LoraBank, adapter: int) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in bank.parameters(adapter).items()}


def alone(folder: Path, course: Course) -> tuple[dict[str, Tensor], list[StepReport]]:
    """The same course with the plain trainer, on PEFT's own layers."""
    trainee = load_trainee(folder, spec=LORA, seed=course.seed, precision=course.spec.precision)
    reports: list[StepReport] = []
    train(
        trainee,
        course.units,
        anchors=course.anchors,
        anchors_per_epoch=course.anchors_per_epoch,
        spec=course.spec,
        seed=course.seed,
        on_step=reports.append,
    )
    named = trainee.model.named_parameters()
    return {n.replace(".default", ""): p.detach() for n, p in named if p.requires_grad}, reports


def bank_of(folder: Path, seeds: list[int]) -> LoraBank:
    return load_bank(folder, spec=LORA, seeds=seeds, precision=Precision.FLOAT32)


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("most_rows", [1, 3, 8])
def test_together_equals_each_alone(random_model: Path, most_rows: int) -> None:
    bank = bank_of(random_model, SEEDS)
    reports: dict[int, list[StepReport]] = {index: [] for index in range(len(COURSES))}

    failures = train_many(
        bank,
        COURSES,
        most_rows=most_rows,
        on_step=lambda index, report: reports[index].append(report),
    )

    assert failures == [None] * len(COURSES)
    for index, course in enumerate(COURSES):
        expected, expected_reports = alone(random_model, course)
        assert_close(weights(bank, index), expected)
        assert [r.step for r in reports[index]] == [r.step for r in expected_reports]
        assert [r.tokens for r in reports[index]] == [r.tokens for r in expected_reports]
        found_losses = [r.loss for r in reports[index]]
        assert found_losses == pytest.approx([r.loss for r in expected_reports], rel=1e-4, abs=1e-6)


def test_first_weights_are_those_of_the_seed_and_the_base_is_unchanged(random_model: Path) -> None:
    bank = bank_of(random_model, [4, 5])
    trainee = load_trainee(random_model, spec=LORA, seed=5, precision=Precision.FLOAT32)
    before = load_base(random_model, Precision.FLOAT32).model.state_dict()

    expected = dict(trainee.model.named_parameters())
    for name, value in weights(bank, 1).items():
        assert torch.equal(value, expected[name.replace(".weight", ".default.weight")])
    after = bank.base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_an_adapter_does_not_notice_what_another_learns(random_model: Path) -> None:
    results = []
    for neighbour in (COURSES[1], Course([lesson(text(50, 31), 1)], SPEC, seed=2)):
        bank = bank_of(random_model, [1, 2])
        train_many(bank, [COURSES[0], neighbour])
        results.append(weights(bank, 0))

    assert_close(*results)


def test_one_that_diverges_stops_alone_with_its_step_not_applied(random_model: Path) -> None:
    wild = SPEC.model_copy(update={"learning_rate": 1e30, "epochs": 3})
    bank = bank_of(random_model, [1, 2])

    failures = train_many(bank, [Course(COURSES[0].units, wild, seed=1), COURSES[1]])

    assert isinstance(failures[0], TrainingDiverged)
    assert failures[1] is None
    assert_close(weights(bank, 1), alone(random_model, COURSES[1])[0])
    assert all(value.isfinite().all() for value in weights(bank, 1).values())


def test_saved_adapter_equals_that_of_the_plain_trainer(random_model: Path, tmp_path: Path) -> None:
    bank = bank_of(random_model, SEEDS[:2])
    train_many(bank, COURSES[:2])
    trainee = load_trainee(random_model, spec=LORA, seed=2)

    bank.save(1, tmp_path / "bank", base_name="base")
    save_adapter(trainee.model, tmp_path / "plain", base_name="base")

    files = [path / "adapter_config.json" for path in (tmp_path / "bank", tmp_path / "plain")]
    assert files[0].read_text() == files[1].read_text()
    saved = load_file(tmp_path / "bank" / "adapter_model.safetensors")
    expected = weights(bank, 1)
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    assert train_many(bank, COURSES[:2]) == [None, None]  # and it goes on working


def test_cancel_stops_before_the_next_pass(random_model: Path) -> None:
    bank = bank_of(random_model, SEEDS)
    first = {name: value.clone() for name, value in weights(bank, 0).items()}

    with pytest.raises(TrainingCancelled):
        train_many(bank, COURSES, should_stop=lambda: True)

    assert_close(weights(bank, 0), first)


def test_dropout_is_refused(random_model: Path) -> None:
    with pytest.raises(ValueError, match="dropout"):
        load_bank(random_model, spec=LoraSpec(dropout=0.1), seeds=[0])


def test_outside_of_a_route_the_base_speaks(random_model: Path) -> None:
    bank = bank_of(random_model, [1])
    ids = torch.tensor([COURSES[0].units[0].ids])  # type: ignore[union-attr]
    with torch.no_grad():
        before = bank.base(ids).logits
        train_many(bank, [])
    train_many(bank, COURSES[:1])
    with torch.no_grad():
        after = bank.base(ids).logits
        with bank.routed([0]):
            adapted = bank.base(ids).logits

    assert torch.equal(before, after)
    assert (adapted - before).abs().max() > 1e-3
