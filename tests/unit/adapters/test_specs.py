"""SPECS: its stages and when each comes, its controls, what it reports, and a real training."""

import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.evaluation.general import load_general_suite
from adapters.lesson import Stage, Weights, stages_to_json
from adapters.methods import Assignment, Outcome, build_method
from adapters.methods.form_pairs import SAMPLED
from adapters.rewards.answers import is_correct
from adapters.rewards.contracts import fault_of
from adapters.spec import (
    AnswerVerifier,
    HttpVerifier,
    JsonSchemaContract,
    Precision,
    RegexContract,
    SpecsConfig,
)
from adapters.spec.specs import ColdStartTraining
from adapters.training import job
from adapters.types import Attempt, ChatMessage, Prompt, Rollout, SamplingParams, Verdict
from tests.support.workbench import PaperBench, ScriptedSampler, ScriptedVerifier

SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
SUMS = {f"What is {a} + {b}?": str(a + b) for a, b in itertools.product((1, 2, 3), (10, 20, 30))}
PROMPTS = tuple(
    Prompt(f"p{n}", ({"role": "user", "content": text},), answers=(answer,))
    for n, (text, answer) in enumerate(SUMS.items())
)
VERIFIER = AnswerVerifier()


def config(**fields: Any) -> SpecsConfig:
    small = {
        "contract": JsonSchemaContract(json_schema=SCHEMA),
        "verifier": VERIFIER,
        "samples": 4,
        "rollouts": {"steps": 2, "group": 4, "prompts_per_step": 4, "max_new_tokens": 64},
        "is_reinforced": False,
    }
    return SpecsConfig.model_validate(small | fields)


def right(conversation: Sequence[ChatMessage]) -> str:
    """The answer to what was asked, whatever else the prompt holds."""
    return SUMS[conversation[-1]["content"].partition("?")[0] + "?"]


def in_turn(*forms: str) -> Callable[[Sequence[ChatMessage]], str]:
    """Replies in these forms, one after another; `{}` is the right answer."""
    turns = itertools.cycle(forms)
    return lambda conversation: next(turns).replace("{}", right(conversation))


IN_FORM, PROSE, BROKEN, WRONG = '{"answer": {}}', "It is {}.", '{"answer": {}', '{"answer": 99}'


def bench(*forms: str, trained: Sequence[str] = (IN_FORM,), **fields: Any) -> PaperBench:
    return PaperBench(ScriptedSampler(in_turn(*forms)), lambda _: in_turn(*trained), **fields)


def learn(spec: SpecsConfig, made: PaperBench, prompts: Sequence[Prompt] = PROMPTS) -> Outcome:
    return build_method(spec).learn(Assignment(prompts=tuple(prompts)), made)


def account(outcome: Outcome, part: str) -> dict[str, Any]:
    found = outcome.report["specs"][part]  # type: ignore[index, call-overload]
    assert isinstance(found, dict)
    return found


def test_pairs_are_taught_with_the_base_as_reference_and_both_counts_are_reported() -> None:
    made = bench(IN_FORM, PROSE)

    outcome = learn(config(dpo_beta=0.3, sft_weight=0.7), made)

    [(stage, start)] = made.trainings
    assert start is None
    assert stage.losses.dpo_beta == 0.3
    assert {pair.sft_weight for pair in stage.pairs} == {0.7}
    assert [pair.prompt for pair in stage.pairs] == [prompt.messages for prompt in PROMPTS]
    assert all(
        pair.chosen.startswith("{") and pair.rejected == f"It is {right(pair.prompt)}."
        for pair in stage.pairs
    )
    assert outcome.weights == Weights(Path("trained-0"))
    assert account(outcome, "before")["passed"] == 18
    assert account(outcome, "after")["passed"] == account(outcome, "after")["replies"] == 36
    assert account(outcome, "pairs")["kinds"] == {SAMPLED: 9}
    assert list(account(outcome, "pairs")["examples"]) == [SAMPLED]
    json.dumps(outcome.report)


def test_where_too_few_pass_the_form_is_asked_for_and_taught_without_the_asking() -> None:
    def reply(conversation: Sequence[ChatMessage]) -> str:
        form = IN_FORM if "JSON schema" in conversation[-1]["content"] else PROSE
        return form.replace("{}", right(conversation))

    made = PaperBench(ScriptedSampler(reply), lambda _: in_turn(IN_FORM))

    outcome = learn(config(), made)

    [(stage, _)] = made.trainings
    assert account(outcome, "before")["passed"] == 0
    assert account(outcome, "asked_for")["passed"] == 36
    assert [pair.prompt for pair in stage.pairs] == [prompt.messages for prompt in PROMPTS]
    assert json.dumps(SCHEMA) in json.dumps(list(made.base.asked)).replace('\\"', '"')


def test_an_instruction_of_the_users_own_stands_in_for_the_contracts_words() -> None:
    made = bench(PROSE)

    learn(config(instruction="Say it as the tower clerk does."), made)

    shown = [each for each in made.base.asked if "tower clerk" in each[-1]["content"]]
    assert len(shown) == 36


def test_a_brief_grpo_comes_only_where_asking_does_not_help_and_writes_chosen_replies_only() -> (
    None
):
    made = bench(PROSE, PROSE, PROSE, PROSE, PROSE, PROSE, IN_FORM, trained=(IN_FORM,))

    outcome = learn(config(form_steps=1), made)

    (form, form_start), (cold, cold_start) = made.trainings
    assert form.units
    assert not form.pairs
    assert cold.pairs
    assert form_start is None
    assert cold_start is None  # the cold start begins where the run began, as in the paper
    assert account(outcome, "form_grpo")["trained_steps"] == 1
    assert account(outcome, "formed")["passed"] == 36


@pytest.mark.parametrize("form_steps", [0, 4])
def test_a_contract_that_nothing_meets_ends_the_run_with_the_faults(form_steps: int) -> None:
    unsatisfiable = JsonSchemaContract(json_schema={"type": "integer", "minimum": 2, "maximum": 1})
    made = bench(IN_FORM, "{}", PROSE)

    outcome = learn(config(contract=unsatisfiable, form_steps=form_steps), made)

    assert outcome.weights is None
    assert made.trainings == []
    why = str(outcome.report["no_update"])
    assert "No reply keeps the contract" in why
    assert "against the schema: type" in why
    faults = account(outcome, "before")["faults"]
    assert sum(faults.values()) == 36
    assert account(outcome, "asked_for")["passed"] == 0


def test_grpo_goes_on_from_the_cold_start_with_both_rewards() -> None:
    made = bench(IN_FORM, PROSE, trained=(IN_FORM, PROSE, WRONG, "It is 99."))

    outcome = learn(
        config(
            is_reinforced=True,
            gradient={"scale": "none"},
            rollouts={"steps": 2, "group": 4, "prompts_per_step": 4, "max_new_tokens": 64},
        ),
        made,
    )

    (cold, _), (first, first_start), (second, second_start) = made.trainings
    assert cold.pairs
    assert first_start == Weights(Path("trained-0"))
    assert second_start == Weights(Path("trained-1"))
    assert (first.goes_on, second.goes_on) == (False, True)
    by_text = {
        rollout_text(unit): unit.advantages[0]
        for unit in first.units  # type: ignore[union-attr, index]
    }
    rewards = {form: value for form, value in by_text.items() if "99" in form}
    assert sorted(set(by_text.values())) == [-0.75, -0.25, 0.25, 0.75]
    assert sorted(set(rewards.values())) == [-0.75, -0.25]
    assert outcome.weights == Weights(Path("trained-2"))
    assert account(outcome, "grpo")["curve"][0]["form"] == 0.5


def rollout_text(unit: Any) -> str:
    """What a scripted rollout said: a token a character."""
    return "".join(chr(token - 1) for token in unit.ids[unit.trained_from : -1])


def test_plain_grpo_makes_no_pairs() -> None:
    made = bench(IN_FORM, PROSE)

    outcome = learn(config(cold_start="none", is_reinforced=True), made)

    assert made.trainings
    assert not any(stage.pairs for stage, _ in made.trainings)
    assert "pairs" not in outcome.report["specs"]  # type: ignore[operator]


def test_the_sft_control_has_no_rejected_side() -> None:
    made = bench(IN_FORM, PROSE)

    learn(config(cold_start="sft"), made)

    [(stage, _)] = made.trainings
    assert len(stage.pairs) == 9
    assert {pair.rejected for pair in stage.pairs} == {None}


def test_the_coupled_control_rejects_wrong_answers() -> None:
    made = bench(IN_FORM, "It is 99.")

    learn(config(pairs="coupled"), made)

    [(stage, _)] = made.trainings
    assert {pair.rejected for pair in stage.pairs} == {"It is 99."}


def test_where_all_replies_keep_the_form_there_is_nothing_to_teach() -> None:
    outcome = learn(config(verifier=None, is_reinforced=True), bench(IN_FORM))

    assert outcome.weights is None
    assert "already" in str(outcome.report["specs"]["cold_start"])  # type: ignore[index, call-overload]
    skipped = account(outcome, "grpo")["skipped"]
    assert skipped["all rewards equal"] > 0


@pytest.mark.parametrize(
    ("prompts", "fields", "why"),
    [
        (PROMPTS[:3], {}, "3 of"),
        (PROMPTS[:1] * 20, {}, "1 of"),
        ((Prompt("e", ({"role": "user", "content": "  "},)),) * 20, {}, "0 of"),
        (PROMPTS, {"trainings_paid": 0}, "budget"),
    ],
)
def test_no_update_has_its_reason(
    prompts: Sequence[Prompt], fields: dict[str, Any], why: str
) -> None:
    outcome = learn(config(), bench(IN_FORM, PROSE, **fields), prompts)

    assert outcome.weights is None
    assert why in str(outcome.report["no_update"])


def test_a_budget_that_sampling_has_used_up_trains_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = bench(IN_FORM, PROSE)
    monkeypatch.setattr(made, "has_budget", lambda: not made.kept)

    outcome = learn(config(), made)

    assert "budget" in str(outcome.report["no_update"])
    assert made.trainings == []


def test_a_verifier_that_can_tell_nothing_is_counted_and_trains_nothing() -> None:
    blind = ScriptedVerifier(lambda _: Verdict(None, "timed out"))
    made = bench(IN_FORM, PROSE, judge=blind)

    outcome = learn(
        config(cold_start="none", is_reinforced=True, verifier=HttpVerifier(url="http://v")), made
    )

    assert outcome.weights is None
    assert made.trainings == []
    assert list(account(outcome, "grpo")["skipped"]) == ["the verifier could tell of no reply"]
    assert account(outcome, "before")["judged"] == 0


def test_a_verifier_of_answers_sees_the_answer_and_any_other_the_whole_reply() -> None:
    seen: dict[str, set[str]] = {}
    for verifier in (VERIFIER, HttpVerifier(url="http://v")):
        made = bench(IN_FORM)
        learn(config(verifier=verifier), made)
        seen[verifier.type] = {attempt.reply for attempt in made.judge.asked}

    assert seen["answer"] == set(SUMS.values())
    assert seen["http"] == {f'{{"answer": {answer}}}' for answer in SUMS.values()}


def test_an_attempt_after_a_crash_asks_nobody_again_and_trains_the_same() -> None:
    first = bench(IN_FORM, PROSE, BROKEN, WRONG)
    spec = config(is_reinforced=True)
    outcome = learn(spec, first)
    silent = PaperBench(ScriptedSampler(_never), lambda _: _never, kept=dict(first.kept))

    again = learn(spec, silent)

    assert again.report == outcome.report
    assert silent.trainings == first.trainings


def _never(conversation: Sequence[ChatMessage]) -> str:
    raise AssertionError("asked again")


def test_a_champion_is_built_on_and_the_reference_stays_the_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 32}')
    champion = Weights(tmp_path)
    made = bench(PROSE)
    made.writer = ScriptedSampler(in_turn(IN_FORM, PROSE))

    outcome = build_method(config()).learn(
        Assignment(prompts=PROMPTS, champion=champion, champion_generation=1), made
    )

    [(stage, start)] = made.trainings
    assert start == champion
    assert stage.pairs
    assert not made.base.asked
    assert outcome.generation == 2


def test_prompts_beyond_the_most_are_drawn_by_the_seed() -> None:
    def taught(seed: int) -> list[tuple[ChatMessage, ...]]:
        made = bench(IN_FORM, PROSE)
        learn(config(max_prompts=8, seed=seed), made)
        [(stage, _)] = made.trainings
        return [pair.prompt for pair in stage.pairs]

    assert taught(1) == taught(1)
    assert len(taught(1)) == 8
    assert any(taught(1) != taught(seed) for seed in range(2, 8))


@pytest.mark.parametrize(
    "fields",
    [{"pairs": "coupled", "verifier": None}, {"cold_start": "none", "is_reinforced": False}],
)
def test_controls_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"pairs|cold_start"):
        config(**fields)


TINY_MODEL = Path(__file__).parents[2] / "support" / "tiny_model" / "weights"
NO_FULL_STOP = RegexContract(pattern=r"(?P<answer>[^.]+)")


@dataclass
class TinySampler:
    """The tiny model with an adapter, greedy, in this process."""

    adapter: Path | None = None
    asked: list[Sequence[ChatMessage]] = field(default_factory=list)

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        on_progress: object = None,
    ) -> list[tuple[Rollout, ...]]:
        tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
        if self.adapter is not None:
            model = PeftModel.from_pretrained(model, str(self.adapter))
        texts = [
            tokenizer.apply_chat_template(list(one), add_generation_prompt=True, tokenize=False)
            for one in conversations
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids = model.eval().generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=params.max_tokens,
            do_sample=False,
        )[:, batch["input_ids"].shape[1] :]
        replies = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [(Rollout(text, (1,), (2,), (0.0,)),) * group for text in replies]


@dataclass
class TinyBench(PaperBench):
    """Trains and serves for real; what is sampled before that is scripted."""

    folder: Path = Path()

    def train(
        self, stage: Stage, *, start: Weights | None = None, teacher: Weights | None = None
    ) -> Weights:
        weights = Weights(self.folder / f"trained-{len(self.trainings)}")
        self.trainings.append((stage, start))
        path = self.folder / "job.json"
        path.write_text(
            json.dumps(
                {
                    "base_model": str(TINY_MODEL),
                    "stages": stages_to_json([stage]),
                    "outputs": [str(weights.folder)],
                }
            )
        )
        job.run_job(job.read_job(path), io.StringIO())
        return weights

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[Any]]:
        yield [TinySampler(each.folder) for each in weights]


def test_the_tiny_model_learns_the_form_and_keeps_its_answers(tmp_path: Path) -> None:
    asked = [
        Prompt(item.id, ({"role": "user", "content": item.prompt},), answers=item.answers)
        for item in load_general_suite()
    ]
    taught, held_out = asked[::2], asked[1::2]
    known = {
        one.messages[0]["content"]: text
        for one, text in zip(asked, replies_of(None, asked), strict=True)
    }
    turns = itertools.cycle([True, False])

    def half_in_form(conversation: Sequence[ChatMessage]) -> str:
        text = known[conversation[0]["content"]]
        return text.rstrip(".") if next(turns) else text

    made = TinyBench(
        ScriptedSampler(half_in_form),
        lambda _: _never,
        judge=ScriptedVerifier(_is_named),
        folder=tmp_path,
    )
    spec = config(
        contract=NO_FULL_STOP,
        verifier=HttpVerifier(url="http://v"),
        samples=2,
        cold_training=ColdStartTraining(
            learning_rate=2e-3, epochs=4, batch_size=4, precision=Precision.FLOAT32
        ),
        rollouts={"max_new_tokens": 24},  # of a scripted reply: characters
    )

    outcome = learn(spec, made, taught)

    assert outcome.weights is not None
    assert account(outcome, "pairs")["kinds"][SAMPLED] >= 18
    before = [known[one.messages[0]["content"]] for one in held_out]
    after = replies_of(outcome.weights.folder, held_out)
    assert share(fault_of(reply, NO_FULL_STOP) is None for reply in before) == 0.0
    assert share(fault_of(reply, NO_FULL_STOP) is None for reply in after) >= 0.9, after
    right = [is_correct(reply, one.answers) for reply, one in zip(after, held_out, strict=True)]
    assert share(right) >= 0.85, after


def replies_of(adapter: Path | None, prompts: Sequence[Prompt]) -> list[str]:
    """The tiny model's own, greedy."""
    groups = TinySampler(adapter).rollouts(
        [one.messages for one in prompts], SamplingParams(max_tokens=8)
    )
    return [group[0].text for group in groups]


def share(flags: Any) -> float:
    found = list(flags)
    return sum(found) / len(found)


def _is_named(attempt: Attempt) -> Verdict:
    return Verdict(is_correct(attempt.reply, attempt.prompt.answers))


def test_every_sample_of_every_stage_is_announced() -> None:
    made = bench(PROSE, PROSE, PROSE, PROSE, PROSE, PROSE, IN_FORM, trained=(IN_FORM,))
    chosen = config(form_steps=1)

    outcome = learn(chosen, made)

    stages = ("before", "asked_for", "formed", "after")
    sampled = sum(int(str(account(outcome, name)["replies"])) for name in stages)
    of_the_form = 1 * 4 * 4  # steps, prompts of each, replies to each
    assert chosen.most_replies(len(PROMPTS)) == sampled + of_the_form
