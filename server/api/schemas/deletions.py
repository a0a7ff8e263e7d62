"""Deletions, and what followed from them."""

from datetime import datetime

from server.api.schemas.base import View
from server.api.schemas.documents import DocumentView
from server.api.schemas.keys import AuditEventView
from server.api.schemas.prompts import PromptView
from server.api.schemas.tasks import TaskView


class DeletionView(View):
    id: str
    kind: str
    """document, interaction, task or tenant."""
    target: str
    """Id of what was deleted, or the tenant's name."""
    owner: str | None
    state: str
    """open, rebuilding or done."""
    is_rebuild: bool
    """Whether versions without it were asked for."""
    versions: list[str]
    """Every version that was trained on it."""
    runs: list[str]
    """Runs that were queued to do without it."""
    reason: str
    """Why it is stuck, and what can be done; empty while it is not."""
    actor: str
    created_at: datetime
    finished_at: datetime | None


class DeletionDetail(DeletionView):
    chain: list[AuditEventView]
    """Everything that followed from it, in order."""


class DeletionPage(View):
    data: list[DeletionView]
    next: str | None
    """Cursor for `after`; null on the last page."""


class DeletedDocumentView(DocumentView):
    deletion: DeletionView


class DeletedTaskView(TaskView):
    deletion: DeletionView


class DeletedPromptView(PromptView):
    deletion: DeletionView


class DeletedView(View):
    id: str
    deleted: bool = True


class ForgottenView(DeletedView):
    deletion: DeletionView
