"""How far the challenger has moved from the base model, whatever is right or wrong.

RL's Razor (Shenfeld, Pari and Agrawal, arXiv 2509.04259): what a model forgets is told by the mean
of KL(base || model) over the base's own replies. Here the base answers a sample of the exam's
prompts greedily, and both models say what they find likely in the place of some tokens of those
replies. A place is known by its likeliest tokens only; all others are one bucket, so the figure is
a lower bound of the true divergence, and of the entropy.

Entropy and length are compared on the general suite: on what was learnt, a model that knows the
answer is surer, and shorter or longer, than one that does not.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

from adapters.sampling import MeasuringSampler, NotScored, Reply
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
    _by_conversation: dict[str, Reply] = field(default_factory=dict)

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
            self._by_conversation.setdefault(_key(messages), reply)
        return [reply.text for reply in replies]

    def replies_to(self, items: Sequence[ExamItem]) -> list[Reply]:
        """The first reply to each item; an empty one where it was never asked."""
        return [self._by_conversation.get(_key(item.conversation), Reply("")) for item in items]


def _key(messages: Sequence[ChatMessage]) -> str:
    return json.dumps(list(messages))


def measure_drift(
    items: Sequence[ExamItem],
    champion: Sequence[Reply],
    challenger: Sequence[Reply],
    *,
    base: MeasuringSampler,
    model: MeasuringSampler,
    most: int,
    places: int,
    max_new_tokens: int,
    base_replies: Sequence[Reply] | None = None,
    on_progress: ProgressCallback | None = None,
) -> Drift:
    """All figures, from both sides' replies to the items in their order.

    The KL is measured on `most` items about documents and `most` general ones, at `places` tokens
    of each reply. `model` speaks with the challenger's weights; `base_replies` are the base's to all items, where it was asked them.

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
                [items[index].conversation for index in chosen],
                # A prompt that fits the exam's reply may leave no room for this one.
                SamplingParams(max_tokens=max_new_tokens, may_be_refused=True),
                on_progress=on_progress,
            )
        )
        found = divergences_of(replies, model, places, on_progress)
        divergences = dict(zip(chosen, found, strict=True))
    except NotScored as refusal:
        reason = str(refusal)
    general = [index for index, item in enumerate(items) if item.is_general]
    target = [index for index, item in enumerate(items) if not item.is_general]
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
        indices = [index for index, item in enumerate(items) if item.is_general is is_general]
        chosen += sorted(indices, key=lambda index: items[index].id)[:most]
    return sorted(chosen)


def divergences_of(
    replies: Sequence[Reply],
    model: MeasuringSampler,
    places: int,
    on_progress: ProgressCallback | None = None,
) -> list[list[float]]:
    """KL(base || model) at up to `places` tokens of each of the base's replies, evenly spread from
    the first; in nats.

    Raises:
        NotScored: the engine does not tell what that takes.
        SamplingError: it did not answer.
    """
    beginnings: list[tuple[int, ...]] = []
    expected: list[tuple[int, TopK]] = []
    for number, reply in enumerate(replies):
        if not reply.text:
            continue
        if not reply.prompt_ids or not reply.ids or len(reply.likeliest) < len(reply.ids):
            raise NotScored("the engine does not tell the tokens of its replies")
        for place in _spread(len(reply.ids), places):
            if not reply.likeliest[place].ids:
                raise NotScored("the engine names no tokens in its log-probabilities")
            beginnings.append(reply.prompt_ids + reply.ids[:place])
            expected.append((number, reply.likeliest[place]))
    found: list[list[float]] = [[] for _ in replies]
    scored = model.score(beginnings, on_progress=on_progress) if beginnings else []
    for (number, theirs), ours in zip(expected, scored, strict=True):
        if not ours.ids or any(map(math.isnan, ours.logprobs)):
            raise NotScored("the engine names no likely tokens after given ones")
        found[number].append(kl(theirs, ours))
    return found


def _spread(length: int, most: int) -> list[int]:
    count = min(length, most)
    return [index * length // count for index in range(count)]


def kl(p: TopK, q: TopK) -> float:
    """Lower bound of KL(p || q) in nats, from the likeliest tokens of both.

    A token that q does not name is there at most as likely as the last that it names; all that p
    does not name is one bucket (data processing).
    """
    there = dict(zip(q.ids, q.logprobs, strict=True))
    rest_q = max(0.0, 1.0 - sum(map(math.exp, q.logprobs)))
    unnamed = min([rest_q, *map(math.exp, q.logprobs)])
    total, named_q = 0.0, 0.0
    for token, logprob in zip(p.ids, p.logprobs, strict=True):
        probability = math.exp(there[token]) if token in there else unnamed
        named_q += probability if token in there else 0.0
        total += _term(math.exp(logprob), probability)
    rest_p = 1.0 - sum(map(math.exp, p.logprobs))
    return max(0.0, total + _term(rest_p, 1.0 - named_q))


def _term(p: float, q: float) -> float:
    return p * math.log(p / max(q, _LEAST_PROBABILITY)) if p > _LEAST_PROBABILITY else 0.0


def entropy(place: TopK) -> float:
    """Entropy in nats of a place that is known by its likeliest tokens; the rest is one bucket."""
    known = [math.exp(logprob) for logprob in place.logprobs]
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
    places = [place for reply in replies for place in reply.likeliest if place.ids]
    lengths = [float(len(reply.ids)) for reply in replies if reply.ids]
    pairs = [share for reply in replies if (share := distinct_pairs(reply.text)) is not None]
    return _mean([entropy(place) for place in places]), _mean(lengths), _mean(pairs)


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 6) if values else None
