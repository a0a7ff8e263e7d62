"""SD-Zero: what is sampled, in which turn; what is learnt of it; what ends it without an update."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoTokenizer

from adapters.lesson import Weights, stages_to_json
from adapters.methods import Assignment, Outcome, build_method
from adapters.methods.revising import revision_sample, turn, without_repeated_tail
from adapters.spec import LossSpec, RevisionSpec, SdZeroConfig, UnitTestsVerifier
from adapters.training import job
from adapters.training.batch import encode_messages, pack
from adapters.training.losses import cross_entropy, divergence, mixed_divergence
from adapters.training.objective import component_losses
from adapters.types import (
    Attempt,
    ChatMessage,
    Component,
    Distillation,
    Prompt,
    Rollout,
    TrainingSample,
    Verdict,
)
from tests.support.workbench import (
    END_ID,
    LOGPROB,
    PaperBench,
    ScriptedSampler,
    ScriptedVerifier,
    names_an_answer,
)

WRONG = "Wait, this is not correct. Let me start over."
RIGHT = "Let me rephrase the above solution."
OPEN = {"least_right": 0.0, "most_right": 1.0}
"""Nothing is too easy or too hard."""


def prompts(count: int = 8) -> tuple[Prompt, ...]:
    """What is 3 + N? Answered by the number in brackets, as only a right reply has it."""
    return tuple(
        Prompt(
            f"p{n}",
            ({"role": "user", "content": f"What is 3 + {n}?"},),
            answers=(f"[{3 + n}]",),
        )
        for n in range(count)
    )


def config(**fields: Any) -> SdZeroConfig:
    given = {
        "min_prompts": 2,
        "rollouts": {"prompts_per_step": 4, "steps": 3, "max_new_tokens": 40},
        "revision": {"revisions": 2},
    }
    return SdZeroConfig.model_validate(given | fields)


def number_of(conversation: Sequence[ChatMessage]) -> int:
    return int(conversation[0]["content"].removeprefix("What is 3 + ").rstrip("?"))


def is_revising(conversation: Sequence[ChatMessage]) -> bool:
    return conversation[-1]["role"] == "assistant"


def half_right(conversation: Sequence[ChatMessage]) -> str:
    """Right for even numbers; a revision is always right."""
    number = number_of(conversation)
    if is_revising(conversation) or number % 2 == 0:
        return f" It is [{3 + number}]."
    return " It is [99]."


def bench_of(
    said: Any = half_right, trained: Any = None, verdict: Any = names_an_answer, **fields: Any
) -> PaperBench:
    bench = PaperBench(ScriptedSampler(said), lambda weights: trained or said, **fields)
    bench.judge = ScriptedVerifier(verdict)
    return bench


def learn(
    bench: PaperBench,
    settings: SdZeroConfig | None = None,
    asked: tuple[Prompt, ...] | None = None,
    **fields: Any,
) -> Outcome:
    assignment = Assignment(prompts=prompts() if asked is None else asked, **fields)
    return build_method(settings or config()).learn(assignment, bench)


def report_of(outcome: Outcome) -> dict[str, Any]:
    found = outcome.report["sd_zero"]
    assert isinstance(found, dict)
    return found


def test_a_revision_goes_on_in_the_turn_of_the_reply_behind_the_phrase_of_its_verdict() -> None:
    bench = bench_of()

    learn(bench, config(phases="revision"))

    turns = [asked[-1]["content"] for asked in bench.base.asked if is_revising(asked)]
    first = [asked for asked in bench.base.asked if not is_revising(asked)]
    assert len(first) == 8
    assert sorted(turns) == sorted(
        [
            f"It is [{3 + n}].\n\n{RIGHT}\n\n" if n % 2 == 0 else f"It is [99].\n\n{WRONG}\n\n"
            for n in range(8)
            for _ in range(2)
        ]
    )


def test_both_losses_of_phase_1_are_trained_on_the_tokens_that_were_sampled() -> None:
    bench = bench_of()

    outcome = learn(bench, config(phases="revision"))

    ((stage, start),) = bench.trainings
    assert outcome.weights == Weights(Path("trained-0"))
    assert start is None
    assert stage.training.schedule == "cosine"
    assert len(stage.units) == 8  # the second revision of each is the same
    for unit in stage.units:
        assert isinstance(unit, TrainingSample)
        assert unit.ids[-1] == END_ID
        text = "".join(chr(token - 1) for token in unit.ids[:-1])
        asked, _, said = text.partition("\n")
        assert unit.trained_from == len(asked)
        assert said.count("It is") == 2
        assert said.startswith("It is [99]") is (WRONG in said)
    assert report_of(outcome)["revision"]["not_learnt"] == {"the same revision again": 8}
    assert report_of(outcome)["revision"]["corrected"] == 4
    assert report_of(outcome)["revision"]["rephrased"] == 4


ids = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple)


@given(
    ids, ids, ids, st.floats(0, 3), st.floats(0.01, 3), st.integers(0, 2**31)
)  # fmt: skip
def test_the_loss_of_phase_1_is_the_sum_of_the_papers_two(
    asked: tuple[int, ...],
    shown: tuple[int, ...],
    said: tuple[int, ...],
    generation: float,
    revision: float,
    seed: int,
) -> None:
    spec = RevisionSpec(generation_weight=generation, revision_weight=revision)
    first = Rollout("", asked, (1,), (LOGPROB,))
    revised = Rollout("", asked + shown, said, (LOGPROB,) * len(said))
    sample = revision_sample(first, revised, spec)
    assert sample is not None
    whole = asked + shown + said
    generator = torch.Generator().manual_seed(seed)
    logits_TV = torch.randn(len(whole), 10, generator=generator)
    losses_T = cross_entropy(logits_TV[:-1], torch.tensor(whole[1:]))
    in_full = losses_T[len(asked) - 1 :].mean()
    of_revision = losses_T[len(asked) + len(shown) - 1 :].mean()

    batch = pack([sample], divisor=sample.mass)
    found = component_losses(logits_TV[batch.predictors_N], batch, LossSpec(), reference_NV=None)

    expected = generation * in_full + revision * of_revision
    assert found[Component.CE].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def test_an_engine_that_lays_the_turn_out_otherwise_is_noticed() -> None:
    first = Rollout("a", (1, 2, 3), (5,), (LOGPROB,))
    spec = RevisionSpec()

    assert revision_sample(first, Rollout("b", (1, 9, 3, 5), (6,), (LOGPROB,)), spec) is None
    assert revision_sample(first, Rollout("b", (1, 2, 3), (6,), (LOGPROB,)), spec) is None
    assert revision_sample(first, Rollout("b", (1, 2, 3, 5), (), ()), spec) is None


@pytest.mark.parametrize("phases", ["both", "distillation"])
def test_the_teacher_has_reply_and_phrase_before_the_reply_in_the_same_turn(phases: str) -> None:
    bench = bench_of()

    learn(bench, config(phases=phases))

    stage = bench.trainings[-1][0]
    assert stage.losses.distill_is_mixed
    assert (stage.losses.distill_beta, stage.losses.distill_top_k) == (0.5, 64)
    assert len(stage.distillations) == 4
    for one in stage.distillations:
        phrase = WRONG if "[99]" in one.reply else RIGHT
        assert one.prompt == one.teacher_prompt
        assert one.teacher_prefix == f"{one.reply.strip()}\n\n{phrase}\n\n"
        assert one.reply_ids[-1] == END_ID
        assert len(one.reply_ids) == len(one.reply) + 1


def test_phase_2_goes_on_from_phase_1_which_stays_the_teacher() -> None:
    bench = bench_of()

    outcome = learn(bench)

    assert [start and start.folder.name for _, start in bench.trainings] == [
        None,
        "trained-0",
        "trained-1",
        "trained-2",
    ]
    assert [teacher and teacher.folder.name for teacher in bench.teachers] == [
        None,
        "trained-0",
        "trained-0",
        "trained-0",
    ]
    assert [stage.goes_on for stage, _ in bench.trainings] == [False, False, True, True]
    assert outcome.weights == Weights(Path("trained-3"))


def test_phase_2_alone_is_taught_by_the_base_and_samples_what_it_has_trained() -> None:
    bench = bench_of(trained=lambda _: " It is [98].")

    outcome = learn(bench, config(phases="distillation"))

    assert bench.teachers == [None, None, None]
    assert len(bench.base.asked) == 4  # the first step
    replies = [[one.reply for one in stage.distillations] for stage, _ in bench.trainings]
    assert replies[1:] == [[" It is [98]."] * 4] * 2
    assert "revision" not in report_of(outcome)


def test_every_generation_is_counted() -> None:
    counts = report_of(learn(bench_of()))["generations"]

    assert {name: each["replies"] for name, each in counts.items()} == {
        "first": 8,
        "revisions": 16,
        "distillation": 12,
        "all": 36,
    }
    assert counts["all"]["tokens"] == sum(
        counts[name]["tokens"] for name in ("first", "revisions", "distillation")
    )


def test_right_replies_are_left_alone_where_the_config_says_so() -> None:
    bench = bench_of()

    outcome = learn(
        bench, config(phases="revision", revision={"revises_right": False, "revisions": 1})
    )

    assert report_of(outcome)["revision"]["kept"] == 4
    assert not any(RIGHT in asked[-1]["content"] for asked in bench.base.asked)


@pytest.mark.parametrize(
    ("verdict", "said", "why"),
    [
        (
            lambda _: Verdict(None, "the service did not answer"),
            half_right,
            "could tell of none of 8 replies whether it is right; mostly because the service did",
        ),
        (lambda _: Verdict(True), half_right, "called all 8 replies right"),
        (lambda _: Verdict(False, "no"), half_right, "none of 8 replies and 16 revisions right"),
        (
            names_an_answer,
            lambda asked: "I say [99]." if is_revising(asked) else half_right(asked),
            "No revision of 4 wrong replies succeeded",
        ),
    ],
)
def test_verdicts_that_teach_nothing_are_no_update(verdict: Any, said: Any, why: str) -> None:
    bench = bench_of(said, verdict=verdict)

    outcome = learn(bench, config(**OPEN))

    assert outcome.weights is None
    assert why in str(outcome.report["no_update"])
    assert bench.trainings == []


def right_in(*wrong: str) -> Any:
    """Right are all replies but those to these prompts; a revision always is."""

    def verdict(attempt: Attempt) -> Verdict:
        return Verdict(attempt.prompt.id not in wrong or "revised" in attempt.reply, "no")

    return verdict


def saying_when_it_revises(conversation: Sequence[ChatMessage]) -> str:
    return "revised" if is_revising(conversation) else "said"


@pytest.mark.parametrize("phases", ["both", "revision", "distillation"])
@pytest.mark.parametrize(
    ("wrong", "why", "share"),
    [
        (("p0",), "96.9% of 32 replies are right already, and most_right is 90%", 0.9688),
        (
            tuple(f"p{n}" for n in range(1, 32)),
            "Only 3.1% of 32 replies are right, and least_right is 5%",
            0.0312,
        ),
    ],
)
def test_what_is_too_easy_or_too_hard_is_no_update(
    phases: str, wrong: tuple[str, ...], why: str, share: float
) -> None:
    bench = bench_of(saying_when_it_revises, verdict=right_in(*wrong))
    settings = config(phases=phases, rollouts={"prompts_per_step": 32, "steps": 1})

    outcome = learn(bench, settings, prompts(32))

    assert outcome.weights is None
    assert str(outcome.report["no_update"]).startswith(why)
    found = report_of(outcome)
    if phases == "distillation":
        assert found["distillation"]["steps"][0]["right"] == share
    else:
        assert found["revision"]["right_share"] == share
    assert bench.trainings == []
    assert not any(is_revising(asked) for asked in bench.base.asked)


@pytest.mark.parametrize("phases", ["both", "distillation"])
def test_an_open_window_takes_what_is_easy(phases: str) -> None:
    bench = bench_of(saying_when_it_revises, verdict=right_in("p0"))
    settings = config(phases=phases, rollouts={"prompts_per_step": 32, "steps": 1}, **OPEN)

    assert learn(bench, settings, prompts(32)).weights is not None


def test_a_window_that_is_the_wrong_way_round_is_no_config() -> None:
    with pytest.raises(ValidationError, match="least_right must not be above most_right"):
        config(least_right=0.5, most_right=0.4)


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        (lambda _: Verdict(None, "it hung"), "No reply was learnt; all steps are done."),
        (lambda _: Verdict(True), "The verifier called all 12 replies right."),
        (lambda _: Verdict(False, "no"), "The verifier called none of 12 replies right."),
    ],
)
def test_phase_2_alone_needs_verdicts_that_differ(verdict: Any, why: str) -> None:
    outcome = learn(bench_of(verdict=verdict), config(phases="distillation", **OPEN))

    assert (outcome.weights, outcome.report["no_update"]) == (None, why)


def test_too_few_prompts_are_no_update() -> None:
    outcome = learn(bench_of(), config(min_prompts=3), prompts(2))

    assert outcome.weights is None
    assert "2 of 2 prompts can be learnt from, and 3 are needed" in str(outcome.report)


def test_what_the_exam_asks_is_not_learnt() -> None:
    bench = bench_of()

    learn(bench, held_out=frozenset({"what is 3 +  1?"}))

    asked = [one[0]["content"] for one in bench.base.asked]
    assert "What is 3 + 0?" in asked
    assert "What is 3 + 1?" not in asked


def test_replies_that_cannot_be_judged_or_shown_are_left_out_and_counted() -> None:
    def verdict(attempt: Attempt) -> Verdict:
        return Verdict(None, "it hung") if attempt.prompt.id == "p2" else names_an_answer(attempt)

    def said(conversation: Sequence[ChatMessage]) -> str:
        number = number_of(conversation)
        if not is_revising(conversation) and number == 4:
            return "  "
        if not is_revising(conversation) and number == 5:
            return "x" * 50
        return half_right(conversation)

    settings = config(phases="revision", revision={"revisions": 1, "max_new_tokens": 40})
    outcome = learn(bench_of(said, verdict=verdict), settings)

    found = report_of(outcome)["revision"]
    assert found["not_learnt"] == {
        "the verifier could not tell": 1,
        "the reply is empty": 1,
        "the reply was cut off": 1,
    }
    assert found["reasons"] == {"wrong answer": 5, "it hung": 1}
    assert found["kept"] == 5


def test_revisions_that_are_broken_off_or_go_round_in_circles_are_not_learnt() -> None:
    def said(conversation: Sequence[ChatMessage]) -> str:
        number = number_of(conversation)
        if is_revising(conversation) and number == 1:
            return f"[{3 + number}]" + " again and again" * 12
        if is_revising(conversation) and number == 3:
            return f"[{3 + number}]" + "".join(map(str, range(200)))
        return half_right(conversation)

    settings = config(phases="revision", revision={"revisions": 1, "max_new_tokens": 220})
    outcome = learn(bench_of(said), settings)

    assert report_of(outcome)["revision"]["not_learnt"] == {
        "the revision repeats itself": 1,
        "the revision was cut off": 1,
    }


def test_a_turn_shows_a_reply_without_its_repeated_tail() -> None:
    reply = "\n Three and five are eight." + " So it is eight." * 9 + "\n"

    assert turn(reply, "Wait.") == "Three and five are eight. So it is eight.\n\nWait.\n\n"


@given(st.text("ab. \n1", max_size=200))
def test_cleaning_keeps_the_beginning(text: str) -> None:
    cleaned = without_repeated_tail(text)

    assert text.startswith(cleaned)
    assert cleaned.strip() or not text.strip()
    if len(text) < 60:
        assert cleaned == text


def test_phase_2_leaves_out_what_was_cut_off_unless_it_is_to_be_kept() -> None:
    settings = config(phases="distillation", rollouts={"steps": 1, "max_new_tokens": 5}, **OPEN)
    keeping = settings.model_copy(
        update={"distillation": settings.distillation.model_copy(update={"keeps_truncated": True})}
    )
    verdicts = {"p0": Verdict(True)}
    bench = bench_of(verdict=lambda attempt: verdicts.get(attempt.prompt.id, Verdict(False, "no")))

    left, kept = learn(bench, settings), learn(bench, keeping)

    assert report_of(left)["distillation"]["not_learnt"] == {"the reply was cut off": 8}
    assert kept.weights is not None


def test_what_would_be_too_long_for_the_teacher_is_left_out() -> None:
    settings = config(training={"max_tokens": 60})

    found = report_of(learn(bench_of(), settings))["distillation"]

    assert found["not_learnt"] == {"longer than training.max_tokens": 12}


def test_the_teacher_follows_once_when_the_student_gets_no_better() -> None:
    settings = config(
        rollouts={"prompts_per_step": 8, "steps": 9},
        distillation={"plateau_steps": 2, "teacher_syncs": 1},
    )
    bench = bench_of()

    outcome = learn(bench, settings)

    assert report_of(outcome)["distillation"]["synced_after"] == [3]
    teachers = [teacher and teacher.folder.name for teacher in bench.teachers]
    assert teachers == [None] + ["trained-0"] * 4 + ["trained-4"] * 5


def test_a_student_that_gets_better_keeps_its_teacher() -> None:
    told = 0

    def verdict(attempt: Attempt) -> Verdict:
        nonlocal told
        told += 1  # eight in each step, and more of them right each time
        return Verdict(told % 8 <= told // 8, "no")

    settings = config(
        phases="distillation",
        rollouts={"prompts_per_step": 8, "steps": 6},
        distillation={"plateau_steps": 2},
    )

    found = report_of(learn(bench_of(verdict=verdict), settings))["distillation"]

    assert found["synced_after"] == []


def test_the_budget_ends_it_with_what_there_is() -> None:
    bench = bench_of(trainings_paid=2)

    outcome = learn(bench)

    assert outcome.weights == Weights(Path("trained-1"))
    assert report_of(outcome)["distillation"]["stopped"] == "the budget is used up"


@pytest.mark.parametrize("phases", ["both", "revision", "distillation"])
def test_without_a_budget_nothing_is_asked(phases: str) -> None:
    bench = bench_of(trainings_paid=0)

    outcome = learn(bench, config(phases=phases))

    assert outcome.weights is None
    assert "budget" in str(outcome.report["no_update"])
    assert bench.base.asked == []


def test_a_budget_that_sampling_has_used_up_trains_no_reviser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = bench_of()
    monkeypatch.setattr(bench, "has_budget", lambda: not bench.kept)

    outcome = learn(bench)

    assert "budget" in str(outcome.report["no_update"])
    assert bench.trainings == []


def test_an_attempt_after_a_crash_asks_nothing_again_and_learns_the_same() -> None:
    first, again = bench_of(), bench_of()
    learn(first)
    again.kept = json.loads(json.dumps(first.kept))

    learn(again)

    assert again.base.asked == []
    assert again.judge.asked == []
    assert [stage.digest() for stage, _ in again.trainings] == [
        stage.digest() for stage, _ in first.trainings
    ]


def test_the_verifier_is_the_configs() -> None:
    bench = bench_of()

    learn(bench, config(verifier={"type": "unit-tests", "timeout_s": 2}))

    assert bench.verifier_specs == [UnitTestsVerifier(timeout_s=2)]


def test_a_phase_1_without_any_loss_is_no_config() -> None:
    with pytest.raises(ValidationError, match="must not both be 0"):
        config(revision={"revision_weight": 0, "generation_weight": 0})


logs = st.lists(st.floats(-8, 8), min_size=3, max_size=3).map(
    lambda row: torch.tensor([row]).log_softmax(dim=1)
)


@given(logs, logs, st.floats(0, 1))
def test_the_mixed_divergence_lies_between_the_two_kls(
    student: torch.Tensor, teacher: torch.Tensor, beta: float
) -> None:
    forward = divergence(student, teacher, beta=0.0).item()
    reverse = divergence(student, teacher, beta=1.0).item()

    found = mixed_divergence(student, teacher, beta=beta).item()

    assert found == pytest.approx((1 - beta) * forward + beta * reverse, abs=1e-4)
    assert mixed_divergence(student, student, beta=beta).item() == pytest.approx(0, abs=1e-6)


def run(folder: Path, model: Path, stage: Any, name: str, **fields: str) -> list[float]:
    """The loss of each step."""
    file = folder / f"{name}.json"
    job_fields = {"stages": stages_to_json([stage]), "outputs": [str(folder / name)], "threads": 1}
    file.write_text(json.dumps(job_fields | {"base_model": str(model)} | fields))
    out = io.StringIO()
    job.run_job(job.read_job(file), out)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    return [event["loss"] for event in events if event["event"] == "step"]


def test_the_turn_has_one_layout_and_both_phases_teach_a_real_model(
    random_model: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_model)

    class Tokens(ScriptedSampler):
        """Scripted texts in the model's own tokens, laid out as the engine lays them out."""

        def rollouts(self, conversations: Any, params: Any, **fields: Any) -> Any:
            groups = super().rollouts(conversations, params, **fields)
            return [
                tuple(self._in_tokens(asked, one) for one in group)
                for asked, group in zip(conversations, groups, strict=True)
            ]

        def _in_tokens(self, asked: Sequence[ChatMessage], one: Rollout) -> Rollout:
            said = tokenizer(one.text, add_special_tokens=False)["input_ids"]
            told = (*said, tokenizer.eos_token_id)
            head = tuple(encode_messages(asked, tokenizer))
            return replace(one, prompt_ids=head, ids=told, logprobs=(LOGPROB,) * len(told))

    bench = bench_of()
    bench.base = bench.writer = Tokens(half_right)
    settings = config(
        lora={"rank": 4, "alpha": 8},
        rollouts={"prompts_per_step": 8, "steps": 1, "max_new_tokens": 40},
        revision={"revisions": 1, "training": {"learning_rate": 1e-2, "precision": "float32"}},
        training={"learning_rate": 1e-2, "epochs": 6, "batch_size": 8, "precision": "float32"},
    )
    bench.trained_reply = lambda weights: half_right
    learn(bench, settings)
    (revising, _), (distilling, _) = bench.trainings
    with_reply = [
        (*one.teacher_prompt, {"role": "assistant", "content": one.teacher_prefix})
        for one in distilling.distillations
    ]
    heads = {tuple(encode_messages(asked, tokenizer)) for asked in with_reply}
    shown = {
        unit.ids[: len(head)]
        for unit in revising.units
        for head in heads
        if isinstance(unit, TrainingSample)
    }
    assert heads <= shown  # token for token what phase 1 has learnt to go on from

    for one in distilling.distillations:
        assert isinstance(one, Distillation)
    first = run(tmp_path, random_model, revising, "phase-1")
    in_tokens = replace(
        distilling,
        distillations=tuple(
            replace(
                one, reply_ids=(*tokenizer(one.reply, add_special_tokens=False)["input_ids"], 0)
            )
            for one in distilling.distillations
        ),
    )
    phase_1 = str(tmp_path / "phase-1")
    second = run(tmp_path, random_model, in_tokens, "phase-2", start=phase_1, teacher=phase_1)

    assert first[-1] < first[0]
    assert second[0] > 0.01  # with reply and verdict in sight the teacher says otherwise
    assert second[-1] < 0.8 * second[0]
