"""The prompts and opinions of a run: fixed at its first attempt, the same at every later one.

What a run has taken stands in ``run_prompts`` and ``run_interactions``, so that whoever deletes it
finds every version that has seen it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session

from adapters.redaction import Redactor, redact
from adapters.spec import METHOD_CONFIG, CorrectionsConfig, MethodConfig, PromptSettings
from adapters.types import Opinion, Prompt
from server.core.clock import utc_now
from server.core.errors import NoPrompts
from server.db import (
    AdaptationRun,
    Adapter,
    FeedbackKind,
    RunEvent,
    RunInteraction,
    RunPrompt,
    Use,
)
from server.db import Prompt as PromptRow
from server.services import experience, prompts, runs
from server.services.experience import Experience, Window
from server.services.policy_rules import MaterialSpec
from server.services.prompt_selection import Candidate, Rules, Selection, choose, words_key
from server.services.runs import Claim

PROMPTS_TAKEN = "prompts_taken"
"""Event of a run: what it took, and what it left out and why."""

GONE = "deleted since the run was begun"

_LOOKED_AT = 2
"""So many times as many candidates are read as a run takes: some say the same."""


@dataclass(frozen=True, slots=True)
class TakenPrompts:
    """What a run learns from, and is asked in its exam; redacted."""

    train: tuple[Prompt, ...]
    """Ids are those of rows in ``prompts``, or of interactions."""
    held_out: tuple[Prompt, ...]
    """For the exam; no prompt of ``train`` asks the same."""
    opinions: tuple[Opinion, ...]
    """On replies to prompts that are not held out."""
    left_out: dict[str, int]
    """How many prompts and opinions were not taken, by a short closed phrase that says why."""


def prompts_of(
    session: Session,
    owned: Claim,
    *,
    asked: Collection[str] = (),
    redactor: Redactor = redact,
) -> TakenPrompts:
    """What the run learns from: chosen at the first call, the same at every later one.

    None of it can be deleted before this transaction ends. Prompts that carry instructions to the
    learner are among them: who reads texts leaves them out.

    Args:
        asked: prompts of the general suite, near copies of which are not taught.

    Raises:
        NoPrompts: there is nothing that the run may learn from.
    """
    take_prompts(session, owned, asked=asked, redactor=redactor)
    return _taken(session, owned, redactor)


def held_out_of(
    session: Session, run_id: str, *, redactor: Redactor = redact
) -> tuple[Prompt, ...]:
    """What a run holds out for exams, its own and those of later versions, and is not deleted since.

    Where it learns from corrections, what a user corrected a reply to is the prompt's answer.
    """
    run = runs.get_run(session, run_id)
    config: MethodConfig = METHOD_CONFIG.validate_python(run.config)
    rules = rules_of(spec_of(run.material), config)
    sent = [
        each.prompt
        for each in (_uploaded(row, redactor) for row in _rows_of(session, run_id))
        if each.is_held_out(rules)
    ]
    gate = [key for key, use in _uses(session, run_id).items() if use == Use.GATE]
    heard = []
    for row in experience.again(session, runs.line_of(session, run), gate, redactor=redactor):
        prompt = _prompt(row)
        if isinstance(prompt, Prompt):
            said = _opinion(row, prompt)
            if isinstance(config, CorrectionsConfig) and said and said.correction:
                prompt = replace(prompt, answers=(said.correction,))
            heard.append(prompt)
    return (*sent, *heard)


def take_prompts(
    session: Session,
    owned: Claim,
    *,
    asked: Collection[str] = (),
    redactor: Redactor = redact,
) -> None:
    """Fix what the run learns from; nothing changes where that was done.

    Raises:
        NoPrompts: there is nothing.
    """
    if _event(session, owned.run_id) is not None:
        runs.lock_material(session, owned.run_id)
        return
    run = runs.get_run(session, owned.run_id)
    adapter = runs.line_of(session, run)
    spec = spec_of(run.material)
    config: MethodConfig = METHOD_CONFIG.validate_python(run.config)
    found = gather(session, adapter, spec, config, asked=asked, redactor=redactor)
    if not found.train and not found.opinions:
        raise NoPrompts(adapter.name)
    there = _locked(session, found)
    _store(session, owned.run_id, adapter, found, there)
    counts = {
        "train": len(found.train),
        "held_out": len(found.held_out),
        "opinions": len(found.opinions),
    }
    runs.add_event(
        session, owned.run_id, owned.attempt, PROMPTS_TAKEN, **counts, left_out=found.left_out
    )
    session.flush()


def spec_of(material: dict[str, object]) -> MaterialSpec:
    """The material of a run or policy as it was stored."""
    return MaterialSpec.model_validate(material)


def gather(
    session: Session,
    adapter: Adapter,
    spec: MaterialSpec,
    config: MethodConfig,
    *,
    asked: Collection[str] = (),
    redactor: Redactor = redact,
    now: datetime | None = None,
) -> Selection:
    """What a run of the line would take now; changes nothing. A second of CPU for a thousand."""
    since, until = window_of(spec, now or utc_now())
    limit = _LOOKED_AT * spec.most
    left_out: Counter[str] = Counter()
    heard = Window(spec.tag, since, until)
    sent: list[Candidate] = []
    if spec.sources != "traffic":
        sent += _sent(session, adapter, spec, since, until, limit, redactor)
    traffic: list[Candidate] = []
    if spec.sources != "uploaded":
        rows = experience.newest(session, adapter, heard, limit=limit, redactor=redactor)
        traffic = _candidates(rows, left_out)
    judged: list[Candidate] = []
    if spec.kind == "feedback":
        heard = Window(spec.tag, since, until, is_judged=True)
        rows = experience.newest(session, adapter, heard, limit=limit, redactor=redactor)
        judged = [each for each in _candidates(rows, Counter()) if each.opinion is not None]
    else:
        judged = [each for each in traffic if each.opinion is not None]
    found = choose([*sent, *traffic], judged, rules_of(spec, config, asked), left_out)
    if spec.kind == "feedback":  # the prompts are there for the exam alone
        return Selection((), found.held_out, found.opinions, found.left_out)
    return found


def keys_of(session: Session, run: AdaptationRun, *, redactor: Redactor = redact) -> set[str]:
    """By which the prompts that a run was taught are known again; of those that are still there."""
    sent = [prompts.redacted(row, redactor) for row in _rows_of(session, run.id)]
    taught = [key for key, use in _uses(session, run.id).items() if use in (Use.TRAIN, Use.BOTH)]
    rows = experience.again(session, runs.line_of(session, run), taught, redactor=redactor)
    heard = [prompt for prompt in map(_prompt, rows) if isinstance(prompt, Prompt)]
    return {prompts.turn_key(each.messages) for each in (*sent, *heard)}


def rules_of(spec: MaterialSpec, config: MethodConfig, asked: Collection[str] = ()) -> Rules:
    """How a run with this config chooses."""
    kept = config if isinstance(config, PromptSettings) else PromptSettings()
    return Rules(
        held_out=kept.prompt_exam.share,
        per_user=kept.prompts_per_user,
        most=spec.most,
        asked=frozenset(words_key(text) for text in asked),
    )


def window_of(spec: MaterialSpec, now: datetime) -> tuple[datetime | None, datetime]:
    """Between which moments the material came."""
    since = now - timedelta(days=spec.max_age_days) if spec.max_age_days else None
    return since, now - timedelta(hours=spec.min_age_hours)


def is_learnable(
    adapter: Adapter, spec: MaterialSpec, since: datetime | None, until: datetime
) -> ColumnElement[bool]:
    """The condition under which a line may take a prompt that was sent for learning."""
    conditions = [
        PromptRow.owner.is_not_distinct_from(adapter.owner),
        PromptRow.deleted_at.is_(None),
        PromptRow.created_at <= until,
    ]
    if since is not None:
        conditions.append(PromptRow.created_at >= since)
    if spec.tag is not None:
        conditions.append(PromptRow.tag == spec.tag)
    return and_(*conditions)


def _sent(
    session: Session,
    adapter: Adapter,
    spec: MaterialSpec,
    since: datetime | None,
    until: datetime,
    limit: int,
    redactor: Redactor,
) -> list[Candidate]:
    rows = session.scalars(
        select(PromptRow)
        .where(is_learnable(adapter, spec, since, until))
        .order_by(PromptRow.created_at.desc(), PromptRow.id.desc())
        .limit(limit)
    )
    return [_uploaded(row, redactor) for row in rows]


def _uploaded(row: PromptRow, redactor: Redactor) -> Candidate:
    return Candidate(
        prompts.redacted(row, redactor), is_gate=row.split != prompts.TRAIN, is_uploaded=True
    )


def _candidates(rows: Iterable[Experience], left_out: Counter[str]) -> list[Candidate]:
    found = []
    for row in rows:
        prompt = _prompt(row)
        if isinstance(prompt, str):
            left_out[prompt] += 1
        else:
            found.append(_heard(row, prompt))
    return found


def _heard(row: Experience, prompt: Prompt) -> Candidate:
    liked = [each.created_at for each in _on_first_choice(row) if _is_liked(each) is not None]
    corrected = [each.created_at for each in _on_first_choice(row) if _correction(each)]
    return Candidate(
        prompt,
        is_gate=row.split != prompts.TRAIN,
        opinion=_opinion(row, prompt),
        liked_at=max(liked, default=None),
        corrected_at=max(corrected, default=None),
        reply=row.reply,
        version=row.version,
    )


def _prompt(row: Experience) -> Prompt | str:
    """The prompt of an interaction, or why it is none."""
    messages = prompts.plain_messages(row.messages)
    if isinstance(messages, str):
        return messages
    return Prompt(
        id=row.interaction_id,
        messages=messages,
        tag=row.task_tag,
        asked_by=row.end_user or row.key_id,
    )


def _opinion(row: Experience, prompt: Prompt, until: datetime | None = None) -> Opinion | None:
    """What was said of the first choice, the latest word of each kind; None: nothing that counts."""
    is_liked: bool | None = None
    correction: str | None = None
    for given in _on_first_choice(row):
        if until is not None and given.created_at > until:
            continue
        liked = _is_liked(given)
        is_liked = is_liked if liked is None else liked
        correction = _correction(given) or correction
    is_call = row.finish_reason == "tool_calls"  # its text is the calls as JSON
    if not row.reply or is_call or (is_liked is None and correction is None):
        return None
    return Opinion(prompt, row.reply, row.version, is_liked, correction)


def _on_first_choice(row: Experience) -> list[experience.Opinion]:
    """What was said of the choice that is learnt from, oldest first."""
    return [each for each in row.feedback if each.choice == 0]


def _is_liked(given: experience.Opinion) -> bool | None:
    """Whether it is for or against the reply; None: neither."""
    if given.kind == FeedbackKind.THUMB:
        return given.value.get("thumb") == "up"
    if given.kind == FeedbackKind.SCORE and (score := given.value.get("score")):
        return bool(score > 0)
    return None


def _correction(given: experience.Opinion) -> str | None:
    return given.value.get("text") if given.kind == FeedbackKind.CORRECTION else None


def _locked(session: Session, found: Selection) -> set[str]:
    """Ids of what is still there, and cannot be deleted before this transaction ends."""
    chosen = [*found.train, *found.held_out, *found.opinions]
    sent = sorted({each.prompt.id for each in chosen if each.is_uploaded})
    heard = sorted({each.prompt.id for each in chosen if not each.is_uploaded})
    return runs.lock_prompts(session, sent) | runs.lock_interactions(session, heard)


def _store(
    session: Session, run_id: str, adapter: Adapter, found: Selection, there: set[str]
) -> None:
    taken = {each.prompt.id: each for each in (*found.train, *found.held_out)}
    session.add_all(
        RunPrompt(run_id=run_id, prompt_id=each.prompt.id)
        for each in taken.values()
        if each.is_uploaded and each.prompt.id in there
    )
    uses = {each.prompt.id: Use.TRAIN for each in found.train if not each.is_uploaded}
    uses |= {each.prompt.id: Use.GATE for each in found.held_out if not each.is_uploaded}
    for each in found.opinions:
        is_trained = each.prompt.id in uses
        uses[each.prompt.id] = Use.BOTH if is_trained else Use.OPINION
    session.add_all(
        RunInteraction(run_id=run_id, interaction_id=key, owner=adapter.owner, use=use)
        for key, use in uses.items()
        if key in there
    )


def _taken(session: Session, owned: Claim, redactor: Redactor) -> TakenPrompts:
    """What the rows of the run say, in the order of ids."""
    run = runs.get_run(session, owned.run_id)
    adapter = runs.line_of(session, run)
    event = _event(session, owned.run_id)
    left_out: Counter[str] = Counter(event.data["left_out"] if event else {})
    rows = session.scalars(
        select(PromptRow)
        .join(RunPrompt, RunPrompt.prompt_id == PromptRow.id)
        .where(RunPrompt.run_id == owned.run_id)
        .order_by(PromptRow.id)
    ).all()
    live = [row for row in rows if row.deleted_at is None]
    left_out[GONE] += len(rows) - len(live)
    config: MethodConfig = METHOD_CONFIG.validate_python(run.config)
    rules = rules_of(spec_of(run.material), config)
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for each in (_uploaded(row, redactor) for row in live):
        (held_out if each.is_held_out(rules) else train).append(each.prompt)
    opinions: list[Opinion] = []
    uses = _uses(session, owned.run_id)
    heard = experience.again(session, adapter, sorted(uses), redactor=redactor)
    left_out[GONE] += len(uses) - len(heard)
    said_until = event.created_at if event else None
    for row in heard:
        prompt = _prompt(row)
        if isinstance(prompt, str):  # read by newer rules than it was taken by
            left_out[prompt] += 1
            continue
        use = uses[row.interaction_id]
        if use == Use.GATE:
            held_out.append(prompt)
        if use in (Use.TRAIN, Use.BOTH):
            train.append(prompt)
        if use in (Use.OPINION, Use.BOTH) and (said := _opinion(row, prompt, said_until)):
            opinions.append(said)
    counts = {reason: count for reason, count in left_out.items() if count}
    return TakenPrompts(tuple(train), tuple(held_out), tuple(opinions), counts)


def _rows_of(session: Session, run_id: str) -> Sequence[PromptRow]:
    """The prompts sent for learning that a run took, and are not deleted since."""
    return session.scalars(
        select(PromptRow)
        .join(RunPrompt, RunPrompt.prompt_id == PromptRow.id)
        .where(RunPrompt.run_id == run_id, PromptRow.deleted_at.is_(None))
        .order_by(PromptRow.id)
    ).all()


def _uses(session: Session, run_id: str) -> dict[str, str]:
    rows = session.execute(
        select(RunInteraction.interaction_id, RunInteraction.use).where(
            RunInteraction.run_id == run_id, RunInteraction.use.is_not(None)
        )
    )
    return {key: use for key, use in rows if use is not None}


def _event(session: Session, run_id: str) -> RunEvent | None:
    return session.scalar(
        select(RunEvent).where(RunEvent.run_id == run_id, RunEvent.kind == PROMPTS_TAKEN).limit(1)
    )
