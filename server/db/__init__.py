"""Tables and sessions; the only place that commits. Holds no rule."""

from server.db.access import ApiKey
from server.db.adapters import Adapter, AdapterVersion, Alias, AliasEvent, VersionStatus
from server.db.base import Base
from server.db.corpus import Chunk, Document, DocumentState, ExamQuestion
from server.db.evaluations import Evaluation, EvaluationResult
from server.db.interactions import Interaction, Outcome
from server.db.runs import AdaptationPolicy, AdaptationRun, RunDocument, RunEvent, RunStatus

__all__ = [
    "AdaptationPolicy",
    "AdaptationRun",
    "Adapter",
    "AdapterVersion",
    "Alias",
    "AliasEvent",
    "ApiKey",
    "Base",
    "Chunk",
    "Document",
    "DocumentState",
    "Evaluation",
    "EvaluationResult",
    "ExamQuestion",
    "Interaction",
    "Outcome",
    "RunDocument",
    "RunEvent",
    "RunStatus",
    "VersionStatus",
]
