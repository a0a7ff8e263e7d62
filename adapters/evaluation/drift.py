"""How far the challenger has moved from the base model, whatever is right or wrong.

RL's Razor (Shenfeld, Pari and Agrawal, arXiv 2509.04259): what a model forgets is told by the mean
of KL(base || model) over the base's own replies. Here the base answers a sample of the exam's
prompts greedily, and both models say what they find likely in the place of each token of those
replies. A place is known by its likeliest tokens only; all others are one bucket, so the figure is
a lower bound of the true divergence, and of the entropy.

Entropy and length are compared on the general suite: on what was learnt, a model that knows the
answer is surer, and shorter or longer, than one that does not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

from adapters.sampling import MeasuringSampler, NotScored, Reply, Scoring
from adapters.types import JSON, ChatMessage, ExamItem, ProgressCallback, SamplingParams, TopK

_LEAST_PROBABILITY = 1e-9


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured on one set of prompts; None where nothing could be."""

    prompts: int = 0
    kl: float | None = None
    """Mean KL(base || challenger) per token of the base's replies, in nats."""
    entropy: tuple[float | None, float | None] = (None, None)
    """Mean per token of their own replies, in nats: (champion, challenger)."""
    length: tuple[float | None, float | None] = (None, None)
    """Mean tokens of a reply: (champion, challenger)."""
    distinct: tuple[float | None, float | None] = (None, None)
    """Mean share of a reply's word pairs that are new in it: (champion, challenger)."""

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "prompts": self.prompts,
            "kl": self.kl,
            "entropy": list(self.entropy),
            "length": list(self.length),
            "distinct": list(self.distinct),
        }


@dataclass(frozen=True, slots=True)
class Drift:
    """The figures on the prompts about documents and on the general suite."""

    target: Figures = field(default_factory=Figures)
    general: Figures = field(default_factory=Figures)
    cut: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)
    """By item: whether the reply ran into the length limit, (champion's, challenger's)."""
    not_measured: str | None = None
    """Why there is no KL."""

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "target": self.target.to_json(),
            "general": self.general.to_json(),
            "not_measured": self.not_measured,
        }


@dataclass(slots=True)
class Recorder:
    """A sampler that keeps what the engine said of each reply, for the one who asked only for text."""

    sampler: MeasuringSampler
    replies: list[Reply] = field(default_factory=list)

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        """See `adapters.sampling.Sampler`."""
        self.replies += self.sampler.replies(conversations, params, on_progress=on_progress)
        return [reply.text for reply in self.replies[-len(conversations) :]]


def measure_drift(
    items: Sequence[ExamItem],
    champion: Sequence[Reply],
    challenger: Sequence[Reply],
    base_replies: Sequence[Reply | None],
    *,
    base: MeasuringSampler,
    model: MeasuringSampler,
    on_progress: ProgressCallback | None = None,
) -> Drift:
    """All figures from both sides' replies to the items, in the order of the items.

    `base_replies` has the base's reply to each item that is sampled for the KL.

    Raises:
        SamplingError: the engine did not answer.
    """
    told = [(i, reply) for i, reply in enumerate(base_replies) if reply and reply.ids]
    divergences: dict[int, list[float]] = {}
    reason = None
    if not told or not all(reply.prompt_ids for _, reply in told):
        reason = "the engine does not tell the tokens of its replies"
        told = []
    scorings = [Scoring(reply.prompt_ids + reply.ids, len(reply.prompt_ids)) for _, reply in told]
    try:
        theirs = base.score(scorings, on_progress=on_progress)
        ours = model.score(scorings, on_progress=on_progress)
    except NotScored as refusal:
        reason = str(refusal)
    else:
        for (index, _), one, other in zip(told, theirs, ours, strict=True):
            divergences[index] = [kl(p, q) for p, q in zip(one, other, strict=True)]
    general = [i for i, item in enumerate(items) if item.document_id is None]
    target = [i for i, item in enumerate(items) if item.document_id is not None]
    return Drift(
        _figures(target, champion, challenger, divergences),
        _figures(general, champion, challenger, divergences),
        {
            item.id: (one.finish_reason == "length", other.finish_reason == "length")
            for item, one, other in zip(items, champion, challenger, strict=True)
        },
        reason,
    )


def drift_sample(items: Sequence[ExamItem], most: int) -> list[bool]:
    """Which items the KL is measured on: of each kind, general or not, the first by id."""
    chosen: set[str] = set()
    for is_general in (True, False):
        ids = sorted(item.id for item in items if (item.document_id is None) is is_general)
        chosen.update(ids[:most])
    return [item.id in chosen for item in items]


def kl(p: TopK, q: TopK) -> float:
    """KL(p || q) in nats over the tokens that both name and a bucket of all others.

    Never above the divergence of the whole distributions (data processing).
    """
    there = dict(zip(q.ids, q.logprobs, strict=True))
    shared = [
        (math.exp(logprob), math.exp(there[token]))
        for token, logprob in zip(p.ids, p.logprobs, strict=True)
        if token in there
    ]
    rest = (1.0 - sum(a for a, _ in shared), 1.0 - sum(b for _, b in shared))
    total = sum(
        a * math.log(a / max(b, _LEAST_PROBABILITY))
        for a, b in (*shared, rest)
        if a > _LEAST_PROBABILITY
    )
    return max(0.0, total)


def entropy(logprobs: Sequence[float]) -> float:
    """Entropy in nats of a place that is known by its likeliest tokens; the rest is one bucket."""
    known = [math.exp(logprob) for logprob in logprobs]
    rest = 1.0 - sum(known)
    return -sum(p * math.log(p) for p in (*known, rest) if p > _LEAST_PROBABILITY)


def distinct_pairs(reply: str) -> float | None:
    """Share of the reply's word pairs that are the first of their kind; None below two words."""
    words = reply.casefold().split()
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else None


def _figures(
    indices: Sequence[int],
    champion: Sequence[Reply],
    challenger: Sequence[Reply],
    divergences: dict[int, list[float]],
) -> Figures:
    found = [value for index in indices for value in divergences.get(index, ())]
    first, second = (_of_side([side[i] for i in indices]) for side in (champion, challenger))
    return Figures(
        prompts=len(indices),
        kl=_mean(found),
        entropy=(first[0], second[0]),
        length=(first[1], second[1]),
        distinct=(first[2], second[2]),
    )


def _of_side(replies: Sequence[Reply]) -> tuple[float | None, float | None, float | None]:
    """Mean entropy, length and share of distinct pairs."""
    places = [place for reply in replies for place in reply.likeliest]
    lengths = [float(len(reply.ids)) for reply in replies if reply.ids]
    pairs = [share for reply in replies if (share := distinct_pairs(reply.text)) is not None]
    return _mean([entropy(place) for place in places]), _mean(lengths), _mean(pairs)


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 6) if values else None
