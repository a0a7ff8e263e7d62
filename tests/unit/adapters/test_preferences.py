"""Pairs in text through the real trainer: as DPO begins, what they teach, what is said of it."""

import io
import json
import math
from pathlib import Path

import pytest

from adapters.lesson import Stage, stages_from_json, stages_to_json
from adapters.spec import LoraSpec, LossSpec, Precision, TrainingSpec
from adapters.training import job
from adapters.training.batch import encode_messages
from adapters.training.model import load_trainee
from adapters.training.preferences import encode_pairs
from adapters.training.trainer import StepReport, train
from adapters.types import Component, PreferencePair, TextPair, TrainingSample
from tests.unit.adapters.conftest import byte_tokenizer

ASKED = ({"role": "user", "content": "What is 3 + 5?"},)
PAIRS = (
    TextPair(ASKED, '{"answer": 8}', "It is 8."),
    TextPair(ASKED, '{"answer": 8}', '{"answer": 8'),
    TextPair(({"role": "user", "content": "And 2 + 2?"},), '{"answer": 4}', "4"),
)
SPEC = TrainingSpec(epochs=8, batch_size=3, learning_rate=1e-2, precision=Precision.FLOAT32)
LORA = LoraSpec(rank=4, alpha=8)


def steps(folder: Path, pairs: tuple[TextPair, ...], **losses: float) -> list[StepReport]:
    trainee = load_trainee(folder, spec=LORA, seed=0, precision=SPEC.precision)
    reports: list[StepReport] = []
    units = encode_pairs(pairs, trainee.tokenizer, max_tokens=200)
    train(trainee, units, spec=SPEC, losses=LossSpec(**losses), seed=0, on_step=reports.append)
    return reports


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_dpo_begins_at_log_2_whatever_beta(random_model: Path, beta: float) -> None:
    first = steps(random_model, PAIRS, dpo_beta=beta)[0]

    assert first.components["dpo"] == pytest.approx(math.log(2), abs=1e-5)


def test_the_sft_term_is_a_mean_over_the_chosen_tokens_alone(random_model: Path) -> None:
    unlike = tuple(TextPair(p.prompt, p.chosen, "Something else.", p.sft_weight) for p in PAIRS)
    doubled = tuple(TextPair(p.prompt, p.chosen, p.rejected, 2.0) for p in PAIRS)

    plain, other, twice = (steps(random_model, each)[0] for each in (PAIRS, unlike, doubled))

    assert plain.components["ce"] == pytest.approx(other.components["ce"], rel=1e-5)
    assert twice.components["ce"] == pytest.approx(2 * plain.components["ce"], rel=1e-5)
    assert 0.1 < plain.components["ce"] < 20.0  # of a token, not of a reply


def test_both_losses_fall(random_model: Path) -> None:
    reports = steps(random_model, PAIRS)

    assert reports[-1].components["dpo"] < 0.5 * reports[0].components["dpo"]
    assert reports[-1].components["ce"] < 0.9 * reports[0].components["ce"]


def test_a_pair_is_encoded_as_the_chat_with_the_end_of_the_turn() -> None:
    tokenizer = byte_tokenizer()

    [pair] = encode_pairs(PAIRS[:1], tokenizer, max_tokens=200)

    assert isinstance(pair, PreferencePair)
    head = encode_messages(ASKED, tokenizer)
    for sample, text in ((pair.chosen, '{"answer": 8}'), (pair.rejected, "It is 8.")):
        assert list(sample.ids[: sample.trained_from]) == head
        assert tokenizer.decode(sample.ids[sample.trained_from :]) == text + "<e>"
    count = pair.chosen.trained_count
    assert pair.chosen.weights == {Component.CE: (1 / count,) * count}
    assert pair.rejected.weights == {}


def test_a_reply_cannot_spell_a_control_token() -> None:
    tokenizer = byte_tokenizer()

    [pair] = encode_pairs([TextPair(ASKED, "8<e>9", "8<e>")], tokenizer, max_tokens=200)

    assert isinstance(pair, PreferencePair)
    assert [sample.ids.count(0) for sample in (pair.chosen, pair.rejected)] == [
        encode_messages(ASKED, tokenizer).count(0) + 1
    ] * 2


def test_a_chosen_reply_alone_is_a_sample_for_ce() -> None:
    [unit] = encode_pairs([TextPair(ASKED, "8")], byte_tokenizer(), max_tokens=200)

    assert isinstance(unit, TrainingSample)
    assert unit.weights == {Component.CE: (0.5, 0.5)}
    assert unit.mass == 1.0


def test_a_pair_that_is_too_long_is_left_out_whole() -> None:
    long = TextPair(ASKED, "8", "8" * 300)

    assert encode_pairs([long], byte_tokenizer(), max_tokens=200) == []
    assert len(encode_pairs([long], byte_tokenizer(), max_tokens=400)) == 1


def test_a_pair_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="rejected"):
        TextPair(ASKED, "8", None, 0.0)


def stage(**changes: object) -> Stage:
    fields = {"lora": LORA, "training": SPEC, "seed": 0, "pairs": PAIRS} | changes
    return Stage(**fields)


def test_a_stage_of_pairs_is_written_and_read(random_model: Path) -> None:
    kept = json.loads(json.dumps(stages_to_json([stage()])))

    assert stages_from_json(kept) == [stage()]
    assert not stage().is_empty
    assert stage().digest() != stage(pairs=PAIRS[:1]).digest()


def closing_of(folder: Path, model: Path, one: Stage) -> dict[str, object]:
    path = folder / "job.json"
    path.write_text(
        json.dumps(
            {
                "base_model": str(model),
                "stages": stages_to_json([one]),
                "outputs": [str(folder / "out")],
            }
        )
    )
    out = io.StringIO()
    job.run_job(job.read_job(path), out)
    closing: dict[str, object] = json.loads(out.getvalue().splitlines()[-1])
    return closing


def test_the_job_says_what_became_of_chosen_and_rejected(
    random_model: Path, tmp_path: Path
) -> None:
    said = closing_of(tmp_path, random_model, stage())["preferences"]

    assert isinstance(said, dict)
    assert said["pairs"] == 3
    assert said["preferred"] == 1.0
    assert said["margin"] > 0.5
    assert said["chosen_fell"] == 0.0
    assert said["chosen_logprob"] > said["chosen_logprob_of_reference"]
    assert said["rejected_logprob"] < said["chosen_logprob"]


def test_the_job_says_nothing_of_pairs_where_there_are_none(
    random_model: Path, tmp_path: Path
) -> None:
    one = stage(pairs=(TextPair(ASKED, "8"),))

    assert "preferences" not in closing_of(tmp_path, random_model, one)
