"""The loop and its process: learns, repeats itself exactly, stops on nonsense, leaves PEFT files."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.spec import LoraSpec, LossSpec, Precision, TrainingSpec
from adapters.training import job
from adapters.training.batch import as_anchor, encode, lesson
from adapters.training.losses import reference_kl
from adapters.training.model import Trainee, load_trainee, save_adapter
from adapters.training.optim import rate_factor
from adapters.training.scoring import score_samples
from adapters.training.trainer import StepReport, TrainingDiverged, train
from adapters.types import (
    Component,
    EditKind,
    PreferencePair,
    SelfEdit,
    TopK,
    TrainingSample,
    reply_mask,
)

EDITS = (
    SelfEdit(EditKind.PASSAGE, "d", None, "Ada lives in Orm.", "rule"),
    SelfEdit(EditKind.QUESTION, "d", "Where does Ada live?", "In Orm.", "rule"),
    SelfEdit(EditKind.CLOZE, "d", "Complete: Ada lives in", "Orm.", "rule"),
    SelfEdit(EditKind.REPLAY, None, "Hello", "Hi!", "model"),
)
SPEC = TrainingSpec(epochs=4, batch_size=2, learning_rate=2e-2, precision=Precision.FLOAT32)


def run(folder: Path, spec: TrainingSpec = SPEC, seed: int = 0) -> tuple[Trainee, list[StepReport]]:
    trainee = load_trainee(
        folder, spec=LoraSpec(rank=4, alpha=8), seed=seed, precision=spec.precision
    )
    segments = [encode(edit, trainee.tokenizer, max_tokens=200) for edit in EDITS]
    reports: list[StepReport] = []
    train(
        trainee,
        segments[:3],
        anchors=[as_anchor(segment) for segment in segments[3:]],
        anchors_per_epoch=1,
        spec=spec,
        seed=seed,
        on_step=reports.append,
    )
    return trainee, reports


def weights(trainee: Trainee) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in trainee.model.named_parameters() if p.requires_grad}


def test_loss_falls_and_steps_are_counted(random_model: Path) -> None:
    _, reports = run(random_model)

    assert [report.step for report in reports] == list(range(1, 9))
    assert {report.total for report in reports} == {8}
    assert reports[-1].loss < 0.7 * reports[0].loss


def test_same_seed_same_weights_and_other_seed_others(random_model: Path) -> None:
    first, again, other = (weights(run(random_model, seed=seed)[0]) for seed in (0, 0, 1))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_microbatches_do_not_change_the_step(random_model: Path) -> None:
    whole = weights(run(random_model)[0])
    split = weights(run(random_model, SPEC.model_copy(update={"microbatch_tokens": 16}))[0])

    for name in whole:
        torch.testing.assert_close(whole[name], split[name], atol=1e-4, rtol=1e-3)


def test_base_weights_stay_untouched(random_model: Path) -> None:
    trainee, _ = run(random_model)
    before = AutoModelForCausalLM.from_pretrained(random_model).state_dict()

    after = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in trainee.model.get_base_model().state_dict().items()
        if "lora_" not in name
    }

    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_anchors_hold_the_model_to_the_base(random_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(random_model)
    drifts = []
    for anchors_per_epoch, weight in ((0, 1.0), (4, 1.0), (4, 10.0)):
        trainee = load_trainee(random_model, spec=LoraSpec(rank=4, alpha=8), seed=0)
        segments = [encode(edit, trainee.tokenizer, max_tokens=200) for edit in EDITS]
        train(
            trainee,
            segments[:3],
            anchors=[as_anchor(segment, weight) for segment in segments[3:]],
            anchors_per_epoch=anchors_per_epoch,
            spec=SPEC,
            seed=0,
        )
        ids = torch.tensor([segments[3].ids])
        with torch.no_grad(), trainee.autocast():
            drift = reference_kl(trainee.model(ids).logits[0], base(ids).logits[0])
        drifts.append(float(drift[segments[3].trained_from - 1 : -1].mean()))

    assert drifts[1] < 0.5 * drifts[0]
    assert drifts[2] < 0.9 * drifts[1]  # a large rate never settles; the weight pulls all the same


def test_saved_adapter_is_plain_sorted_and_reloads_to_the_same_logits(
    random_model: Path, tmp_path: Path
) -> None:
    trainee, _ = run(random_model)
    ids = torch.tensor([[5, 6, 7]])

    save_adapter(trainee.model, tmp_path / "out", base_name="base")
    base = AutoModelForCausalLM.from_pretrained(random_model)
    reloaded = PeftModel.from_pretrained(base, str(tmp_path / "out"))

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == "base"
    assert (config["bias"], config["use_dora"], config["modules_to_save"]) == ("none", False, None)
    torch.testing.assert_close(trainee.model(ids).logits, reloaded(ids).logits)


def test_infinite_loss_is_refused_before_it_reaches_the_weights(random_model: Path) -> None:
    with pytest.raises(TrainingDiverged, match="step"):
        run(random_model, SPEC.model_copy(update={"learning_rate": 1e30}))


def test_nothing_to_train_is_refused(random_model: Path) -> None:
    trainee = load_trainee(random_model, spec=LoraSpec(rank=2), seed=0)

    with pytest.raises(ValueError, match="no sample"):
        train(trainee, [], spec=SPEC, seed=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rate_rises_then_falls_and_stays_positive(schedule: str) -> None:
    factors = [rate_factor(step, 3, 20, schedule=schedule) for step in range(20)]

    assert max(factors) == factors[3] == 1.0
    assert factors[:4] == sorted(factors[:4])
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert all(factor > 0 for factor in factors)


def test_a_constant_rate_rises_once_and_stays() -> None:
    factors = [rate_factor(step, 3, 20, schedule="constant") for step in range(20)]

    assert factors == [0.25, 0.5, 0.75, *[1.0] * 17]


def write_job(folder: Path, base_model: Path, **changes: object) -> Path:
    stage = {
        "lora": {"rank": 4, "alpha": 8},
        "training": SPEC.model_dump(mode="json"),
        "seed": 0,
        "edits": [asdict(edit) for edit in EDITS],
    }
    fields = {
        "base_model": str(base_model),
        "stages": [stage | changes],
        "outputs": [str(folder / "out")],
    }
    path = folder / "job.json"
    path.write_text(json.dumps(fields))
    return path


def test_job_reports_every_step_and_leaves_an_adapter(random_model: Path, tmp_path: Path) -> None:
    out = io.StringIO()

    job.run_job(job.read_job(write_job(tmp_path, random_model)), out)

    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["step"] * (len(events) - 1) + ["done"]
    assert events[-2]["step"] == events[-2]["total"]
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def method_units() -> list[TrainingSample | PreferencePair]:
    """As a method of reinforcement or preferences would make them."""
    rollout = TrainingSample(
        (5, 6, 7, 8),
        reply_mask(2, 4),
        {Component.RL: (0.5, 0.5), Component.REF_KL: (0.1, 0.1)},
        mass=1.0,
        group="p",
        advantages=(1.0, 1.0),
        sampler_logprobs=(-4.0, -5.0),
    )
    pupil = TrainingSample(
        (5, 6, 7),
        reply_mask(2, 3),
        {Component.DISTILL: (1.0,)},
        mass=1.0,
        teacher=(TopK((3, 4), (-0.5, -1.5)),),
    )
    return [rollout, pupil, PreferencePair(lesson((5, 6, 9), 2), lesson((5, 6, 4), 2))]


def test_job_trains_what_any_method_has_made(random_model: Path, tmp_path: Path) -> None:
    units = [asdict(unit) for unit in method_units()]
    path = write_job(tmp_path, random_model, edits=[], units=units, losses={"dpo_beta": 0.2})
    out = io.StringIO()

    read = job.read_job(path)
    job.run_job(read, out)

    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert list(read.stages[0].units) == method_units()
    assert read.stages[0].losses.dpo_beta == 0.2
    assert events[-1]["event"] == "done"
    named = {name for event in events[:-1] for name in event["components"]}
    assert named == {"rl", "ref_kl", "distill", "ce", "dpo"}


def test_job_with_a_sample_that_cannot_be_trained_is_refused(
    random_model: Path, tmp_path: Path
) -> None:
    unit = asdict(method_units()[0]) | {"advantages": None}

    with pytest.raises(ValueError, match="rl needs advantages"):
        job.read_job(write_job(tmp_path, random_model, units=[unit]))


def test_scores_are_the_models_and_the_references_logprobs(random_model: Path) -> None:
    trainee, _ = run(random_model)
    base = AutoModelForCausalLM.from_pretrained(random_model)
    samples = [lesson((5, 6, 7, 8), 1), lesson((5, 6, 9), 2), lesson((4, 4), 1)]

    for is_reference, model in ((False, trainee.model), (True, base)):
        found = score_samples(trainee, samples, microbatch_tokens=6, is_reference=is_reference)
        for sample, scores in zip(samples, found, strict=True):
            with torch.no_grad():
                logprobs = model(torch.tensor([sample.ids])).logits[0].log_softmax(-1)
            places = range(sample.trained_from, len(sample.ids))
            expected = [float(logprobs[i - 1, sample.ids[i]]) for i in places]
            assert scores == pytest.approx(expected, abs=1e-5)


def test_reinforced_answers_become_likelier_and_others_less(random_model: Path) -> None:
    trainee = load_trainee(random_model, spec=LoraSpec(rank=4, alpha=8), seed=0)
    good, bad = (
        TrainingSample(
            (5, 6, 7, *reply),
            reply_mask(3, 5),
            {Component.RL: (1.0, 1.0)},
            mass=2.0,
            advantages=(gain, gain),
        )
        for reply, gain in (((8, 9), 1.0), ((10, 11), -1.0))
    )
    before = score_samples(trainee, [good, bad])

    train(trainee, [good, bad], spec=SPEC, losses=LossSpec(), seed=0)
    after = score_samples(trainee, [good, bad])

    assert sum(after[0]) > sum(before[0])
    assert sum(after[1]) < sum(before[1])


def test_job_process_reports_a_bad_job_as_an_event(tmp_path: Path) -> None:
    path = write_job(tmp_path, tmp_path / "nowhere", training={"unknown": 1})

    done = subprocess.run(
        [sys.executable, "-m", "adapters.training.job", str(path)], capture_output=True, text=True
    )

    event = json.loads(done.stdout)
    assert done.returncode == 1
    assert (event["event"], event["code"]) == ("error", "job_invalid")
    assert "unknown" in event["message"]


def test_job_process_ends_when_its_parent_is_killed(random_model: Path, tmp_path: Path) -> None:
    endless = SPEC.model_dump(mode="json") | {"epochs": 100_000}
    path = write_job(tmp_path, random_model, training=endless)
    script = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-m', 'adapters.training.job', {str(path)!r}],"
        " stdout=subprocess.PIPE, text=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "child.stdout.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())

        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.2)

    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which nobody has yet waited for, does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_several_stages_are_trained_together_each_as_if_alone(
    random_model: Path, tmp_path: Path
) -> None:
    path = write_job(tmp_path, random_model)
    fields = json.loads(path.read_text())
    other = fields["stages"][0] | {"seed": 1, "edits": [asdict(EDITS[0])]}
    together = {
        "stages": [fields["stages"][0], other],
        "outputs": [str(tmp_path / "a"), str(tmp_path / "b")],
    }
    path.write_text(json.dumps(fields | together))
    job.run_job(job.read_job(path), io.StringIO())
    path.write_text(json.dumps(fields | {"stages": [other], "outputs": [str(tmp_path / "alone")]}))
    job.run_job(job.read_job(path), io.StringIO())

    file = "adapter_model.safetensors"
    first, second, alone = (load_file(tmp_path / name / file) for name in ("a", "b", "alone"))
    assert all(torch.allclose(second[name], alone[name], atol=3e-4) for name in alone)
    assert any(not torch.allclose(first[name], alone[name], atol=1e-3) for name in alone)


def test_a_training_ends_after_the_most_steps_with_a_schedule_for_so_many(
    random_model: Path, tmp_path: Path
) -> None:
    out = io.StringIO()

    job.run_job(job.read_job(write_job(tmp_path, random_model, most_steps=2)), out)

    events = [json.loads(line) for line in out.getvalue().splitlines()]
    steps = [(each["step"], each["total"]) for each in events if each["event"] == "step"]
    assert steps == [(1, 2), (2, 2)]


@pytest.mark.parametrize("count", [1, 2])
def test_trials_that_diverge_leave_a_gap(random_model: Path, tmp_path: Path, count: int) -> None:
    wild = SPEC.model_copy(update={"learning_rate": 1e30, "epochs": 3})
    path = write_job(tmp_path, random_model, training=wild.model_dump(mode="json"))
    fields = json.loads(path.read_text())
    outputs = [tmp_path / f"trial-{number}" for number in range(count)]
    trials = {
        "stages": fields["stages"] * count,
        "outputs": list(map(str, outputs)),
        "are_trials": True,
    }
    path.write_text(json.dumps(fields | trials))
    out = io.StringIO()

    job.run_job(job.read_job(path), out)

    closing = json.loads(out.getvalue().splitlines()[-1])
    assert all(closing["diverged"])
    assert not any(output.exists() for output in outputs)


def test_a_training_goes_on_from_the_weights_of_another(random_model: Path, tmp_path: Path) -> None:
    path = write_job(tmp_path, random_model)
    job.run_job(job.read_job(path), io.StringIO())
    fields = json.loads(path.read_text())
    slow = fields["stages"][0]["training"] | {"learning_rate": 1e-9, "epochs": 1}
    stage = fields["stages"][0] | {"training": slow}
    again = {"stages": [stage], "start": str(tmp_path / "out"), "outputs": [str(tmp_path / "on")]}
    path.write_text(json.dumps(fields | again))

    job.run_job(job.read_job(path), io.StringIO())

    file = "adapter_model.safetensors"
    before, after = load_file(tmp_path / "out" / file), load_file(tmp_path / "on" / file)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_a_start_of_another_shape_is_refused(random_model: Path, tmp_path: Path) -> None:
    path = write_job(tmp_path, random_model)
    job.run_job(job.read_job(path), io.StringIO())
    fields = json.loads(path.read_text())
    stage = fields["stages"][0] | {"lora": {"rank": 2, "alpha": 8}}
    again = {"stages": [stage], "start": str(tmp_path / "out"), "outputs": [str(tmp_path / "on")]}
    path.write_text(json.dumps(fields | again))

    with pytest.raises(ValueError, match="rank 4 and alpha 8, the config asks for 2 and 8"):
        job.run_job(job.read_job(path), io.StringIO())
