"""What of a free edit may be taught: only what the text bears out, by rule and by a second look.

The rules come first, because they cost nothing and a model's yes is worth little where the model is
small. What they leave is asked of the base model, which is shown the passage: of a statement,
whether it is true; of a question, its answer, which must hold the one that was written. Who says no
to every statement is asked about the text's own sentences, too: a model that denies those is no judge
(SmolLM2-135M denies all), and the count says so.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from adapters.corpus.grounding import Source
from adapters.corpus.sentences import split_sentences
from adapters.evaluation.form import is_sound
from adapters.evaluation.open_book import open_book
from adapters.methods.edit_prompts import AGREES
from adapters.methods.free_edits import PassageEdit, Piece
from adapters.methods.held_out import HeldOut
from adapters.rewards.answers import is_correct, normalise, says_yes
from adapters.sampling import Sampler
from adapters.types import ProgressCallback, SamplingParams, SourceDocument

_LEAST_WORDS = 3
_ENDS = re.compile(r"[.!?\u2026][\"'\u201d\u2019)*_]*$")
_OPEN_END = re.compile(r"[,;:\u2013\u2014-]$")
_YES_TOKENS = 4
_ANSWER_TOKENS = 32
_OWN_SENTENCES = 4

NOT_SO = "not so, says the model that was shown the text"
NO_JUDGE = "cannot be judged: the model denies the text's own sentences, too"


@dataclass(frozen=True, slots=True)
class Grounded:
    """What is left of an edit, by passage, and why the rest is not: pieces counted by reason."""

    edits: tuple[PassageEdit, ...]
    dropped: Counter[str]


@dataclass(slots=True)
class _Look:
    """A piece under examination; `fault` is why it is dropped."""

    edit: PassageEdit
    piece: Piece
    is_last: bool
    fault: str | None = None


def ground(
    document: SourceDocument,
    candidates: Sequence[Sequence[PassageEdit]],
    *,
    reader: Sampler,
    exam: HeldOut,
    is_apart: bool = False,
    needs_agreement: bool = True,
    on_progress: ProgressCallback | None = None,
) -> list[Grounded]:
    """What of each candidate is true to the document, in their order.

    Args:
        reader: who is shown the text and asked; the base model.
        exam: no question of it is left.
        is_apart: candidates are judged each alone; else a piece counts once over all of them.
        needs_agreement: the reader must call a statement true; else the rules alone decide of it.

    Raises:
        SamplingError: the engine failed.
    """
    source = Source(f"{document.title}\n\n{document.text}")
    looks = [
        [
            _Look(edit, piece, number == len(edit.pieces))
            for edit in candidate
            for number, piece in enumerate(edit.pieces, start=1)
        ]
        for candidate in candidates
    ]
    seen: set[str] = set()
    for mine in looks:
        if is_apart:
            seen = set()
        for look in mine:
            look.fault = _fault_by_rule(look, source, exam, seen)
    # A second look costs a request, and candidates of one model often say the same.
    left = [look for mine in looks for look in mine if look.fault is None]
    if needs_agreement:
        _judge([each for each in left if each.piece.question is None], reader, on_progress)
    _answer([each for each in left if each.piece.question is not None], reader, on_progress)
    return [_summed(candidate, mine) for candidate, mine in zip(candidates, looks, strict=True)]


def _fault_by_rule(look: _Look, source: Source, exam: HeldOut, seen: set[str]) -> str | None:
    piece = look.piece
    whole = f"{piece.question or ''} {piece.text}".strip()
    key = normalise(piece.question or piece.text)
    fault = _fault_of_form(look, whole) or source.fault_of(piece.text)
    if fault is None and piece.question is not None:
        fault = source.fault_of(piece.question)
        if fault is None and exam.covers(piece.question):
            return "asked in the exam"
    if fault is not None:
        return str(fault)
    if key in seen or key == normalise(look.edit.passage):
        return "repeats another"
    seen.add(key)
    return None


def _fault_of_form(look: _Look, whole: str) -> str | None:
    piece = look.piece
    if not normalise(piece.text):
        return "empty"
    if len(normalise(piece.question or piece.text).split()) < _LEAST_WORDS:
        return "too short"
    if not is_sound(whole):
        return "repeats itself"
    if "?" in piece.text:  # one that the exam asks would be taught with what is said beside it
        return "holds a question"
    if piece.question is None:
        # Only the last item of a list may have met the limit; others may lack their full stop.
        is_cut = _OPEN_END.search(piece.text) or (look.is_last and not _ENDS.search(piece.text))
        return "breaks off" if is_cut else None
    if not piece.question.endswith("?") or piece.question.count("?") > 1:
        return "not one question"
    return "gives the answer away" if is_correct(piece.question, [piece.text]) else None


def _judge(
    statements: Sequence[_Look], reader: Sampler, on_progress: ProgressCallback | None
) -> None:
    """Ask the reader whether each statement is true."""
    _ask(
        statements,
        lambda look: AGREES.format(passage=look.edit.passage, statement=look.piece.text),
        lambda look, reply: says_yes(reply),
        NOT_SO,
        reader=reader,
        params=SamplingParams(max_tokens=_YES_TOKENS),
        on_progress=on_progress,
    )
    if statements and all(look.fault for look in statements) and _denies_all(statements, reader):
        for look in statements:
            look.fault = NO_JUDGE


def _denies_all(statements: Sequence[_Look], reader: Sampler) -> bool:
    """Whether the reader calls most of the texts' own first sentences untrue as well."""
    passages = dict.fromkeys(look.edit.passage for look in statements)
    prompts = [
        AGREES.format(passage=passage, statement=sentence)
        for passage in passages
        for sentence in split_sentences(passage)[:_OWN_SENTENCES]
    ]
    replies = reader.chat(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        SamplingParams(max_tokens=_YES_TOKENS),
    )
    return 2 * sum(map(says_yes, replies)) < len(prompts)


def _answer(
    questions: Sequence[_Look], reader: Sampler, on_progress: ProgressCallback | None
) -> None:
    """Ask the reader each question, which it must answer from the text as it was written."""
    _ask(
        questions,
        lambda look: open_book(look.edit.passage, look.piece.question or ""),
        lambda look, reply: is_correct(reply, [look.piece.text]),
        "answered otherwise from the text",
        reader=reader,
        params=SamplingParams(max_tokens=_ANSWER_TOKENS, stop=("\n",)),
        on_progress=on_progress,
    )


def _ask(
    looks: Sequence[_Look],
    prompt_of: Callable[[_Look], str],
    holds: Callable[[_Look, str], bool],
    fault: str,
    *,
    reader: Sampler,
    params: SamplingParams,
    on_progress: ProgressCallback | None,
) -> None:
    prompts = list(dict.fromkeys(map(prompt_of, looks)))
    if not prompts:
        return
    replies = reader.chat(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        params,
        on_progress=on_progress,
    )
    said = dict(zip(prompts, replies, strict=True))
    for look in looks:
        if not holds(look, said[prompt_of(look)]):
            look.fault = fault


def _summed(candidate: Sequence[PassageEdit], looks: Sequence[_Look]) -> Grounded:
    dropped = Counter(look.fault for look in looks if look.fault is not None)
    dropped["not in the form asked for"] += sum(not edit.pieces for edit in candidate)
    return Grounded(tuple(_kept(candidate, looks)), +dropped)


def _kept(candidate: Sequence[PassageEdit], looks: Sequence[_Look]) -> Iterator[PassageEdit]:
    for edit in candidate:
        pieces = tuple(look.piece for look in looks if look.edit is edit and look.fault is None)
        if pieces:
            yield replace(edit, pieces=pieces)
