"""Every error the service raises on purpose. An unexpected exception is the only 500.

AppError
├── InvalidRequest 400
│   ├── UnknownField
│   ├── ContextLengthExceeded
│   ├── DocumentEmpty · DocumentNotText
│   ├── TaskInvalid · PromptInvalid
│   ├── ImportRefused
│   ├── NothingToLearn · NoPrompts
│   └── NoAcceptedEdits
├── Unauthenticated 401
├── Forbidden 403
├── ForeignTenant 403
├── NotFound 404
│   ├── EndpointNotServed
│   ├── ModelNotFound
│   └── RowNotFound
├── Conflict 409
│   ├── NothingToRollBack
│   ├── VersionNotServable
│   ├── DocumentNotQuarantined
│   ├── AliasMoved
│   ├── AlreadyChampion
│   ├── FilesGone · NotRebuildable
│   ├── VersionInUse
│   ├── TaskDeleted
│   ├── TrialOpen · NoTrialWaits
│   └── RunNotCancellable
├── PayloadTooLarge 413
├── RateLimited 429
│   └── BudgetSpent
├── LeaseLost 409          (workers only: another worker owns the run)
├── EngineError 502
│   ├── EngineUnavailable 503
│   │   └── EngineUnreachable
│   ├── EngineUnsafe 503   (the probe refused it)
│   ├── ReplicasNotReady 503
│   ├── AdapterRefused 502
│   ├── AdapterNotProven 502
│   └── WeightsNotHeld · EngineBroken · PromptRefused   (workers only: what a request was refused for)
├── DatabaseUnavailable 503
└── SetupError 500         (start-up: port in use, no disk space, model folder incomplete)

Constructors take facts, not prose: errors stay picklable and loggable, and are worded once, here.
``type`` is the value of OpenAI's error envelope; ``remedy`` is what the reader can do about it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

BUDGET_RETRY_S = 3600
"""What `retry-after` says when a budget is spent: only an admin can change that."""


class AppError(Exception):
    """Root of the tree. Subclasses set status, type, code and a template over their facts."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    template: ClassVar[str] = "{}"
    param: str | None = None

    @property
    def message(self) -> str:
        return self.template.format(*self.args)

    def __str__(self) -> str:
        return self.message

    def envelope(self) -> dict[str, Any]:
        """OpenAI's error shape, used on every route so that a client needs one parser."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(AppError):
    """A request that can never succeed as sent. Facts: what is wrong and the remedy; the field."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param


class UnknownField(InvalidRequest):
    code = "unknown_field"


class ContextLengthExceeded(InvalidRequest):
    """The engine's words; the field that holds the prompt."""

    code = "context_length_exceeded"


class DocumentEmpty(InvalidRequest):
    code = "document_empty"


class DocumentNotText(InvalidRequest):
    code = "document_not_text"


class TaskInvalid(InvalidRequest):
    code = "task_invalid"


class PromptInvalid(InvalidRequest):
    code = "prompt_invalid"


class ImportRefused(InvalidRequest):
    """An adapter that no engine should see. Facts: why, and what can be done."""

    code = "artifact_invalid"
    template = "The adapter is refused: {}. What helps: {}."
    param = "file"

    def __init__(self, reason: str, remedy: str) -> None:
        Exception.__init__(self, reason, remedy)


class NothingToLearn(InvalidRequest):
    code = "nothing_to_learn"

    def __init__(self, adapter: str) -> None:
        super().__init__(
            f"{adapter} has no document to learn from; "
            "send one first: POST /api/v1/documents, or `everlearn ingest FILE`."
        )


class NoPrompts(InvalidRequest):
    """A line has no prompt, and no opinion on a reply, that a run may learn from."""

    code = "no_prompts"

    def __init__(self, adapter: str) -> None:
        super().__init__(
            f"{adapter} has no prompt of this material to learn from. Send some: "
            "POST /api/v1/prompts, or `everlearn prompts add FILE`; or ask the model, name the tag "
            "that its traffic has, or give feedback.",
            "material",
        )


class NoAcceptedEdits(InvalidRequest):
    """An editor has nothing to learn from."""

    code = "no_accepted_edits"

    def __init__(self, adapter: str) -> None:
        super().__init__(
            f"No run of {adapter} has kept a self-edit, so its editor has nothing to learn from; "
            "learn new documents with outer.is_enabled first."
        )


class Unauthenticated(AppError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    template = "{}"


class Forbidden(AppError):
    status = 403
    type = "permission_error"
    code = "insufficient_scope"
    template = (
        "This key has the scopes {1}, and this call needs {2}. Mint a key with that scope: "
        "`everlearn key create NAME --scope {0}`."
    )

    def __init__(self, needed: Sequence[str], has: Sequence[str]) -> None:
        super().__init__(needed, has)

    @property
    def message(self) -> str:
        needed, has = self.args
        return self.template.format(
            needed[0], ", ".join(has) or "(none)", " or ".join(map(repr, needed))
        )


class ForeignTenant(AppError):
    """An admin of one tenant asked for what is another's, or everybody's. Facts: tenant, remedy."""

    status = 403
    type = "permission_error"
    code = "foreign_tenant"
    template = "This key administers only what belongs to {!r}. {}"


class NotFound(AppError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class RowNotFound(NotFound):
    template = "There is no {} {!r}. {}"

    def __init__(self, noun: str, key: str, remedy: str = "") -> None:
        super().__init__(noun, key, remedy)

    @property
    def message(self) -> str:
        return self.template.format(*self.args).strip()


class EndpointNotServed(NotFound):
    """Facts: the path."""

    code = "endpoint_not_served"
    template = "The engine has no {} for this model; ask a model that is made for it."


class ModelNotFound(NotFound):
    code = "model_not_found"
    template = "The model {!r} does not exist here. {}"
    param = "model"


class Conflict(AppError):
    status = 409
    type = "invalid_request_error"
    code = "conflict"


class NothingToRollBack(Conflict):
    code = "nothing_to_roll_back"
    template = (
        "{0} already serves the base model, and nothing was promoted before it. "
        "Name a version to move to it: `everlearn promote {0} --to vN`."
    )


class VersionNotServable(Conflict):
    code = "version_not_servable"
    template = "{}@v{} cannot serve: {}"


class DocumentNotQuarantined(Conflict):
    """Facts: the document's id and its state."""

    code = "document_not_quarantined"
    template = "{} is {}, not quarantined; there is nothing to release."


class AlreadyChampion(Conflict):
    code = "already_champion"
    template = "{} serves already; nothing was moved."


class AliasMoved(Conflict):
    code = "alias_moved"
    template = "{}@{} was moved meanwhile: {}. Look at it again and repeat the order."

    def __init__(self, adapter: str, alias: str, now: str) -> None:
        super().__init__(adapter, alias, now)


class VersionInUse(Conflict):
    """Facts: line, number, what it is used for and the remedy."""

    code = "version_in_use"
    template = "{}@v{} cannot be retired: {}"


class FilesGone(Conflict):
    """Facts: the version's name; what is wrong with its files."""

    code = "files_gone"
    template = "{} cannot be read any more: {}"


class NotRebuildable(Conflict):
    """Facts: the version's name; what is missing."""

    code = "not_rebuildable"
    template = "{} cannot be trained again: {}"


class TaskDeleted(Conflict):
    """Facts: the task's id."""

    code = "task_deleted"
    template = "The task {} was deleted; send it anew to have it learnt: POST /api/v1/tasks."


class TrialOpen(Conflict):
    """Facts: the line; the version on trial; its mode."""

    code = "trial_open"
    template = (
        "{0} has {1} on trial already ({2}); one at a time. "
        "End that one first: `everlearn trial abort {0}`."
    )


class NoTrialWaits(Conflict):
    """Facts: the line; what there is instead."""

    code = "no_trial_waits"
    template = "No trial of {0} waits for a yes: {1}. See `everlearn trial show {0}`."


class RunNotCancellable(Conflict):
    code = "run_not_cancellable"
    template = "Run {} is already {}."


class LeaseLost(Conflict):
    code = "lease_lost"
    template = (
        "Run {} is no longer ours (attempt {}): its lease ran out and another worker took it."
    )


class PayloadTooLarge(AppError):
    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"
    template = "The body has more than {} bytes."

    @property
    def message(self) -> str:
        remedy = f" Split it, or raise {self.args[1]}." if self.args[1] else " Send less at once."
        return super().message + remedy


class RateLimited(AppError):
    """Facts: what is counted, how many a minute, seconds to wait; the headers of the reply."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    template = "This key may use {1} {0} a minute, and they are used up. Try again in {2} s."

    def __init__(self, noun: str, limit: int, wait_s: int, headers: Mapping[str, str]) -> None:
        super().__init__(noun, limit, wait_s, headers)
        self.headers = {**headers, "retry-after": str(wait_s)}


class BudgetSpent(RateLimited):
    """Waiting does not help, so the reply tells OpenAI's clients not to try again by themselves."""

    type = "insufficient_quota"
    code = "insufficient_quota"
    template = (
        "This key has used up its budget of {1} {0}. An admin raises it: "
        "PATCH /api/v1/keys/ID with a new token_budget."
    )

    def __init__(self, budget: int, headers: Mapping[str, str]) -> None:
        super().__init__("tokens", budget, BUDGET_RETRY_S, headers)
        self.headers["x-should-retry"] = "false"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[1], self.args[3])


class EngineError(AppError):
    """The engine answered, and not as it must."""

    status = 502
    type = "api_error"
    code = "engine_error"


class EngineUnavailable(EngineError):
    status = 503
    code = "engine_unavailable"
    template = "The engine does not answer ({}). It is being restarted; try again in a minute."


class EngineUnreachable(EngineUnavailable):
    """No connection came about: the engine has seen nothing of the request."""


class EngineUnsafe(EngineError):
    status = 503
    code = "engine_unsafe"
    template = "The engine is not safe to learn with: {}"


class AdapterRefused(EngineError):
    code = "adapter_refused"
    template = "The engine does not take {}: {}"


class AdapterNotProven(EngineError):
    code = "adapter_not_proven"
    template = "The engine took {} but does not serve it: {}"


class WeightsNotHeld(EngineError):
    """The engine does not know the weights it was asked for: it was started anew, likely."""

    template = "The engine has no {}: {}"


class EngineBroken(EngineError):
    """The engine failed at a request, and may be about to end."""

    template = "The engine fails to chat as {}: {}"


class PromptRefused(EngineError):
    """The engine does not take this request, whoever asks. Facts: model; its words; if for length."""

    template = "The engine refuses to chat as {}: {}"

    def __init__(self, model: str, message: str, is_too_long: bool = False) -> None:
        super().__init__(model, message, is_too_long)
        self.is_too_long = is_too_long


class ReplicasNotReady(EngineError):
    """Too few replicas have proven a version. Facts: it, how many have, how many must; who and why."""

    status = 503
    code = "replicas_not_ready"
    template = (
        "{} is proven on {} replicas, and {} are needed, so nothing was moved. {} "
        "Try again when they are healthy (`everlearn fleet`), or lower EVERLEARN_SWAP__QUORUM."
    )

    def __init__(self, engine_name: str, proven: int, needed: int, why: Mapping[str, str]) -> None:
        super().__init__(engine_name, proven, needed, why)

    @property
    def message(self) -> str:
        engine_name, proven, needed, why = self.args
        each = " ".join(f"{url}: {reason.rstrip('.')}." for url, reason in why.items())
        return self.template.format(engine_name, proven, needed, each)


class DatabaseUnavailable(AppError):
    status = 503
    type = "api_error"
    code = "database_unavailable"
    template = "The database does not answer; try again in a minute."


class SetupError(AppError):
    """The machine or the settings keep the server from starting; says how to fix it."""

    code = "setup_error"
