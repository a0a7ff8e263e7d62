"""Trains the tiny test model from nothing: `python -m tests.support.tiny_model.build [FOLDER]`.

Same seed, same thread count, same library versions: same weights. One core is enough.
Boundary: a test fixture; nothing in the product imports it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny_model.corpus import Corpus, Example

WEIGHTS = Path(__file__).parent / "weights"
SEED = 7
VOCABULARY = 1536
CONTEXT = 1024
STEPS = 2200
COPY_SHARE = 0.15
TOKENS_PER_STEP = 4096
MUON_RATE = 6e-3
ADAM_RATE = 4e-3
END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
IGNORED = -100

# Names and numbers never carry the space before them: the token that begins "Odile" is the same in
# the middle of a sentence and at the start of a reply, so one fact is one association to store.
_PIECES = r"\p{N}| ?\p{Ll}[\p{L}\p{M}]*|\p{Lu}[\p{L}\p{M}]*|\p{L}+| ?[^\s\p{L}\p{N}]|\s"
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main(folder: Path, steps: int = STEPS) -> None:
    """Train tokenizer and weights and write them to `folder`."""
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer(Random(SEED))
    model = LlamaForCausalLM(model_config(tokenizer))
    train(model, tokenizer, steps=steps)
    save(model, tokenizer, folder)


def build_tokenizer(rng: Random) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a sample of the corpus; any text in UTF-8 can be written with it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, START, END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = Corpus(rng, topics=64, lifetime=2000)
    sample = (corpus.draw(reading=0.2, longest=4) for _ in range(20_000))
    core.train_from_iterator((_plain(example) for example in sample), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, model_max_length=CONTEXT
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The smallest shape that the engine's CPU attention serves (heads of 32)."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
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
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, steps: int) -> None:
    """Muon on the matrices, AdamW on the rest; the rate rises shortly, then falls to zero."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimisers = [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    peaks = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    model.train()
    started, seen = time.monotonic(), 0
    for step, batch in enumerate(_batches(tokenizer, steps)):
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * _rate(step / steps)
            optimiser.zero_grad()
        loss = _loss(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        seen += batch[0].numel()
        if step % 50 == 0 or step == steps - 1:
            took = time.monotonic() - started
            print(
                f"step {step}/{steps} loss {loss.item():.3f} tokens {seen} {took:.0f}s", flush=True
            )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that an engine serves; half precision keeps it small."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def encode(example: Example, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids and labels; only replies carry loss in a chat, everything does in plain text."""
    if not example.turns:
        ids = tokenizer(f"{example.text}{END}")["input_ids"]
        return ids, list(ids)
    parts = [(f"{START}system\n{example.system}{END}\n", False)] if example.system else []
    for prompt, reply in example.turns:
        parts += [
            (f"{START}user\n{prompt}{END}\n{START}assistant\n", False),
            (f"{reply}{END}", True),
            ("\n", False),
        ]
    ids, labels = [], []
    for text, is_trained in parts[:-1]:
        piece = tokenizer(text)["input_ids"]
        ids += piece
        labels += piece if is_trained else [IGNORED] * len(piece)
    return ids, labels


def _batches(tokenizer: PreTrainedTokenizerFast, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of about TOKENS_PER_STEP tokens, each of examples of like length."""
    rng = Random(SEED + 1)
    corpus = Corpus(rng, topics=64, lifetime=26_000)
    ready: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        if not ready:
            ready = list(_bucketed(_draw(corpus, tokenizer, rng, done=step / steps)))
            rng.shuffle(ready)
        yield ready.pop()


def _draw(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, rng: Random, *, done: float
) -> list[tuple[list[int], list[int]]]:
    """Some batches' worth of examples; `done` is the share of the training that is over.

    First the model learns to copy: sequences of random tokens said twice, and one-fact texts. From
    nothing that skill comes late; once there, longer texts and facts known by heart follow fast.
    """
    copying = 0.5 if done < COPY_SHARE else 0.0
    reading = 0.9 if done < COPY_SHARE else 0.4
    longest = 2 if done < COPY_SHARE else min(9, 2 + int(14 * (done - COPY_SHARE)))
    examples = [
        encode(corpus.draw(reading=reading, longest=longest, fresh=done < 0.85), tokenizer)
        for _ in range(400)
    ]
    return examples + [_echo(rng) for _ in range(int(copying * len(examples)))]


def _echo(rng: Random) -> tuple[list[int], list[int]]:
    once = [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(4, 32))]
    noise = [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(0, 12))]
    return once + noise + once, [IGNORED] * (len(once) + len(noise) + 1) + once[1:]


def _bucketed(examples: Iterable[tuple[list[int], list[int]]]) -> Iterator[tuple[Tensor, Tensor]]:
    bucket: list[tuple[list[int], list[int]]] = []
    for example in sorted(examples, key=lambda pair: len(pair[0])):
        if (len(bucket) + 1) * len(example[0]) > TOKENS_PER_STEP:
            yield _padded(bucket)
            bucket = []
        bucket.append(example)
    if bucket:
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
    return torch.nn.functional.cross_entropy(
        model.lm_head(hidden_BTD[is_trained]), targets_BT[is_trained]
    )


def _rate(done: float) -> float:
    return min(1.0, done / 0.03) * (
        1.0 if done < 0.4 else 0.5 * (1 + math.cos(math.pi * (done - 0.4) / 0.6))
    )


def _plain(example: Example) -> str:
    return "\n".join((example.text, *(f"{prompt}\n{reply}" for prompt, reply in example.turns)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS, *map(int, sys.argv[2:3]))
