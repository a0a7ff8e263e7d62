"""Free self-edits: what the editor writes about a document when it is asked, split into pieces.

Zweiger et al., arXiv 2506.10943, section 4.1. Ours differs:
- long documents are written about passage by passage;
- a list item is one piece, as with the paper's newline splitting, and a question is learnt as a
  chat turn with the loss on its answer, because that is how it will be asked.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from adapters.corpus.questions import in_context
from adapters.corpus.reading import Reading
from adapters.methods.edit_prompts import edit_prompt
from adapters.sampling import Sampler
from adapters.spec import EditPrompt, SelfEditSpec
from adapters.types import EditKind, ProgressCallback, SamplingParams, SelfEdit, SourceDocument

_AT_ONCE = 8
_RULE = re.compile(r"^\s*-{3,}\s*$", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n\s*\n")
_BULLET = re.compile(r"^\s*(?:[-*+\u2022]|\(?\d{1,3}[.):])\s+")
_HEADER = re.compile(
    r"^[\s*_#]*(?:implications?|rewrites?|rewritten|version|way|paraphrase)\b[^\n:]{0,30}:[\s*_]*"
    r"(?=\n|$)|^[\s*_#]*(?:version|way|rewrite) \d+[\s*_:.]*(?=\n|$)",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"^[\s*_#]*(?:question|q)\s*\d*\s*[:.)][\s*_]*", re.IGNORECASE | re.MULTILINE
)
_ANSWER = re.compile(r"^[\s*_#]*(?:answer|a)\s*\d*\s*[:.)][\s*_]*", re.IGNORECASE | re.MULTILINE)

_KINDS = {
    EditPrompt.IMPLICATIONS: EditKind.IMPLICATION,
    EditPrompt.IMPLICATIONS_LONG: EditKind.IMPLICATION,
    EditPrompt.REWRITE: EditKind.REWRITE,
    EditPrompt.SELF_QA: EditKind.QUESTION,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """One statement, or one question with its answer."""

    text: str
    question: str | None = None


@dataclass(frozen=True, slots=True)
class PassageEdit:
    """What was written about one passage, in pieces."""

    kind: EditPrompt
    prompt: str
    passage: str
    pieces: tuple[Piece, ...]

    def as_reply(self) -> str:
        """The pieces in the form that the prompt asks for; splitting it gives them again."""
        if self.kind is EditPrompt.SELF_QA:
            return "\n".join(
                f"Question {number}: {piece.question}\nAnswer: {piece.text}"
                for number, piece in enumerate(self.pieces, start=1)
            )
        between = "\n---\n" if self.kind is EditPrompt.REWRITE else "\n"
        return between.join(piece.text for piece in self.pieces)


def write_free_edits(
    document: SourceDocument,
    prompts: Sequence[EditPrompt],
    count: int,
    *,
    editor: Sampler,
    spec: SelfEditSpec,
    seed: int,
    on_progress: ProgressCallback | None = None,
) -> list[tuple[PassageEdit, ...]]:
    """`count` edits of a document, which take the prompts in turn, each over its first passages.

    The edits are written side by side, each under a seed of its own. One that asks for nothing is
    empty.

    Raises:
        SamplingError: the engine failed.
    """
    kinds = [prompts[number % len(prompts)] for number in range(count)] if prompts else []
    passages = passages_of(document, spec.passages_per_document)

    def write(number: int) -> tuple[PassageEdit, ...]:
        kind = kinds[number]
        if kind is EditPrompt.NO_PROMPT or not passages:
            return ()
        asked = [edit_prompt(kind, title=document.title, passage=passage) for passage in passages]
        replies = editor.chat(
            [[{"role": "user", "content": prompt}] for prompt in asked],
            SamplingParams(
                max_tokens=spec.edit_tokens,
                temperature=spec.edit_temperature,
                top_p=spec.edit_top_p,
                seed=seed + number,
            ),
            on_progress=on_progress,
        )
        return tuple(
            PassageEdit(kind, prompt, passage, tuple(split_reply(kind, reply)))
            for prompt, passage, reply in zip(asked, passages, replies, strict=True)
        )

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(write, range(len(kinds))))


def passages_of(document: SourceDocument, most: int | None = None) -> list[str]:
    """The first chunks that are not empty, without white space around them."""
    return [chunk.strip() for chunk in document.chunks if chunk.strip()][:most]


def split_reply(kind: EditPrompt, reply: str) -> list[Piece]:
    """The pieces of a reply; whatever has not the form that was asked for is left out."""
    if kind is EditPrompt.SELF_QA:
        return list(_pairs(reply))
    if _RULE.search(reply):
        parts: Iterable[str] = _RULE.split(reply)
    elif kind is EditPrompt.REWRITE:
        parts = _BLANK_LINE.split(reply)
    else:
        parts = _without_introduction(reply.split("\n"))
    flat = (" ".join(_BULLET.sub("", _HEADER.sub("", part)).split()) for part in parts)
    return [Piece(part) for part in flat if part]


def as_self_edits(
    document: SourceDocument, edits: Iterable[PassageEdit], reading: Reading
) -> list[SelfEdit]:
    """What is trained on: statements under the title, questions as they would be asked."""
    return [
        SelfEdit(_KINDS[edit.kind], document.id, prompt, text, "model")
        for edit in edits
        for prompt, text in (_taught(document, piece, reading) for piece in edit.pieces)
    ]


def titled_passages(document: SourceDocument, most: int | None = None) -> list[SelfEdit]:
    """The text itself, or its first passages, each under the title."""
    return [
        SelfEdit(EditKind.PASSAGE, document.id, None, _titled(document, passage), "rule")
        for passage in passages_of(document, most)
    ]


def recall(document: SourceDocument, prompt: str, reply: str) -> PassageEdit | None:
    """What `prompt` and `as_reply` were made from; None if they no longer fit the document."""
    for passage in passages_of(document):
        for kind in _KINDS:
            if edit_prompt(kind, title=document.title, passage=passage) == prompt:
                return PassageEdit(kind, prompt, passage, tuple(split_reply(kind, reply)))
    return None


def _taught(document: SourceDocument, piece: Piece, reading: Reading) -> tuple[str | None, str]:
    if piece.question is None:
        return None, _titled(document, piece.text)
    return in_context(piece.question, reading), piece.text


def _titled(document: SourceDocument, text: str) -> str:
    return f"{document.title}\n{text}" if document.title else text


def _without_introduction(lines: Sequence[str]) -> Sequence[str]:
    """Without a first line such as "Here are some implications:"."""
    written = [line for line in lines if line.strip()]
    if len(written) > 1 and not _BULLET.match(written[0]):
        is_announced = written[0].rstrip(" *_").endswith(":")
        if is_announced or re.match(r"\s*\(?1[.):]", written[1]):
            return written[1:]
    return written


def _pairs(reply: str) -> Iterator[Piece]:
    for part in _QUESTION.split(reply)[1:]:
        question, *answers = _ANSWER.split(part, maxsplit=1)
        answer = " ".join(_BLANK_LINE.split(answers[0].strip())[0].split()) if answers else ""
        if question.strip() and answer:
            yield Piece(answer, " ".join(question.split()).strip("*_ "))
