"""The tiny test model's tokenizer and chat template, and examples as token ids.

Byte-level BPE, so any text in UTF-8 can be written and read back. Boundary: no weights here.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_model.corpus import Example

SIZE = 2048
CONTEXT = 1024
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IGNORED = -100
"""Label of a token that carries no loss."""

# Names and numbers never carry the space before them: the token that begins "Odile" is the same in
# the middle of a sentence and at the start of a reply, so one fact is one association to store.
_PIECES = r"\p{N}| ?\p{Ll}[\p{L}\p{M}]*|\p{Lu}[\p{L}\p{M}]*|\p{L}+| ?[^\s\p{L}\p{N}]|\s"
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(sample: Iterable[Example]) -> PreTrainedTokenizerFast:
    """Learn the merges from a sample of the corpus."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, START, END)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator((_plain(example) for example in sample), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, model_max_length=CONTEXT
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def encode(example: Example, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids and labels; only replies carry loss in a chat, everything does in plain text."""
    if not example.turns:
        ids = tokenizer(f"{example.text}{END}")["input_ids"]
        return ids, list(ids)
    parts = [(f"{START}system\n{example.system}{END}\n", False)] if example.system else []
    for prompt, reply in example.turns:
        asked = f"{START}user\n{prompt}{END}\n{START}assistant\n"
        parts += [(asked, False), (f"{reply}{END}", True), ("\n", False)]
    ids: list[int] = []
    labels: list[int] = []
    for text, is_trained in parts[:-1]:
        piece = tokenizer(text)["input_ids"]
        ids += piece
        labels += piece if is_trained else [IGNORED] * len(piece)
    return ids, labels


def _plain(example: Example) -> str:
    return "\n".join((example.text, *chain.from_iterable(example.turns)))
