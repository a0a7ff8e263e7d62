"""What the outer loop keeps, and who learns from it.

Accepted edits are taught again by later runs of their line, and are what the line's editor is
trained on: a line of its own that writes self-edits, and that users cannot ask for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from adapters.spec import SealConfig, SealEditorConfig, editor_config
from server.core.clock import new_id
from server.core.errors import InvalidRequest, NoAcceptedEdits
from server.core.queue import Queue
from server.core.settings import LearningSettings
from server.db import (
    AcceptedEdit,
    AdaptationPolicy,
    AdaptationRun,
    Adapter,
    Document,
    LineRole,
)
from server.services import bootstrap, policies, policy_timing, promotion, registry, runs, taint
from server.services.runs import Claim


@dataclass(frozen=True, slots=True)
class Found:
    """An edit of one passage of a document, with the columns of AcceptedEdit."""

    document_id: str
    prompt: str
    text: str
    score: float
    base_score: float


def keep(session: Session, owned: Claim, found: Iterable[Found]) -> list[AcceptedEdit]:
    """Store what a run has found, in place of what an earlier attempt of it stored.

    Nothing is kept of a document that was deleted meanwhile, nor of a run that saw a deletion: the
    same text sent anew is a new document, which asked for nothing to be remembered.

    Raises:
        LeaseLost: the run belongs to another worker by now.
    """
    runs.assert_owned(session, owned)
    session.execute(delete(AcceptedEdit).where(AcceptedEdit.run_id == owned.run_id))
    found = list(found)
    if not found or taint.deletion_seen_by(session, owned.run_id):
        return []
    live = select(Document.id).where(
        Document.id.in_({each.document_id for each in found}), Document.deleted_at.is_(None)
    )
    # In the order of ids, as everybody locks them: a deletion waits, and then finds the rows.
    known = set(session.scalars(live.order_by(Document.id).with_for_update()))
    line = runs.get_run(session, owned.run_id).adapter_id
    rows = [
        AcceptedEdit(id=new_id("edt"), adapter_id=line, run_id=owned.run_id, **asdict(each))
        for each in found
        if each.document_id in known
    ]
    session.add_all(rows)
    return rows


def accepted_edits(
    session: Session, adapter_id: str, document_ids: Iterable[str]
) -> list[AcceptedEdit]:
    """Of each of these documents what the line's latest run that kept any has kept, in order."""
    rows: Sequence[AcceptedEdit] = session.scalars(
        select(AcceptedEdit)
        .where(
            AcceptedEdit.adapter_id == adapter_id,
            AcceptedEdit.document_id.in_(list(document_ids)),
        )
        .order_by(AcceptedEdit.document_id, AcceptedEdit.id)
    ).all()
    latest = {row.document_id: row.run_id for row in rows}
    return [row for row in rows if row.run_id == latest[row.document_id]]


def editor_of(session: Session, line: Adapter) -> Adapter | None:
    """The line that writes self-edits for ``line``, once there is one."""
    return session.scalar(select(Adapter).where(Adapter.edits_for == line.id))


def editor_engine_name(session: Session, line: Adapter) -> str | None:
    """What the engine calls the champion of the line's editor.

    None where there is none, or where it was trained on something that was deleted since: what it
    writes may say what was deleted.
    """
    editor = editor_of(session, line)
    champion = promotion.champion(session, editor) if editor else None
    if editor is None or champion is None or taint.is_tainted(session, champion):
        return None
    return registry.engine_name(editor.name, champion)


def queue_editor_run(
    session: Session, line: Adapter, config: SealEditorConfig, *, requested_by: str, queue: Queue
) -> tuple[AdaptationRun, bool]:
    """Ask for a run that trains the line's editor; its open run is returned instead.

    Raises:
        InvalidRequest: ``line`` is an editor itself.
        NoAcceptedEdits: no run of the line has kept an edit.
    """
    if line.role == LineRole.EDITOR:
        raise InvalidRequest(
            f"{line.name} is an editor; name the line that it writes for.", "adapter"
        )
    if not _count(session, line):
        raise NoAcceptedEdits(line.name)
    return runs.queue_run(
        session,
        _ensure_editor(session, line),
        method=config.type,
        config=config.model_dump(mode="json"),
        requested_by=requested_by,
        queue=queue,
    )


def queue_due_editors(
    session: Session, settings: LearningSettings, *, queue: Queue
) -> list[AdaptationRun]:
    """Start what is due: so many edits were accepted since the line's editor was last trained."""
    started = []
    enabled = session.execute(
        select(AdaptationPolicy, Adapter)
        .join(Adapter, Adapter.id == AdaptationPolicy.adapter_id)
        .where(AdaptationPolicy.is_enabled, AdaptationPolicy.trigger == policy_timing.NEW_DOCUMENTS)
    ).all()
    for policy, line in enabled:
        inner = policies.resolved_config(policy, settings)
        if not isinstance(inner, SealConfig) or not inner.outer.is_enabled:
            continue
        if _unseen(session, line) < inner.outer.editor_after:
            continue
        run, is_new = queue_editor_run(
            session,
            line,
            editor_config(inner),
            requested_by=f"policy:{policy.name}",
            queue=queue,
        )
        if is_new:
            started.append(run)
    return started


def _ensure_editor(session: Session, line: Adapter) -> Adapter:
    session.get_one(Adapter, line.id, with_for_update=True)  # one maker at a time
    editor = editor_of(session, line)
    if editor is not None:
        return editor
    name = f"{line.name}-editor"
    if session.scalar(select(Adapter.id).where(Adapter.name == name)) is not None:
        name = f"{name}-{line.id[-8:]}"  # somebody has a line of that name
    return bootstrap.add_line(
        session,
        name,
        owner=line.owner,
        base_model=line.base_model,
        base_path=line.base_path,
        base_hash=line.base_hash,
        role=LineRole.EDITOR,
        edits_for=line.id,
    )


def _unseen(session: Session, line: Adapter) -> int:
    """How many edits were accepted since a run of the editor was last queued."""
    editor = editor_of(session, line)
    last = editor and session.scalar(
        select(func.max(AdaptationRun.created_at)).where(AdaptationRun.adapter_id == editor.id)
    )
    return _count(session, line, *((AcceptedEdit.created_at > last,) if last else ()))


def _count(session: Session, line: Adapter, *conditions: ColumnElement[bool]) -> int:
    statement = select(func.count()).where(AcceptedEdit.adapter_id == line.id, *conditions)
    return session.scalar(statement) or 0
