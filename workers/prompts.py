"""Which prompts a run may be taught, and which ones ask whether an earlier skill is still there."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from adapters.corpus.instructions import find_suspects
from adapters.evaluation.general import load_general_suite
from adapters.redaction import Redactor, redact
from adapters.spec import METHOD_CONFIG, PromptSettings
from adapters.types import Opinion, Prompt
from server.db import AdaptationRun, AdapterVersion
from server.services import prompt_material, registry, runs

HELD_OUT = "asked in the exam"
ORDERS = "instructions to the learner"
NOTHING_ASKED = "nothing is asked"


@dataclass(frozen=True, slots=True)
class EarlierPrompts:
    """What a run that the champion comes from has held out, and by which config it was marked."""

    run_id: str
    config: PromptSettings
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Teachable:
    """What may be taught, and how much may not, by reason."""

    prompts: tuple[Prompt, ...]
    opinions: tuple[Opinion, ...]
    left_out: Mapping[str, int]


def teachable(
    prompts: Iterable[Prompt],
    opinions: Iterable[Opinion],
    *,
    held_out: Iterable[Prompt],
    general_suite: Path | None = None,
) -> Teachable:
    """Without what the exam asks, and without what speaks to the learner.

    Prompts are often alike, "What is 3 + 5?" and "What is 3 + 6?", so that only the same words are
    the same question.
    """
    asked = {_plain(item.prompt) for item in load_general_suite(general_suite)}
    asked |= {_plain(last_turn(prompt)) for prompt in held_out}
    left_out: Counter[str] = Counter()

    def fits(prompt: Prompt, *more: str) -> bool:
        fault = _fault_of(prompt, more, asked)
        if fault is not None:
            left_out[fault] += 1
        return fault is None

    return Teachable(
        tuple(prompt for prompt in prompts if fits(prompt)),
        tuple(each for each in opinions if fits(each.prompt, each.correction or "")),
        left_out,
    )


def earlier_prompts(
    session: Session, version: AdapterVersion | None, redactor: Redactor = redact
) -> tuple[EarlierPrompts, ...]:
    """What the runs held out that a version comes from, as far as it is not deleted; newest first.

    One entry for each run that learnt from prompts, back to the last that began at the base.
    """
    found = []
    for run in _runs_behind(session, version):
        if run.method in runs.PROMPT_METHODS:
            config = METHOD_CONFIG.validate_python(run.config)
            assert isinstance(config, PromptSettings)
            held_out = prompt_material.held_out_of(session, run.id, redactor=redactor)
            found.append(EarlierPrompts(run.id, config, held_out))
    return tuple(found)


def last_turn(prompt: Prompt) -> str:
    """What is asked at last; empty where nothing is."""
    return prompt.messages[-1]["content"] if prompt.messages else ""


def _runs_behind(session: Session, version: AdapterVersion | None) -> Iterator[AdaptationRun]:
    seen: set[str] = set()
    while version is not None and version.id not in seen:
        seen.add(version.id)
        if version.run_id is not None:
            yield runs.get_run(session, version.run_id)
        version = registry.by_id(session, version.parent_id) if version.parent_id else None


def _fault_of(prompt: Prompt, more: Sequence[str], asked: set[str]) -> str | None:
    last = last_turn(prompt)
    if not last.strip():
        return NOTHING_ASKED
    if _plain(last) in asked:
        return HELD_OUT
    said = [each["content"] for each in prompt.messages if each["role"] == "user"]
    if any(find_suspects(text, is_prompt=True) for text in said):
        return ORDERS
    if any(map(find_suspects, more)):
        return ORDERS
    return None


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
