"""A workbench that trains for real, in this process, and samples with the weights that come of it."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from adapters.lesson import Stage, Weights
from adapters.training import job
from adapters.training.batch import encode_messages, end_of_turn
from adapters.types import ChatMessage, ProgressCallback, Rollout, SamplingParams
from tests.support.workbench import PaperBench, ScriptedSampler


class TorchSampler(ScriptedSampler):
    """Samples from a model, without a cache: for models and replies of a few tokens."""

    def __init__(self, base_model: Path, weights: Weights | None = None) -> None:
        super().__init__(lambda _: "")
        self.tokenizer = AutoTokenizer.from_pretrained(base_model)
        self.model = model_of(base_model, weights)
        self.end = end_of_turn(self.tokenizer)

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        on_progress: ProgressCallback | None = None,
    ) -> list[tuple[Rollout, ...]]:
        generator = torch.Generator().manual_seed(params.seed or 0)
        heads = [encode_messages(messages, self.tokenizer) for messages in conversations]
        by_length: dict[int, list[int]] = {}
        for number, head in enumerate(heads):
            by_length.setdefault(len(head), []).extend([number] * group)
        found: dict[int, list[Rollout]] = {}
        for numbers in by_length.values():  # equally long ones need no padding
            rollouts = self._sample([heads[number] for number in numbers], params, generator)
            for number, rollout in zip(numbers, rollouts, strict=True):
                found.setdefault(number, []).append(rollout)
        return [tuple(found[number]) for number in range(len(heads))]

    def _sample(
        self, heads: list[list[int]], params: SamplingParams, generator: torch.Generator
    ) -> Iterator[Rollout]:
        ids_BT = torch.tensor(heads)
        places: list[torch.Tensor] = []
        for _ in range(params.max_tokens):
            with torch.no_grad():
                logits_BV = self.model(input_ids=ids_BT).logits[:, -1]
            chances_BV = torch.softmax(logits_BV / max(params.temperature, 1e-3), 1)
            token_B1 = torch.multinomial(chances_BV, 1, generator=generator)
            places.append(logits_BV.log_softmax(1).gather(1, token_B1))
            ids_BT = torch.cat([ids_BT, token_B1], 1)
        logprobs_BN = torch.cat(places, 1).tolist()
        for head, row, logprobs in zip(heads, ids_BT.tolist(), logprobs_BN, strict=True):
            ids = row[len(head) :]
            is_ended = self.end in ids
            ids = ids[: ids.index(self.end) + 1] if is_ended else ids
            text = self.tokenizer.decode([token for token in ids if token != self.end])
            logprobs = tuple(logprobs[: len(ids)])
            yield Rollout(text, tuple(head), tuple(ids), logprobs, not is_ended)


@dataclass
class RealBench(PaperBench):
    """See `PaperBench`, of which only the trainings and what they serve are real."""

    base_model: Path = field(kw_only=True)
    folder: Path = field(kw_only=True)
    workshop: job.Workshop = field(default_factory=job.Workshop)

    def train(
        self, stage: Stage, *, start: Weights | None = None, teacher: Weights | None = None
    ) -> Weights:
        output = self.folder / super().train(stage, start=start, teacher=teacher).folder.name
        order = job.Job(
            base_model=self.base_model,
            stages=(stage,),
            outputs=(output,),
            start=start.folder if start else None,
            teacher=teacher.folder if teacher else None,
            keeps_moments=True,
            threads=None,
            checkpoints=None,
            checkpoint_every_s=60.0,
        )
        job.run_job(order, io.StringIO(), self.workshop)
        return Weights(output)

    @contextmanager
    def serving(self, weights: Sequence[Weights]) -> Iterator[list[ScriptedSampler]]:
        yield [TorchSampler(self.base_model, each) for each in weights]


def real_bench(base_model: Path, folder: Path) -> RealBench:
    """A bench on a base model, whose trainings go into a folder."""
    base = TorchSampler(base_model)
    return RealBench(base, lambda _: lambda _: "", base_model=base_model, folder=folder)


def model_of(base_model: Path, weights: Weights | None) -> PreTrainedModel:
    """The base, or with an adapter on it; float32, no dropout."""
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32).eval()
    return base if weights is None else PeftModel.from_pretrained(base, weights.folder).eval()


def logprob_of(
    base_model: Path, weights: Weights | None, messages: Sequence[ChatMessage], reply: str
) -> float:
    """Of a whole reply, its end of turn included, in nats."""
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    head = encode_messages(messages, tokenizer)
    body = tokenizer(reply, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*head, *body, end_of_turn(tokenizer)]])
    with torch.no_grad():
        logits_TV = model_of(base_model, weights)(input_ids=ids).logits[0]
    logprobs_TV = logits_TV.log_softmax(1)
    places = range(len(head) - 1, ids.shape[1] - 1)
    return sum(float(logprobs_TV[place, ids[0, place + 1]]) for place in places)
