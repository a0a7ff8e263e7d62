"""What Prometheus is told: every instrument of this process, named once. Knows nothing of HTTP.

What happens (a request, a load, a swap) is counted when it happens. What is (leases, replicas,
rows of the database) is looked at when it is asked for, and handed over as a :class:`Moment`.

Not covered: the engine's own metrics, which Prometheus reads from the engine.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Metric,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from server.core.clock import monotonic

REPLY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SWAP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

LOAD, PROVE, UNLOAD, MOVE = "load", "prove", "unload", "move"
"""Where a swap can fail."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What is counted in the database, since workers are processes of their own."""

    verdicts: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    """By line and verdict."""
    trials: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    """By line, mode and state."""
    runs: Mapping[str, int] = field(default_factory=dict)
    """By status."""
    deletions: Mapping[str, int] = field(default_factory=dict)
    """By state."""
    documents: Mapping[str, int] = field(default_factory=dict)
    """By state; the deleted do not count."""


@dataclass(frozen=True, slots=True)
class ReplicaMoment:
    """One engine as this process sees it now."""

    replica: str
    """Its address."""
    state: str
    resident: int
    """Versions that it holds."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What is true while metrics are read."""

    replicas: Sequence[ReplicaMoment] = ()
    leases: Mapping[str, int] = field(default_factory=dict)
    """Engine name to requests that use it."""
    segments_waiting: int = 0
    records_dropped: int = 0
    figures: Figures | None = None
    """None while the database does not answer."""


class ReplicaWatch:
    """Counts what one engine is told to do; see :class:`server.engine.residency.Watch`."""

    def __init__(self, metrics: "Metrics", replica: str) -> None:
        self._metrics = metrics
        self._replica = replica

    def loaded(self, seconds: float) -> None:
        self._metrics.adapter_loaded(self._replica, seconds)

    def failed(self, stage: str) -> None:
        self._metrics.swap_error(stage)


class Metrics:
    """The instruments of one process; built once, by its runtime."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        # Without this, every counter would have a second series, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._clock = clock
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "everlearn_requests_total",
            "Requests that an engine was asked to answer, by how they ended.",
            ("line", "version", "arm", "endpoint", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "everlearn_request_seconds",
            "From a routed request to the end of its reply.",
            ("line", "version"),
            buckets=REPLY_BUCKETS_S,
            registry=registry,
        )
        self._first_byte = Histogram(
            "everlearn_first_byte_seconds",
            "From a routed request to the first byte of its reply.",
            ("line", "version"),
            buckets=REPLY_BUCKETS_S,
            registry=registry,
        )
        self._tokens = Counter(
            "everlearn_tokens_total",
            "Tokens as the engine counts them.",
            ("line", "version", "kind"),
            registry=registry,
        )
        self._load = Histogram(
            "everlearn_adapter_load_seconds",
            "From the order to load a version to the proof that the engine answers with it.",
            ("replica",),
            buckets=SWAP_BUCKETS_S,
            registry=registry,
        )
        self._drain = Histogram(
            "everlearn_drain_seconds",
            "From the moment an alias leaves a version to the end of the last request that uses it.",
            buckets=REPLY_BUCKETS_S,
            registry=registry,
        )
        self._swap = Histogram(
            "everlearn_swap_seconds",
            "From the order to move an alias to its answer.",
            ("kind",),
            buckets=SWAP_BUCKETS_S,
            registry=registry,
        )
        self._swap_errors = Counter(
            "everlearn_swap_errors_total",
            "Failures on the way of a version into service or out of it.",
            ("stage",),
            registry=registry,
        )
        for stage in (LOAD, PROVE, UNLOAD, MOVE):  # so that an alert sees zero before the first
            self._swap_errors.labels(stage)
        self._moment = _MomentCollector()
        registry.register(self._moment)
        self._bound: dict[tuple[str, str, str, str], _Bound] = {}
        self._leaving: dict[str, float] = {}

    def request_done(
        self,
        line: str,
        version: str,
        arm: str,
        endpoint: str,
        outcome: str,
        *,
        seconds: float,
        first_byte_s: float | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
    ) -> None:
        """Count one request, however it ended; a few microseconds, on the way of every reply.

        Args:
            version: public name, such as ``smollm2@v7``; with its line the only unbounded labels,
                which :meth:`keep_versions` bounds.
            first_byte_s: None where no byte came.
            prompt_tokens, completion_tokens: None where the engine did not say.
        """
        key = (version, arm, endpoint, outcome)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self._bind(line, *key)
        bound.requests.inc()
        bound.seconds.observe(seconds)
        if first_byte_s is not None:
            bound.first_byte.observe(first_byte_s)
        if prompt_tokens:
            bound.prompt_tokens.inc(prompt_tokens)
        if completion_tokens:
            bound.completion_tokens.inc(completion_tokens)

    def keep_versions(self, versions: Collection[str]) -> None:
        """Let go of the series of all versions but these; they begin at zero if one comes back."""
        gone = {version for version, *_ in self._bound} - set(versions)
        self._bound = {key: bound for key, bound in self._bound.items() if key[0] not in gone}
        for version in gone:
            for metric in (self._requests, self._seconds, self._first_byte, self._tokens):
                metric.remove_by_labels({"version": version})

    def adapter_loaded(self, replica: str, seconds: float) -> None:
        """An engine has proven a version that it was told to load."""
        self._load.labels(replica).observe(seconds)

    def swapped(self, kind: str, seconds: float) -> None:
        """An alias has moved by order; ``kind`` is ``promote`` or ``rollback``."""
        self._swap.labels(kind).observe(seconds)

    def swap_error(self, stage: str) -> None:
        """Something of a swap has failed: ``load``, ``prove``, ``unload`` or ``move``."""
        self._swap_errors.labels(stage).inc()

    def drained(self, seconds: float) -> None:
        """The last request of a version that an alias had left is over."""
        self._drain.observe(seconds)

    def version_left(self, engine_name: str, *, is_busy: bool) -> None:
        """No alias points at these weights any longer; the drain begins, or is over at once."""
        if is_busy:
            self._leaving[engine_name] = self._clock()
        else:
            self.drained(0.0)

    def version_named(self, engine_name: str) -> None:
        """An alias points at these weights (again): there is nothing to drain."""
        self._leaving.pop(engine_name, None)

    def version_idle(self, engine_name: str) -> None:
        """Nothing uses these weights now."""
        left_at = self._leaving.pop(engine_name, None)
        if left_at is not None:
            self.drained(self._clock() - left_at)

    def watch(self, replica: str) -> ReplicaWatch:
        """What to hand to the residency of one engine."""
        return ReplicaWatch(self, replica)

    def names(self) -> list[str]:
        """Every metric, as Prometheus will call it."""
        families = self.registry.collect()
        return sorted(f"{m.name}_total" if m.type == "counter" else m.name for m in families)

    def render(self, accept: str, moment: Moment) -> tuple[bytes, str]:
        """All of it in the text format that ``accept`` asks for, and its media type."""
        self._moment.moment = moment
        try:
            encode, media_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, media_type = choose_encoder("")
        return encode(self.registry), media_type

    def _bind(self, line: str, version: str, arm: str, endpoint: str, outcome: str) -> "_Bound":
        return _Bound(
            requests=self._requests.labels(line, version, arm, endpoint, outcome),
            seconds=self._seconds.labels(line, version),
            first_byte=self._first_byte.labels(line, version),
            prompt_tokens=self._tokens.labels(line, version, "prompt"),
            completion_tokens=self._tokens.labels(line, version, "completion"),
        )


@dataclass(frozen=True, slots=True)
class _Bound:
    """The series that one kind of request counts in; to look each up by its labels costs more."""

    requests: Counter
    seconds: Histogram
    first_byte: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter


class _MomentCollector:
    """Series that exist only while they are true, so none is ever stale."""

    def __init__(self) -> None:
        self.moment = Moment()

    def collect(self) -> Iterable[Metric]:
        moment = self.moment
        figures = moment.figures or Figures()
        yield _gauge(
            "everlearn_replica_state",
            "1 for the state in which this gateway sees an engine.",
            ("replica", "state"),
            {(replica.replica, replica.state): 1 for replica in moment.replicas},
        )
        yield _gauge(
            "everlearn_resident_versions",
            "Versions that an engine holds.",
            ("replica",),
            {(replica.replica,): replica.resident for replica in moment.replicas},
        )
        yield _gauge(
            "everlearn_leases",
            "Requests of this gateway that use a version now.",
            ("version",),
            {(name,): count for name, count in _by_version(moment.leases).items()},
        )
        yield _gauge(
            "everlearn_capture_segments_waiting",
            "Files of captured interactions that are not in the database yet.",
            (),
            {(): moment.segments_waiting},
        )
        yield _counter(
            "everlearn_capture_dropped_total",
            "Interactions lost to a disk that could not take them.",
            (),
            {(): moment.records_dropped},
        )
        yield _counter(
            "everlearn_gate_verdicts_total",
            "Verdicts of the exam.",
            ("line", "verdict"),
            figures.verdicts,
        )
        yield _gauge(
            "everlearn_trial",
            "Trials, by mode and state.",
            ("line", "mode", "state"),
            figures.trials,
        )
        yield _gauge(
            "everlearn_runs",
            "Adaptation runs, by status.",
            ("status",),
            {(status,): count for status, count in figures.runs.items()},
        )
        yield _gauge(
            "everlearn_deletions",
            "Acts of forgetting, by state.",
            ("state",),
            {(state,): count for state, count in figures.deletions.items()},
        )
        yield _gauge(
            "everlearn_documents",
            "Documents, by state.",
            ("state",),
            {(state,): count for state, count in figures.documents.items()},
        )


def _by_version(leases: Mapping[str, int]) -> dict[str, int]:
    """Public names in place of engine names: ``smollm2@v7`` for ``smollm2@v7.3fa94c1b``."""
    counts: dict[str, int] = {}
    for engine_name, count in leases.items():
        line, _, weights = engine_name.rpartition("@")
        version = f"{line}@{weights.partition('.')[0]}"
        counts[version] = counts.get(version, 0) + count
    return counts


def _gauge(
    name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], int]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _counter(
    name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family
