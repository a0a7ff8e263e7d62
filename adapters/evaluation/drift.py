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
    """A sampler that keeps what the engine said of each reply, for one who asks only for text."""

    sampler: MeasuringSampler
    _by_prompt: dict[str, Reply] = field(default_factory=dict)

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        """See `adapters.sampling.Sampler`."""
        replies = self.sampler.replies(conversations, params, on_progress=on_progress)
        for messages, reply in zip(conversations, replies, strict=True):
            self._by_prompt.setdefault(messages[-1]["content"], reply)
        return [reply.text for reply in replies]

    def replies_to(self, items: Sequence[ExamItem]) -> list[Reply]:
        """The first reply to each item's prompt; an empty one where it was never asked."""
        return [self._by_prompt.get(item.prompt, Reply("")) for item in items]


def measure_drift(
    items: Sequence[ExamItem],
    champion: Sequence[Reply],
    challenger: Sequence[Reply],
    *,
    base: MeasuringSampler,
    model: MeasuringSampler,
    most: int,
    max_new_tokens: int,
    base_replies: Sequence[Reply] | None = None,
    on_progress: ProgressCallback | None = None,
) -> Drift:
    """All figures, from both sides' replies to the items in their order.

    The KL is measured on `most` items about documents and `most` general ones. `model` speaks with
    the challenger's weights; `base_replies` are the base's to all items, where it was asked them.

    Raises:
        SamplingError: the engine did not answer.
    """
    chosen = _sample(items, most)
    divergences: dict[int, list[float]] = {}
    reason = None
    try:
        replies = (
            [base_replies[index] for index in chosen]
            if base_replies is not None
            else base.replies(
                [[{"role": "user", "content": items[index].prompt}] for index in chosen],
                SamplingParams(max_tokens=max_new_tokens),
                on_progress=on_progress,
            )
        )
        found = _divergences(replies, base, model, on_progress)
        divergences = dict(zip(chosen, found, strict=True))
    except NotScored as refusal:
        reason = str(refusal)
    general = [index for index, item in enumerate(items) if item.document_id is None]
    target = [index for index, item in enumerate(items) if item.document_id is not None]
    return Drift(
        _figures(target, champion, challenger, divergences),
        _figures(general, champion, challenger, divergences),
        {
            item.id: (one.finish_reason == "length", other.finish_reason == "length")
            for item, one, other in zip(items, champion, challenger, strict=True)
        },
        reason,
    )


def _sample(items: Sequence[ExamItem], most: int) -> list[int]:
    """Of each kind, general or not, the first by id; ids of documents' items are hashes."""
    chosen: list[int] = []
    for is_general in (True, False):
        indices = [
            index for index, item in enumerate(items) if (item.document_id is None) is is_general
        ]
        chosen += sorted(indices, key=lambda index: items[index].id)[:most]
    return sorted(chosen)


def _divergences(
    replies: Sequence[Reply],
    base: MeasuringSampler,
    model: MeasuringSampler,
    on_progress: ProgressCallback | None,
) -> list[list[float]]:
    """KL at each token of the base's replies."""
    if not all(reply.prompt_ids and reply.ids for reply in replies if reply.text):
        raise NotScored("the engine does not tell the tokens of its replies")
    scorings = [
        Scoring(reply.prompt_ids + reply.ids, len(reply.prompt_ids))
        for reply in replies
        if reply.prompt_ids and reply.ids
    ]
    theirs = base.score(scorings, on_progress=on_progress)
    ours = iter(model.score(scorings, on_progress=on_progress))
    found = iter([kl(p, q) for p, q in zip(one, next(ours), strict=True)] for one in theirs)
    return [next(found) if reply.prompt_ids and reply.ids else [] for reply in replies]


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
