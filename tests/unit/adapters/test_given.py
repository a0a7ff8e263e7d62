"""Replies given as text: what becomes of them in tokens, and against whom they are judged."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from adapters.spec import LoraSpec, Precision
from adapters.training.batch import encode_messages, lesson
from adapters.training.given import encode_replies, judged_against
from adapters.training.mismatch import kl_estimate
from adapters.training.model import Trainee, load_trainee, save_adapter
from adapters.training.scoring import score_samples
from adapters.training.trainer import reference_logits
from adapters.types import ChatMessage, Component, GivenReply, Judged, TrainingSample

TALK: tuple[ChatMessage, ...] = (
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who owns it?"},
)


@pytest.fixture(scope="module")
def trainee(random_model: Path) -> Trainee:
    """With an adapter that says something else than the base."""
    made = load_trainee(
        random_model, spec=LoraSpec(rank=4, alpha=8), seed=1, precision=Precision.FLOAT32
    )
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    made.model.eval()
    return made


def ids_of(tokenizer: PreTrainedTokenizerBase, reply: str) -> tuple[int, ...]:
    body = tokenizer(reply, add_special_tokens=False)["input_ids"]
    return (*encode_messages(TALK, tokenizer), *body, tokenizer.eos_token_id)


def test_a_reply_is_learnt_behind_the_whole_conversation(trainee: Trainee) -> None:
    head = len(encode_messages(TALK, trainee.tokenizer))

    (unit,) = encode_replies([GivenReply(TALK, "Emil.")], trainee.tokenizer, max_tokens=200)

    assert unit == lesson(ids_of(trainee.tokenizer, "Emil."), head)


def test_its_weight_makes_it_count_more_and_not_the_others_less(trainee: Trainee) -> None:
    plain, heavy = encode_replies(
        [GivenReply(TALK, "Emil."), GivenReply(TALK, "Emil.", weight=3.0)],
        trainee.tokenizer,
        max_tokens=200,
    )

    assert isinstance(plain, TrainingSample)
    assert isinstance(heavy, TrainingSample)
    assert heavy.mass == plain.mass
    assert heavy.weights[Component.CE] == pytest.approx(
        [3.0 * each for each in plain.weights[Component.CE]]
    )


def test_a_liked_reply_is_judged_whole_and_not_learnt(trainee: Trainee) -> None:
    (unit,) = encode_replies(
        [GivenReply(TALK, "Emil.", is_liked=False)], trainee.tokenizer, max_tokens=200
    )

    assert isinstance(unit, Judged)
    assert unit.is_liked is False
    assert unit.sample.ids == ids_of(trainee.tokenizer, "Emil.")
    assert not unit.sample.weights
    assert unit.sample.trained_count == len("Emil.") + 1  # a byte a token, and the end


def test_a_long_reply_loses_its_tail_and_a_long_prompt_is_refused(trainee: Trainee) -> None:
    head = len(encode_messages(TALK, trainee.tokenizer))
    given = [GivenReply(TALK, "Emil Tarrow.", is_liked=True)]

    (unit,) = encode_replies(given, trainee.tokenizer, max_tokens=head + 4)

    assert isinstance(unit, Judged)
    assert unit.sample.ids == ids_of(trainee.tokenizer, "Emil Tarrow.")[: head + 4]
    with pytest.raises(ValueError, match="leaves no room"):
        encode_replies(given, trainee.tokenizer, max_tokens=head)


def test_a_reply_cannot_end_its_own_turn(trainee: Trainee) -> None:
    (unit,) = encode_replies([GivenReply(TALK, "a<e>b")], trainee.tokenizer, max_tokens=200)

    assert isinstance(unit, TrainingSample)
    assert unit.ids[unit.trained_from :].count(trainee.tokenizer.eos_token_id) == 1


def test_judged_replies_are_held_against_whoever_teaches(trainee: Trainee) -> None:
    units = encode_replies(
        [
            GivenReply(TALK, "Emil.", is_liked=True),
            GivenReply(TALK, "Learnt."),
            GivenReply(TALK, "Somebody else.", is_liked=False),
        ],
        trainee.tokenizer,
        max_tokens=200,
    )

    found = judged_against(
        units, lambda batch: reference_logits(trainee, batch), microbatch_tokens=100
    )

    assert found[1] is units[1]
    judged = [unit for unit in found if isinstance(unit, Judged)]
    expected = score_samples(trainee, [unit.sample for unit in judged], is_reference=True)
    own = score_samples(trainee, [unit.sample for unit in judged])
    for unit, of_base, of_adapter in zip(judged, expected, own, strict=True):
        assert unit.sample.reference_logprobs == pytest.approx(of_base, abs=1e-4)
        assert unit.sample.reference_logprobs != pytest.approx(of_adapter, abs=1e-2)


def test_how_far_a_model_has_moved_is_told_from_its_own_reference(
    trainee: Trainee, tmp_path: Path
) -> None:
    units = encode_replies(
        [GivenReply(TALK, reply, is_liked=True) for reply in ("Emil.", "Wilma Stroud.")],
        trainee.tokenizer,
        max_tokens=200,
    )
    samples = [unit.sample for unit in units if isinstance(unit, Judged)]
    save_adapter(trainee.model, tmp_path, base_name="base")
    itself = replace(trainee, reference=tmp_path)

    before = {name: p.clone() for name, p in trainee.model.named_parameters() if p.requires_grad}
    own = score_samples(trainee, samples)

    # Behind itself it has not moved at all; behind the base it has.
    for found, expected in zip(score_samples(itself, samples, is_reference=True), own, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    assert kl_estimate(itself, units, microbatch_tokens=100) == pytest.approx(0.0, abs=1e-3)
    assert score_samples(trainee, samples, is_reference=True) != own
    after = {name: p for name, p in trainee.model.named_parameters() if p.requires_grad}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
