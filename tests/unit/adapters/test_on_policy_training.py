"""The on-policy loop with the real trainer: a reward moves a real model, a constant one does not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.lesson import Stage, Weights
from adapters.methods.policy_gradient import Course, Score, Scored, run
from adapters.methods.ttrl import Ttrl
from adapters.spec import (
    AnswerKind,
    AnswerSpec,
    GrpoConfig,
    LoraSpec,
    PolicyGradientSpec,
    Precision,
    PromptTraining,
    RolloutSpec,
    TtrlConfig,
)
from adapters.training.model import Trainee, load_trainee
from adapters.training.trainer import train
from adapters.types import JSON, ChatMessage, Prompt, Rollout, SamplingParams

LORA = LoraSpec(rank=4, alpha=8)
PROMPTS = [Prompt(f"p{n}", ({"role": "user", "content": word},)) for n, word in enumerate("abcd")]
WANTED = 67
"""A token that the model says in 4 of 100 replies."""
LIKELIEST = 157
"""The one that it says most often, in 25 of 100."""


@dataclass
class RealBench:
    """Samples from, and trains, one random model in this process."""

    trainee: Trainee
    trainings: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield

    def progress(self, done: int, total: int) -> None: ...

    def once(self, name: str, make: Any) -> JSON:
        value: JSON = make()
        return value

    def has_budget(self) -> bool:
        return True

    def train(
        self, stage: Stage, *, start: Weights | None = None, teacher: Weights | None = None
    ) -> Weights:
        assert teacher is None  # all of these begin at the base, and are held to it
        train(
            self.trainee,
            stage.units,
            spec=stage.training,
            losses=stage.losses,
            seed=stage.seed,
        )
        self.trainings.append(stage)
        return Weights(Path(f"step-{len(self.trainings)}"))

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list["RealBench"]]:
        yield [self]

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        **_: object,
    ) -> list[tuple[Rollout, ...]]:
        draw = torch.Generator().manual_seed(params.seed or 0)
        return [self._group(conversation, group, draw) for conversation in conversations]

    def odds(self, conversation: Sequence[ChatMessage]) -> tuple[list[int], torch.Tensor]:
        """The prompt's tokens, and the log-probabilities of what is said first."""
        ids = self.trainee.tokenizer.apply_chat_template(
            list(conversation), add_generation_prompt=True, return_dict=True
        )["input_ids"]
        with torch.no_grad():
            logits_V = self.trainee.model(input_ids=torch.tensor([ids])).logits[0, -1]
        return ids, logits_V.log_softmax(dim=0)

    def share_of(self, token: int) -> float:
        """How likely a token is, over all prompts."""
        with torch.no_grad():
            odds = [self.odds(prompt.messages)[1][token].exp() for prompt in PROMPTS]
        return float(torch.stack(odds).mean())

    def _group(
        self, conversation: Sequence[ChatMessage], group: int, draw: torch.Generator
    ) -> tuple[Rollout, ...]:
        ids, logprobs_V = self.odds(conversation)
        drawn = torch.multinomial(logprobs_V.exp(), group, replacement=True, generator=draw)
        return tuple(
            Rollout(f"token {token}", tuple(ids), (token,), (float(logprobs_V[token]),))
            for token in drawn.tolist()
        )


@pytest.fixture
def bench(random_model: Path) -> RealBench:
    trainee = load_trainee(random_model, spec=LORA, seed=0, precision=Precision.FLOAT32)
    trainee.model.eval()
    return RealBench(trainee)


TRAINING = PromptTraining(
    learning_rate=5e-3, precision=Precision.FLOAT32, batch_size=256, warmup_share=0.0
)
ROLLOUTS = RolloutSpec(prompts_per_step=4, group=32, steps=6, max_new_tokens=1)


def learn(bench: RealBench, score: Score, **changes: Any) -> Course:
    config = GrpoConfig(lora=LORA, training=TRAINING, rollouts=ROLLOUTS, **changes)
    return run(config, PROMPTS, score, bench, start=None, policy=bench)  # type: ignore[arg-type]


def says_wanted(prompts: Sequence[Prompt], groups: Sequence[tuple[Rollout, ...]]) -> list[Scored]:
    return [Scored(tuple(float(rollout.ids == (WANTED,)) for rollout in group)) for group in groups]


def vote(bench: RealBench, reward: str, seed: int = 0) -> None:
    config = TtrlConfig(
        lora=LORA,
        training=TRAINING,
        rollouts=ROLLOUTS,
        votes=32,
        vote={"floor": 0.1},  # type: ignore[arg-type]
        answer=AnswerSpec(kind=AnswerKind.TEXT),
        reward=reward,  # type: ignore[arg-type]
        seed=seed,
    )
    run(config, PROMPTS, Ttrl(config).score, bench, start=None, policy=bench)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo"])
def test_the_rewarded_token_becomes_likelier(bench: RealBench, loss: Any) -> None:
    before = bench.share_of(WANTED)

    course = learn(bench, says_wanted, gradient=PolicyGradientSpec(loss=loss))

    assert course.weights is not None
    assert bench.share_of(WANTED) > 3 * before


def test_several_optimiser_steps_on_one_batch_of_rollouts_learn_too(bench: RealBench) -> None:
    before = bench.share_of(WANTED)
    training = TRAINING.model_copy(update={"batch_size": 32})

    config = GrpoConfig(lora=LORA, training=training, rollouts=ROLLOUTS)
    run(config, PROMPTS, says_wanted, bench, start=None, policy=bench)  # type: ignore[arg-type]

    assert bench.share_of(WANTED) > 3 * before


def test_a_constant_reward_changes_no_weight(bench: RealBench) -> None:
    before = [parameter.detach().clone() for parameter in bench.trainee.model.parameters()]

    def score(asked: Sequence[Prompt], groups: Sequence[tuple[Rollout, ...]]) -> list[Scored]:
        return [Scored((1.0,) * len(group)) for group in groups]

    course = learn(bench, score)

    assert course.weights is None
    after = bench.trainee.model.parameters()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_kl_holds_the_policy_near_the_base(bench: RealBench, random_model: Path) -> None:
    held = RealBench(load_trainee(random_model, spec=LORA, seed=0, precision=Precision.FLOAT32))

    learn(bench, says_wanted, gradient=PolicyGradientSpec(reference_kl=0.0))
    learn(held, says_wanted, gradient=PolicyGradientSpec(reference_kl=10.0))

    assert held.share_of(WANTED) < 0.5 * bench.share_of(WANTED)


def test_the_majority_reward_sharpens_and_the_random_one_does_not(
    bench: RealBench, random_model: Path
) -> None:
    before = bench.share_of(LIKELIEST)
    vote(bench, "majority")
    gain = bench.share_of(LIKELIEST) - before

    by_chance = []
    for seed in (1, 2, 3):
        trainee = load_trainee(random_model, spec=LORA, seed=0, precision=Precision.FLOAT32)
        control = RealBench(trainee)
        vote(control, "random", seed)
        assert control.trainings  # it trained, on rewards that mean nothing
        by_chance.append(control.share_of(LIKELIEST) - before)

    assert gain > 0.3
    assert abs(sum(by_chance) / 3) < 0.3 * gain
