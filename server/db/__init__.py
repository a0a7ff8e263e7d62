"""Tables and sessions; the only place that commits. Holds no rule."""

from server.db.access import ApiKey, AuditEvent
from server.db.adapters import Adapter, AdapterVersion, Alias, AliasEvent, VersionStatus
from server.db.base import Base
from server.db.corpus import (
    Chunk,
    Document,
    DocumentSource,
    DocumentState,
    ExamQuestion,
    SketchHash,
)
from server.db.evaluations import Evaluation, EvaluationResult
from server.db.interactions import (
    Endpoint,
    Feedback,
    FeedbackKind,
    Interaction,
    Message,
    Outcome,
)
from server.db.runs import AdaptationPolicy, AdaptationRun, RunDocument, RunEvent, RunStatus

__all__ = [
    "AdaptationPolicy",
    "AdaptationRun",
    "Adapter",
    "AdapterVersion",
    "Alias",
    "AliasEvent",
    "ApiKey",
    "AuditEvent",
    "Base",
    "Chunk",
    "Document",
    "DocumentSource",
    "DocumentState",
    "Endpoint",
    "Evaluation",
    "EvaluationResult",
    "ExamQuestion",
    "Feedback",
    "FeedbackKind",
    "Interaction",
    "Message",
    "Outcome",
    "RunDocument",
    "RunEvent",
    "RunStatus",
    "SketchHash",
    "VersionStatus",
]
