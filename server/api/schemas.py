"""Request and response models of /api/v1. Unknown fields of ours are refused by name."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from adapters.spec import BudgetSpec
from adapters.types import Grader
from server.services.policy_rules import MaterialSpec, WhenSpec


def _storable(text: str) -> str:
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("NUL and halves of characters cannot be stored")
    return text


_STORABLE = AfterValidator(_storable)

Text = Annotated[str, _STORABLE]
"""A string that every database takes."""


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("this moment lies outside the calendar") from error


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A time with its zone, such as ``2026-11-21T08:00:00Z``."""

Id = Annotated[str, StringConstraints(min_length=1, max_length=100), _STORABLE]
Words = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100_000), _STORABLE
]

Reason = Annotated[str, StringConstraints(max_length=2000), _STORABLE]
Title = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500), _STORABLE]
Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000), _STORABLE
]
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), _STORABLE
]

Tenant = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), _STORABLE
]
LineName = Annotated[
    str, StringConstraints(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
]
"""A folder carries it, and ``@`` ends it in the names of versions."""

PerMinute = Annotated[StrictInt, Field(ge=1, le=2**31 - 1)]
Budget = Annotated[StrictInt, Field(ge=0, le=2**63 - 1)]
Revision = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


Answer = Annotated[
    str,
    StringConstraints(max_length=2000, pattern=r"\S"),
    _STORABLE,
    AfterValidator(lambda text: text.strip(" \t") if "\n" not in text else text),
]
"""One that counts as right; line breaks stay, for grids."""

_FIGURES = re.compile(
    r"[-+\u2212]?(?:(?:\d{1,3}(?:[,' ]\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[+-]?\d{1,2})?\s?%?",
    re.ASCII,
)
"""One number as the grader reads it: of "1,5" it would read 1."""


class QuestionBody(Body):
    question: Line
    answers: list[Answer] = Field(min_length=1, max_length=20)
    """Any of these counts as right."""
    grader: Literal["match", "numeric", "exact", "judge"] = "match"
    """How a reply is judged; `judge` is the base model, where it can be believed."""

    @model_validator(mode="after")
    def _can_be_right(self) -> Self:
        is_by_words = self.grader in (Grader.MATCH.value, Grader.JUDGE.value)
        if is_by_words and not any(char.isalnum() for answer in self.answers for char in answer):
            raise ValueError("no answer holds a letter or a digit; the grader exact compares signs")
        for answer in self.answers:
            if self.grader == Grader.NUMERIC.value and not _FIGURES.fullmatch(answer.strip()):
                raise ValueError(
                    f"the answer {answer[:50]!r} is not one number in figures, such as 4,312 or 0.5"
                )
        return self


class DocumentBody(Body):
    text: str
    """The document, as text."""
    title: Title | None = None
    """Its title; the first line when left out."""
    questions: list[QuestionBody] = Field(default=[], max_length=500)
    """Questions about it, only ever asked in exams and never trained on."""


class QuestionView(View):
    id: str
    document_id: str
    kind: str
    """user, traffic, model, cloze."""
    split: str
    """exam: only ever asked. train: left to lessons."""
    question: str
    answers: list[str]
    grader: str
    interaction_id: str | None
    """Where a question from traffic was asked."""
    created_at: datetime


class QuestionListing(View):
    data: list[QuestionView]
    """In the order sent, each once."""
    new: int
    """How many of them were not here already."""


class QuestionPage(View):
    data: list[QuestionView]
    next: str | None
    """Cursor for `after`; null on the last page."""


class JudgeView(View):
    """How far a base model agrees with verdicts that are known."""

    judge: str
    """Hash of the base model, the prompt, the known verdicts and the thresholds."""
    cases: int
    agreed: int
    false_right: int
    """Wrong replies that it called right."""
    false_wrong: int
    is_trusted: bool
    """Whether its verdicts count; else its questions are graded by match."""
    created_at: datetime


class JudgeListing(View):
    data: list[JudgeView]


class BatchBody(Body):
    """A form with files; the fields beside them are for a form with one file."""

    file: list[bytes] = Field(min_length=1, max_length=100)
    """Plain text, Markdown, HTML, PDF or DOCX; the field may be repeated."""
    title: Title | None = None
    questions: str | None = None
    """A JSON list like ``questions`` of a document."""


class FindingView(View):
    kind: str
    severity: str
    """`refuse`, `quarantine`, `contain` (the part is left out of lessons and exams) or `note`."""
    detail: str
    """What is wrong, and what can be done."""
    chunk: int | None = None
    start: int | None = None
    """With `end`, the part at fault: characters of the text."""
    end: int | None = None
    document: str | None = None
    """Another document that it is about."""


class DocumentView(View):
    id: str
    owner: str | None
    title: str
    filename: str | None
    media_type: str
    state: str
    error: str | None
    """Why it is unreadable, and what can be done."""
    language: str | None
    """ISO 639-1 code of what it is mostly written in; null where nothing could be told."""
    findings: list[FindingView]
    """What is wrong with it, and what follows."""
    released_at: datetime | None
    """When an admin let it be learnt in spite of its findings."""
    near_duplicate_of: str | None
    """An earlier document that says nearly the same; this one is learnt in its place."""
    replaced_by: str | None
    """A later one that says nearly the same and is learnt in its place."""
    content_hash: str
    size_bytes: int
    chunks: int
    exam_questions: int
    versions: list[str]
    """Versions that were trained on it."""
    created_at: datetime
    deleted_at: datetime | None
    """When what it says was forgotten; the row stays for its versions."""


class RefusedView(View):
    index: int
    """Its place among the files, from 0."""
    filename: str | None
    error: dict[str, Any]
    """As in an error's envelope."""


class BatchView(View):
    data: list[DocumentView]
    """The files that were taken, in order."""
    new: int
    """How many of them were not here already."""
    errors: list[RefusedView]


class ChunkView(View):
    position: int
    text: str


TaskValue = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 0, "maximum": 9},
                    },
                },
            ]
        }
    ),
]
"""A text, or a grid as rows of digits; checked with the task, so that errors say what helps."""


class PairBody(Body):
    input: TaskValue
    output: TaskValue
    """What the model should answer, exactly."""


class TaskBody(Body):
    title: Title | None = None
    """For people; the instruction's first line when left out."""
    instruction: Text = ""
    """What is to be done, in words; the examples may speak for themselves."""
    form: Literal["text", "grid"] | None = None
    """Grids are rows of digits; told by the examples when left out."""
    examples: list[PairBody] | None = None
    """What is taught."""
    tests: list[PairBody] | None = None
    """Only ever asked; when left out, one example in three becomes a test."""
    train: list[PairBody] | None = None
    """ARC's word for ``examples``."""
    test: list[PairBody] | None = None
    """ARC's word for ``tests``."""
    name: Title | None = None
    """ARC's word for ``title``."""


class LearnTaskBody(Body):
    adapter: LineName | None = None
    """The line that learns it, made where it is not there; one of the task's own when left out."""


class TaskView(View):
    id: str
    owner: str | None
    title: str
    form: str
    """text or grid."""
    state: str
    """ready, learning, learnt or not_learnt."""
    adapter: str
    """The line that it is learnt on unless another is named."""
    example_count: int
    test_count: int
    versions: list[str]
    """Versions that were trained on it."""
    created_at: datetime
    deleted_at: datetime | None
    """When its examples were forgotten; the row stays for its versions."""


class TaskDetail(TaskView):
    instruction: str
    examples: list[dict[str, str]]
    """Rows of ``input`` and ``output``; grids as lines of digits."""
    tests: list[dict[str, str]]
    prompt: str
    """What to ask the line, with the input in place of ``{input}``: as in lessons and exam."""


class RunBody(Body):
    adapter: Text | None = None
    """The line that learns; the served model's own when left out."""
    method: Text | None = None
    """How it learns; the settings' method when left out."""
    config: dict[str, Any] = {}
    """What is to differ from the settings' config of the method; with `auto`, by the method's name."""
    material: MaterialSpec | None = None
    """From what; all that the method learns from when left out."""


class PromptBody(Body):
    prompt: Annotated[str, _STORABLE] | None = None
    """One user's turn."""
    messages: list[dict[str, Any]] | None = None
    """In its place: a conversation that ends with a user's turn."""
    answers: list[Text] = []
    """Any of them is right; none where nobody knows."""
    tests: Text | None = None
    """Python code that exercises the code of a reply."""
    tag: Annotated[Name, Field(max_length=100)] | None = None
    """The kind of task; material is chosen by it."""


class PromptsBody(Body):
    prompts: list[PromptBody]


class PromptView(View):
    id: str
    owner: str | None
    messages: list[dict[str, str]]
    answers: list[str]
    tests: str | None
    tag: str | None
    split: str
    """train, or gate: never learnt from, only asked in exams."""
    versions: list[str]
    """Versions whose run took it."""
    created_at: datetime
    deleted_at: datetime | None
    """When its words were forgotten; the row stays for its versions."""


class SentPrompt(View):
    """What became of one prompt of a batch."""

    id: str
    is_new: bool
    split: str


class SentPrompts(View):
    data: list[SentPrompt]
    """In the order of the batch."""
    created: int


class PolicyBody(Body):
    name: LineName
    """Unique on its line."""
    adapter: Text | None = None
    """The line that learns; the served model's own when left out."""
    method: Text | None = None
    """A method's name, or `auto`; when left out, the settings' for documents, else `auto`."""
    material: MaterialSpec | None = None
    """What it learns from; all that the method learns from when left out."""
    when: WhenSpec = WhenSpec()
    """When it is due; whenever something is new when left out."""
    budget: BudgetSpec = BudgetSpec()
    """Ceilings of each of its runs."""
    config: dict[str, Any] = {}
    """What is to differ from the settings' config of the method; with `auto`, by the method's name."""
    is_enabled: StrictBool = True
    cooldown_hours: float = Field(default=0.0, ge=0.0, le=24 * 365, allow_inf_nan=False)
    """After a run of it, so long none is begun."""


class PolicyPatch(Body):
    """What is left out stays; what is given is replaced as a whole."""

    method: Text | None = None
    material: MaterialSpec = MaterialSpec()
    when: WhenSpec = WhenSpec()
    budget: BudgetSpec = BudgetSpec()
    config: dict[str, Any] = {}
    is_enabled: StrictBool = True
    cooldown_hours: float = Field(default=0.0, ge=0.0, le=24 * 365, allow_inf_nan=False)


class PolicyView(View):
    id: str
    name: str
    adapter: str
    method: str
    """As a run would get it now: where none was named, the settings' or `auto`."""
    material: dict[str, Any]
    when: dict[str, Any]
    budget: dict[str, Any]
    config: dict[str, Any]
    is_enabled: bool
    cooldown_hours: float
    decision: dict[str, Any] | None
    """What it decided when it was due last: `method` (null: no run), `why`, and `rejected`, by method."""
    last_run: str | None
    """Id of its latest run."""
    changed_by: str | None
    """Who changed it last; null: the settings made it."""
    created_at: datetime


class DryRunView(View):
    """What a policy would learn now."""

    is_due: bool
    when: str
    """Why it is due, or why not."""
    new: int
    """Pieces of material since its last run."""
    method: str | None
    """Null: there would be no run."""
    why: str
    rejected: dict[str, str]
    """Why none of the other methods, where `auto` chooses."""
    config: dict[str, Any] | None
    documents: int
    train: int
    """Prompts that would be learnt from."""
    held_out: int
    """Prompts that would only be asked in the exam."""
    opinions: int
    left_out: dict[str, int]
    """How many prompts and opinions are not taken, by the reason."""
    examples: list[str]
    """Ids of some that are taken: of prompts, or of interactions."""
    generations: int | None
    """Replies that the run would ask for at most; null where that is not known before."""


class MethodView(View):
    """One way to learn."""

    name: str
    purpose: str
    is_default: bool
    """Whether it is used where none is named."""
    config: dict[str, Any]
    """What a run of it gets."""
    json_schema: dict[str, Any]
    """Of everything that its config can say."""


class RunView(View):
    id: str
    adapter: str
    kind: str
    """learn, or rebuild: an old version is trained again, to compare."""
    rebuilds: str | None
    """The version that is trained again."""
    method: str
    status: str
    stage: str | None
    """chunk, quiz, those of the method (outer_loop, self_edits, replies, training), exam or swap."""
    done: int
    total: int
    attempt: int
    verdict: str | None
    version: str | None
    documents: list[str]
    tasks: list[str]
    """What it learnt instead of documents."""
    prompts: list[str]
    """Prompts sent for learning that it took, for its lesson or its exam."""
    interactions: int
    """How many of traffic it took, likewise; the manifest of its version names them."""
    material: dict[str, Any]
    """What it was to learn from; empty: documents, or a task."""
    reason: dict[str, Any] | None
    """Why this method, and why none of the others; null where nobody chose."""
    report: dict[str, Any]
    error: str | None
    requested_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class VersionView(View):
    name: str
    number: int
    status: str
    parent: str
    """What it was trained on from: the base, or another version."""
    generation: int
    """How many times in a row it was trained on from another version; 0: from the clean base."""
    engine_name: str
    run_id: str | None
    documents: list[str]
    prompts: int
    """How many prompts sent for learning its runs took."""
    interactions: int
    """How many interactions they took; the manifest names those of its own run."""
    exam: dict[str, Any] | None
    """The gate's decision with its figures."""
    origin: str
    """run, or import: a foreign adapter that an admin brought."""
    created_at: datetime
    retired_at: datetime | None
    """Since when it never serves again."""
    retire_reason: str | None
    files_removed_at: datetime | None
    """When its weights were removed from the disk."""


class LineageView(View):
    """One step on the way from a version back to its base model."""

    name: str
    status: str | None
    """Null for the base model, like all that follows."""
    origin: str | None
    run_id: str | None
    verdict: str | None
    documents: int | None
    prompts: int | None
    """Sent for learning and of traffic, together."""
    created_at: datetime | None


class VersionDetail(VersionView):
    adapter: str
    aliases: list[str]
    """Those that point at it."""
    digest: str
    """sha256 of config and weights; the same training gives the same."""
    manifest: dict[str, Any] | None
    """Where it comes from and what it takes to make it again; null for another's eyes."""
    lineage: list[LineageView]
    """From this version to the base model, with the runs between."""


class ReportView(View):
    """All that a run found: the gate's decision, both answers to every question, the lineage."""

    run: RunView
    exam: dict[str, Any]
    """The gate's decision; empty where there was no exam."""
    questions: list[dict[str, Any]]
    """Both answers to each: the lost ones first, then the gained ones."""
    lineage: list[LineageView]
    """From the run's version to the base model; empty where it made none."""


class ImportForm(Body):
    config: bytes
    """The file `adapter_config.json` of a PEFT folder."""
    weights: bytes
    """Its `adapter_model.safetensors`."""
    source: str = ""
    """Where the adapter comes from; kept in the manifest."""
    reason: str = ""
    """Kept in the audit trail."""


class AliasEventView(View):
    kind: str
    alias: str
    from_version: str
    to_version: str
    actor: str
    reason: str
    is_forced: bool
    """Whether an admin let a version serve that had not passed the gate."""
    revision: int
    """The alias's count after this move."""
    created_at: datetime


class SignalView(View):
    pairs: int
    """Comparisons of challenger and champion so far."""
    challenger: float | None
    """Share of its replies that failed, were slow, malformed or judged badly."""
    champion: float | None
    margin: float
    """Rise of that share that is still accepted."""
    harm_e: float
    """Evidence that the rise is above the margin; 1 says nothing."""
    safe_e: float
    """Evidence that it is below."""
    difference_low: float
    """The rise lies between these, at every look."""
    difference_high: float


class TrialView(View):
    id: str
    version: str
    champion: str
    """Who it is compared with."""
    mode: str
    """hold, shadow or canary."""
    state: str
    """running, waiting, promoted or aborted."""
    share: float
    """Percent of the requests."""
    started_by: str
    reason: str
    created_at: datetime
    judged_at: datetime | None
    """The judge's last look."""
    replies: int
    """Of the challenger, at that look."""
    verdict: str | None
    """promote, abort or continue, at that look."""
    evidence: dict[str, SignalView]
    """By signal: failed, slow, malformed, feedback."""
    ended_at: datetime | None
    ended_by: str | None
    outcome: str | None
    """Why it waits, or why it ended."""


class AdapterView(View):
    name: str
    owner: str | None
    """The tenant whose line it is; null is everybody's."""
    role: str
    """serve; task: it answers one task and learns no documents; editor: it writes self-edits, and
    nobody can ask it."""
    base_model: str
    base_hash: str
    champion: str
    revision: int
    """Counts the champion's moves; an order may name it as `expected_revision`."""
    aliases: dict[str, str]
    versions: list[VersionView]
    events: list[AliasEventView]
    trial: TrialView | None
    """The trial that runs or waits."""
    rollout: dict[str, Any] | None
    """What the line has of its own in place of the settings `EVERLEARN_ROLLOUT__…`."""


class AdapterChangesBody(Body):
    rollout: dict[str, Any] | None
    """The line's own values of the settings `EVERLEARN_ROLLOUT__…`, all of them; null: the settings'."""


class TrialBody(Body):
    version: Text | StrictInt
    """Which one to try: v2, 2 or smollm2@v2."""
    mode: Literal["shadow", "canary"] = "canary"
    """`canary` lets it answer a share of the requests; `shadow` sends it copies of them."""
    share: float | None = Field(default=None, gt=0, le=100)
    """Percent of the requests, above 0 and at most 100; the line's own when left out."""
    reason: Reason = ""
    force: bool = False
    """Try a version that failed its exam, too."""


class ApprovalBody(Body):
    reason: Reason = ""


class LineBody(Body):
    name: LineName
    """What clients ask for."""
    owner: Tenant | None = None
    """The tenant who alone may ask for it and whose documents it learns; everybody's when left out."""


class PromoteBody(Body):
    version: Text | StrictInt
    """Where to move the champion: v2, 2, smollm2@v2 or base."""
    reason: Reason = ""
    expected_revision: Revision | None = None
    """The line's `revision` that the order was made for; refused if it has moved since."""
    force: bool = False
    """Let a version serve that was rejected or never examined; the audit trail keeps it."""


class RollbackBody(Body):
    to: Text | StrictInt | None = None
    """Where to go back to; what served before when left out."""
    reason: Reason = ""
    expected_revision: Revision | None = None
    """The line's `revision` that the order was made for; refused if it has moved since."""


class RetireBody(Body):
    reason: Line
    """Kept with the version, and told to whoever asks for it."""


class MoveView(View):
    adapter: str
    alias: str
    kind: str
    from_version: str
    to_version: str
    revision: int
    """The champion's count after this move."""
    is_forced: bool
    skipped: list[str]
    """Versions that served before and were stepped over, because they cannot serve again."""
    moved_in_ms: float
    """From the order to the moment the next request is served by the new weights."""


class ReplicaBody(Body):
    url: Name
    """Address of a vLLM server like the others; ``http`` or ``https``, without a key in it."""


class DrainBody(Body):
    is_draining: StrictBool
    """Whether it shall take no new request."""


class ReplicaView(View):
    id: str
    url: str
    origin: str
    """``settings``, or ``api``."""
    is_draining: bool
    state: str
    """joining, healing, healthy, away, unsafe or draining, as this gateway sees it."""
    error: str | None
    outstanding: int
    """Requests of this gateway that run on it."""
    resident: list[str]
    """The adapters that it holds, by their engine names."""
    created_at: datetime


class GatewayView(View):
    id: str
    name: str
    """Host and process."""
    seen_at: datetime
    revision: int
    """Of the routes it works by."""
    in_flight: dict[str, int]
    """Engine name to running requests."""
    replicas: dict[str, Any]
    """Address to what this gateway sees of the replica."""


class FleetView(View):
    data: list[ReplicaView]
    gateways: list[GatewayView]
    """Those that gave a sign of life lately."""


class KeyBody(Body):
    name: Name
    scopes: list[str] = Field(min_length=1)
    """chat, ingest, feedback, read, admin."""
    owner: Tenant | None = None
    """The tenant; your own when left out, which for the operator is none: such a key sees all."""
    allows_learning: bool = True
    """Whether what passes under the key may ever be trained on."""
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    """Prompt and completion together."""
    token_budget: Budget | None = None
    """Tokens in all; when they are used, the key asks in vain until an admin raises it."""


class KeyChangesBody(Body):
    allows_learning: bool = True
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    token_budget: Budget | None = None


class KeyView(View):
    id: str
    name: str
    hint: str
    scopes: list[str]
    owner: str | None
    allows_learning: bool
    requests_per_minute: int | None
    tokens_per_minute: int | None
    token_budget: int | None
    tokens_used: int
    created_at: datetime
    revoked_at: datetime | None


class MintedKeyView(KeyView):
    key: str
    """The secret, shown this once."""


class AuditEventView(View):
    id: str
    owner: str | None
    """The tenant whose rows were touched; null where none is."""
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    request_id: str | None
    created_at: datetime


class Listing(View):
    data: list[Any]


class Page(Listing):
    next: str | None
    """What to send as ``after`` for the rows that follow; null on the last page."""


class PreferenceBody(Body):
    chosen: int = Field(ge=0, lt=128)
    """Index of the better choice."""
    rejected: int = Field(ge=0, lt=128)
    """Index of the worse one."""


class FeedbackBody(Body):
    completion_id: Id
    """The `id` of the reply, or its `x-everlearn-interaction`."""
    choice: int = Field(default=0, ge=0, lt=128)
    """Which choice is judged, where there were several."""
    score: float | None = Field(default=None, ge=-1, le=1, allow_inf_nan=False)
    """From -1, useless, over 0, neither good nor bad, to 1, perfect."""
    thumb: Literal["up", "down"] | None = None
    correction: Words | None = None
    """What the reply should have been."""
    reference: Words | None = None
    """An answer known to be right, to compare with."""
    preference: PreferenceBody | None = None
    comment: Words | None = None


class FeedbackView(View):
    id: str
    completion_id: str
    interaction_id: str | None
    """Null while the interaction is on its way into the database."""
    kind: str
    """score, thumb, correction, reference, preference or comment."""
    choice: int
    value: dict[str, Any]
    created_at: datetime


class FeedbackListing(View):
    data: list[FeedbackView]


class FeedbackPage(FeedbackListing):
    next: str | None
    """Cursor for `after`; null on the last page."""


class InteractionView(View):
    id: str
    completion_id: str | None
    created_at: datetime
    key_id: str
    owner: str | None
    endpoint: str
    requested_model: str
    adapter: str
    version: str
    """Who answered; usable as `model`."""
    arm: str | None
    """champion, challenger, pinned or shadow; null in rows of before there were trials."""
    shadow_of: str | None
    """The interaction that this is a copy of."""
    is_stream: bool
    conversation_id: str | None
    """Shared by all turns of a conversation."""
    reply: str
    finish_reason: str | None
    outcome: str
    status: int
    error: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    first_byte_ms: float | None
    duration_ms: float
    may_learn: bool
    split: str
    task: str | None
    end_user: str | None
    redacted_at: datetime | None


class InteractionPage(View):
    data: list[InteractionView]
    next: str | None
    """Cursor for `after`; null on the last page."""


class InteractionDetail(InteractionView):
    messages: list[dict[str, Any]]
    """The prompt, in order."""
    request: dict[str, Any]
    """What else the client asked for."""
    choices: list[Any] | None
    tokens: dict[str, Any] | None
    feedback: list[FeedbackView]


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
