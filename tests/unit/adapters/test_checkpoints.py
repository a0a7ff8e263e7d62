"""A training that is broken off goes on as if nothing had happened, or begins anew, never wrong."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.spec import LoraSpec, Precision, TrainingSpec
from adapters.training.batch import as_anchor, lesson
from adapters.training.checkpoints import Checkpoints
from adapters.training.job import read_job, run_job
from adapters.training.model import Trainee, load_trainee
from adapters.training.trainer import StepReport, TrainingCancelled, train
from adapters.types import Unit

LORA = LoraSpec(rank=4, alpha=8, dropout=0.2)  # dropout: the random state has to come back too
SPEC = TrainingSpec(epochs=3, batch_size=2, learning_rate=2e-2, precision=Precision.FLOAT32)
UNITS: list[Unit] = [lesson(tuple(range(n, n + 9)), 1 + n % 3) for n in range(5)]
STEPS = 9


class Broken(Exception):
    """The power went."""


def run(
    base: Path,
    folder: Path | None,
    *,
    spec: TrainingSpec = SPEC,
    units: list[Unit] = UNITS,
    break_at: int = 0,
    seed: int = 3,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Trainee, list[int]]:
    """The trainee and the steps that were done; checkpoints after every step."""
    trainee = load_trainee(base, spec=LORA, seed=seed, precision=spec.precision)
    steps: list[int] = []

    def on_step(report: StepReport) -> None:
        if report.step == break_at:
            raise Broken
        steps.append(report.step)

    train(
        trainee,
        units,
        anchors=[as_anchor(lesson((9, 8, 7, 6), 2))],
        anchors_per_epoch=1,
        spec=spec,
        seed=3,
        on_step=on_step,
        should_stop=should_stop,
        checkpoints=Checkpoints(folder, every_s=0) if folder else None,
    )
    return trainee, steps


def weights(trainee: Trainee) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in trainee.model.named_parameters() if p.requires_grad}


def assert_equal(one: Trainee, other: Trainee) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("break_at", [2, 5, STEPS])
def test_resumed_training_ends_with_the_very_same_weights(
    random_model: Path, tmp_path: Path, break_at: int
) -> None:
    whole, all_steps = run(random_model, None)

    with pytest.raises(Broken):
        run(random_model, tmp_path, break_at=break_at)
    torch.manual_seed(99)  # another process has another random state
    resumed, steps = run(random_model, tmp_path)

    assert all_steps == list(range(1, STEPS + 1))
    assert steps == list(range(break_at, STEPS + 1))
    assert_equal(resumed, whole)


def test_it_may_be_broken_off_again_and_again(random_model: Path, tmp_path: Path) -> None:
    whole, _ = run(random_model, None)

    for break_at in (2, 4, 7):
        with pytest.raises(Broken):
            run(random_model, tmp_path, break_at=break_at)
    resumed, steps = run(random_model, tmp_path)

    assert steps == [7, 8, 9]
    assert_equal(resumed, whole)


def test_checkpoints_of_a_training_that_began_elsewhere_are_not_taken(
    random_model: Path, tmp_path: Path
) -> None:
    """The same samples are taught to another champion: the shapes are the same, the values not."""
    with pytest.raises(Broken):
        run(random_model, tmp_path, break_at=4)

    _, steps = run(random_model, tmp_path, seed=4)

    assert steps == list(range(1, STEPS + 1))


def test_checkpoints_of_another_training_are_not_taken(random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Broken):
        run(random_model, tmp_path, break_at=4)

    _, other_data = run(random_model, tmp_path, units=UNITS[:-1])
    with pytest.raises(Broken):
        run(random_model, tmp_path, break_at=4)
    _, other_rate = run(
        random_model, tmp_path, spec=SPEC.model_copy(update={"learning_rate": 1e-3})
    )

    assert other_data[0] == other_rate[0] == 1


def test_a_damaged_checkpoint_costs_the_work_since_the_one_before(
    random_model: Path, tmp_path: Path
) -> None:
    whole, _ = run(random_model, None)
    with pytest.raises(Broken):
        run(random_model, tmp_path, break_at=5)
    newest = max(tmp_path.iterdir())
    tensors = newest / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-40])

    resumed, steps = run(random_model, tmp_path)

    assert newest.name.endswith("4")
    assert steps[0] == 4
    assert_equal(resumed, whole)


def test_what_a_killed_save_left_behind_is_no_checkpoint(
    random_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(Broken):
        run(random_model, tmp_path, break_at=3)
    (tmp_path / ".step-00000008.1").mkdir()
    (tmp_path / "step-00000007").mkdir()  # a rename that the disk did not keep whole

    _, steps = run(random_model, tmp_path)

    assert steps[0] == 3


def test_only_the_newest_stay_and_none_holds_a_pickle(random_model: Path, tmp_path: Path) -> None:
    run(random_model, tmp_path)

    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000007", "step-00000008"]
    for folder in tmp_path.iterdir():
        assert sorted(p.name for p in folder.iterdir()) == ["state.json", "state.safetensors"]
        assert json.loads((folder / "state.json").read_text())["step"] == int(folder.name[-1])


def test_those_of_another_course_make_room_at_once(random_model: Path, tmp_path: Path) -> None:
    """Theirs were further on: the new ones must not be dropped for having lower numbers."""
    with pytest.raises(Broken):
        run(random_model, tmp_path, break_at=STEPS)

    with pytest.raises(Broken):
        run(random_model, tmp_path, break_at=4, seed=4)
    _, steps = run(random_model, tmp_path, seed=4)

    assert steps[0] == 4


def test_a_checkpoint_is_due_by_the_clock(tmp_path: Path) -> None:
    now = [0.0]
    checkpoints = Checkpoints(tmp_path, every_s=30, clock=lambda: now[0])

    now[0] = 29.0
    assert not checkpoints.is_due()
    now[0] = 30.0
    assert checkpoints.is_due()


def test_cancel_stops_within_a_step_and_leaves_the_last_whole_step(
    random_model: Path, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"microbatch_tokens": 16, "batch_size": 5})
    _, steps = run(random_model, tmp_path / "whole", spec=spec)
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 8  # in the third step, which begins with the seventh pass

    with pytest.raises(TrainingCancelled):
        run(random_model, tmp_path / "cut", spec=spec, should_stop=should_stop)
    resumed, rest = run(random_model, tmp_path / "cut", spec=spec)

    assert rest == steps[2:]
    assert_equal(resumed, run(random_model, None, spec=spec)[0])


def test_a_killed_job_goes_on_from_its_checkpoint(random_model: Path, tmp_path: Path) -> None:
    """As the worker runs it: a process killed in mid-step, then another for the next attempt."""
    edit = {"kind": "passage", "document_id": "d", "prompt": None, "written_by": "rule"}
    edits = [edit | {"text": f"Ada lives in Orm, house {n}."} for n in range(6)]
    training = SPEC.model_dump(mode="json") | {"epochs": 40, "batch_size": 1}

    def job(name: str, checkpoints: Path | None) -> Path:
        path = tmp_path / f"{name}.json"
        fields = {
            "base_model": str(random_model),
            "stages": [{"edits": edits, "lora": {"rank": 2}, "training": training, "seed": 0}],
            "outputs": [str(tmp_path / name)],
            "threads": 1,
            "checkpoints": str(checkpoints) if checkpoints else None,
            "checkpoint_every_s": 0,
        }
        path.write_text(json.dumps(fields))
        return path

    command = [sys.executable, "-m", "adapters.training.job"]
    cut = str(job("cut", tmp_path / "checkpoints"))
    with subprocess.Popen([*command, cut], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(50):
            child.stdout.readline()
        child.kill()
    rest = finish(job("again", tmp_path / "checkpoints"))
    whole = finish(job("whole", None))

    assert 49 <= rest[0]["step"] < whole[-2]["total"]
    assert whole[0]["step"] == 1
    file = "adapter_model.safetensors"
    assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def finish(path: Path) -> list[dict[str, int]]:
    out = io.StringIO()
    run_job(read_job(path), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]
