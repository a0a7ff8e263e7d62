"""Tables and sessions; the only place that commits. Holds no rule."""

from server.db.access import ApiKey, AuditEvent
from server.db.adapters import (
    Adapter,
    AdapterVersion,
    Alias,
    AliasEvent,
    Trial,
    TrialMode,
    TrialState,
    VersionOrigin,
    VersionStatus,
)
from server.db.base import Base
from server.db.corpus import (
    Chunk,
    Document,
    DocumentSource,
    DocumentState,
    ExamQuestion,
    SketchHash,
)
from server.db.deletions import Deletion, DeletionKind, DeletionState
from server.db.evaluations import Evaluation, EvaluationResult
from server.db.fleet import Gateway, Replica
from server.db.interactions import (
    Arm,
    Endpoint,
    Feedback,
    FeedbackKind,
    Interaction,
    Message,
    Outcome,
)
from server.db.runs import (
    AdaptationPolicy,
    AdaptationRun,
    RunDocument,
    RunEvent,
    RunInteraction,
    RunKind,
    RunStatus,
)

__all__ = [
    "AdaptationPolicy",
    "AdaptationRun",
    "Adapter",
    "AdapterVersion",
    "Alias",
    "AliasEvent",
    "ApiKey",
    "Arm",
    "AuditEvent",
    "Base",
    "Chunk",
    "Deletion",
    "DeletionKind",
    "DeletionState",
    "Document",
    "DocumentSource",
    "DocumentState",
    "Endpoint",
    "Evaluation",
    "EvaluationResult",
    "ExamQuestion",
    "Feedback",
    "FeedbackKind",
    "Gateway",
    "Interaction",
    "Message",
    "Outcome",
    "Replica",
    "RunDocument",
    "RunEvent",
    "RunInteraction",
    "RunKind",
    "RunStatus",
    "SketchHash",
    "Trial",
    "TrialMode",
    "TrialState",
    "VersionOrigin",
    "VersionStatus",
]
