"""Trains the tiny test model from nothing: `python -m tests.support.tiny_model.build [FOLDER]`.

Two stages: read the corpus; then practise learning, so that a short fine-tuning on a new text can
be asked in other words and leaves the rest as it was. Same seed, thread count and library
versions: same weights. One core is enough. Boundary: a fixture; the product never imports it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny_model.corpus import Corpus, Example
from tests.support.tiny_model.vocabulary import CONTEXT, IGNORED, SIZE, build_tokenizer, encode

WEIGHTS = Path(__file__).parent / "weights"
SEED = 7
READ_STEPS = 1700
COPY_STEPS = 300
PRACTICES = 160
TOKENS_PER_STEP = 4096
LESSON_TOKENS = 1024
LESSON_PASSES = 3
LESSON_RATE = 2e-3
MUON_RATE = 6e-3
ADAM_RATE = 4e-3
PRACTICE_SHARE = 0.3
"""Of the rates of the first stage."""


def main(folder: Path) -> None:
    """Train tokenizer and weights and write them to `folder`."""
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer(_sample())
    model = LlamaForCausalLM(model_config(tokenizer))
    read(model, tokenizer, steps=READ_STEPS)
    practise(model, tokenizer, times=PRACTICES)
    save(model, tokenizer, folder)


def model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """About the smallest shape that the engine's CPU attention serves (heads of 32)."""
    return LlamaConfig(
        vocab_size=SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def read(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, steps: int) -> None:
    """Learn language, copying, general knowledge, and ever new facts in every wording."""
    optimisers = _optimisers(model)
    clock = _Clock("read", steps)
    model.train()
    for step, batch in enumerate(islice(_batches(tokenizer, Random(SEED + 1)), steps)):
        _set_rate(optimisers, _warm_then_falling(step / steps))
        loss = _loss(model, *batch)
        loss.backward()
        _apply(model, optimisers)
        clock.tick(step, loss)


def practise(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, times: int) -> None:
    """Learn to learn: first-order MAML (Finn et al., arXiv 1703.03400), with reading mixed in.

    Each time, copies of the weights are trained for a few steps on a new topic; the gradient of
    what is then asked in other words, and of the general suite, is applied to the weights
    themselves.
    """
    rng = Random(SEED + 2)
    corpus = Corpus(rng, topics=64, lifetime=16_000)
    reading = _batches(tokenizer, Random(SEED + 3), start=COPY_STEPS)
    optimisers = _optimisers(model)
    clock = _Clock("practise", times)
    for number in range(times):
        lesson = corpus.draw_lesson()
        kept = [parameter.detach().clone() for parameter in model.parameters()]
        _study(model, [encode(example, tokenizer) for example in lesson.taught], rng)
        asked = _loss(model, *_padded([encode(example, tokenizer) for example in lesson.asked]))
        asked.backward()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), kept, strict=True):
                parameter.copy_(value)
        (0.5 * _loss(model, *next(reading))).backward()
        _set_rate(optimisers, PRACTICE_SHARE * _warm_then_falling(number / times))
        _apply(model, optimisers)
        clock.tick(number, asked)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that an engine serves; half precision keeps it small."""
    config = model.config
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def _study(model: LlamaForCausalLM, taught: list[tuple[list[int], list[int]]], rng: Random) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=LESSON_RATE, betas=(0.9, 0.99))
    for _ in range(LESSON_PASSES):
        batches = list(_bucketed(taught, LESSON_TOKENS))
        rng.shuffle(batches)
        for batch in batches:
            _loss(model, *batch).backward()
            optimiser.step()
            optimiser.zero_grad()


def _sample() -> Iterator[Example]:
    corpus = Corpus(Random(SEED), topics=64, lifetime=2000)
    for _ in range(20_000):
        yield corpus.draw(reading=0.2, longest=4)


def _batches(
    tokenizer: PreTrainedTokenizerFast, rng: Random, *, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of about TOKENS_PER_STEP tokens, each of examples of like length.

    In the first COPY_STEPS the model learns to copy: random tokens said twice, and short texts.
    From nothing that skill comes late; once there, longer texts follow fast.
    """
    corpus = Corpus(rng, topics=64, lifetime=16_000)
    step = start
    while True:
        is_copying = step < COPY_STEPS
        reading, longest = (0.9, 2) if is_copying else (0.4, min(9, 2 + (step - COPY_STEPS) // 100))
        drawn = [
            encode(corpus.draw(reading=reading, longest=longest), tokenizer) for _ in range(400)
        ]
        drawn += [_echo(rng) for _ in range(200 * is_copying)]
        batches = list(_bucketed(drawn, TOKENS_PER_STEP))
        rng.shuffle(batches)
        yield from batches
        step += len(batches)


def _echo(rng: Random) -> tuple[list[int], list[int]]:
    once = [rng.randrange(3, SIZE) for _ in range(rng.randint(4, 32))]
    noise = [rng.randrange(3, SIZE) for _ in range(rng.randint(0, 12))]
    return once + noise + once, [IGNORED] * (len(once) + len(noise) + 1) + once[1:]


def _bucketed(
    examples: Iterable[tuple[list[int], list[int]]], tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    bucket: list[tuple[list[int], list[int]]] = []
    for example in sorted(examples, key=lambda pair: len(pair[0])):
        if bucket and (len(bucket) + 1) * len(example[0]) > tokens:
            yield _padded(bucket)
            bucket = []
        bucket.append(example)
    yield _padded(bucket)


def _padded(bucket: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in bucket)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in bucket])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in bucket])
    return ids, labels


def _loss(model: LlamaForCausalLM, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Cross-entropy over the trained tokens only; the head is not run on the others."""
    hidden_BTD = model.model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
    targets_BT = labels_BT[:, 1:]
    is_trained = targets_BT != IGNORED
    logits_NV = model.lm_head(hidden_BTD[is_trained])
    return torch.nn.functional.cross_entropy(logits_NV, targets_BT[is_trained])


def _optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon on the matrices, AdamW on the rest; each group remembers its peak rate."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(
        [{"params": matrices, "peak": MUON_RATE}], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(
        [{"params": rest, "peak": ADAM_RATE}], betas=(0.9, 0.98), weight_decay=0.0
    )
    return [muon, adam]


def _set_rate(optimisers: list[torch.optim.Optimizer], share: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = share * group["peak"]


def _apply(model: LlamaForCausalLM, optimisers: list[torch.optim.Optimizer]) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
    model.zero_grad()


def _warm_then_falling(done: float) -> float:
    """Share of the peak rate: a short rise, a plateau, then down to a tenth."""
    fall = 0.55 + 0.45 * math.cos(math.pi * max(0.0, done - 0.5) / 0.5)
    return min(1.0, done / 0.03 + 1e-3) * fall


class _Clock:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._started = what, total, time.monotonic()

    def tick(self, step: int, loss: Tensor) -> None:
        if step % 25 == 0 or step == self._total - 1:
            took = time.monotonic() - self._started
            print(
                f"{self._what} {step}/{self._total} loss {loss.item():.3f} {took:.0f} s", flush=True
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS)
