"""SPECS's pairs: two replies with one answer, of which one keeps the contract and one does not.

The answer never differs within a pair, or the model would learn it from its form. Where the model
itself has not said the same in a wrong form, the rejected reply is a corrupted copy of the chosen.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from adapters.methods.corruptions import corrupt
from adapters.redaction import redact
from adapters.rewards.same_answer import is_same_answer
from adapters.spec import AnswerSpec, AnswerVerifier, ContractSpec, SpecsConfig
from adapters.types import JSON, Prompt, TextPair

SAMPLED = "the model's own"
"""Kind of a pair whose rejected reply was sampled."""
WRONG = "a wrong answer"
"""Kind of a pair of the coupled control."""
ALONE = "the chosen alone"
"""Kind of what the SFT control learns."""

_SHOWN_CHARS = 200
_MARGIN_TOKENS = 64
"""By how much a corrupted copy may be longer than the chosen reply, in tokens."""


@dataclass(frozen=True, slots=True)
class FormReply:
    """A sampled reply, looked at."""

    text: str
    fault: str | None
    """Why it does not keep the contract."""
    is_right: bool | None
    """None: nobody can tell."""
    is_truncated: bool
    prompt_tokens: int
    tokens: int

    @property
    def keeps_form(self) -> bool:
        return self.fault is None and not self.is_truncated


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt with what was sampled for it."""

    prompt: Prompt
    replies: tuple[FormReply, ...]
    """To the prompt as it is."""
    shown: tuple[FormReply, ...] = ()
    """To the prompt with the form asked for, or by a model that was trained on form."""


@dataclass(slots=True)
class Pairs:
    """What pairs could be made, and of which kind."""

    pairs: list[TextPair] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    """Prompts without a pair, by the reason."""
    examples: dict[str, JSON] = field(default_factory=dict)
    """The first pair of each kind, redacted and cut short."""

    def add(self, kind: str, pair: TextPair) -> None:
        self.pairs.append(pair)
        self.kinds[kind] += 1
        if kind not in self.examples:
            self.examples[kind] = {
                "prompt": _shown(pair.prompt[-1]["content"]),
                "chosen": _shown(pair.chosen),
                "rejected": None if pair.rejected is None else _shown(pair.rejected),
            }

    def report(self) -> dict[str, JSON]:
        """For the run's report."""
        return {
            "count": len(self.pairs),
            "kinds": dict(self.kinds),
            "prompts_without": dict(self.skipped),
            "examples": dict(self.examples),
        }


def build_pairs(asked: Sequence[Asked], config: SpecsConfig) -> Pairs:
    """At most `config.pairs_per_prompt` pairs of each prompt, in their order; the seed decides
    which corruption is taken."""
    made = Pairs()
    draw = random.Random(config.seed)
    for one in asked:
        chosen = _chosen(one, config)
        if isinstance(chosen, str):
            made.skipped[chosen] += 1
            continue
        found = list(_pairs_of(one, chosen, config, draw))
        for kind, pair in found:
            made.add(kind, pair)
        if not found:
            made.skipped[_why_none(config)] += 1
    return made


def answer_spec(config: SpecsConfig) -> AnswerSpec | None:
    """How the final answer is read, where the config says it."""
    verifier = config.verifier
    return verifier.answer if isinstance(verifier, AnswerVerifier) else None


def _chosen(one: Asked, config: SpecsConfig) -> list[FormReply] | str:
    """Replies that keep the form, are right where that can be told, and agree; or why none is."""
    passing = [reply for reply in (*one.shown, *one.replies) if reply.keeps_form]
    if not passing:
        return "no reply keeps the form"
    right = [reply for reply in passing if reply.is_right] or [
        reply for reply in passing if reply.is_right is None
    ]
    if config.pairs == "coupled":
        right = [reply for reply in right if reply.is_right]
    if not right:
        return "no reply that keeps the form is right"
    room = config.cold_training.max_tokens - _MARGIN_TOKENS
    fitting = [reply for reply in right if _prompt_tokens(one) + reply.tokens <= room]
    if not fitting:
        return "too long to be trained"
    agreeing = _most_agreed(fitting, config.contract, answer_spec(config))
    return list({reply.text.strip(): reply for reply in agreeing}.values())


def _pairs_of(
    one: Asked, chosen: Sequence[FormReply], config: SpecsConfig, draw: random.Random
) -> Iterator[tuple[str, TextPair]]:
    used: set[str] = set()
    for best in chosen[: config.pairs_per_prompt]:
        kind, rejected = ALONE, None
        if config.cold_start == "dpo":
            found = _rejected(one, best, used, config, draw)
            if found is None:
                continue
            kind, rejected = found
            used.add(rejected)
        weight = config.sft_weight if rejected is not None else 1.0
        yield kind, TextPair(one.prompt.messages, best.text.strip(), rejected, weight)


def _rejected(
    one: Asked, best: FormReply, used: set[str], config: SpecsConfig, draw: random.Random
) -> tuple[str, str] | None:
    others = [
        reply
        for reply in (*one.replies, *one.shown)
        if not reply.is_truncated and reply.text.strip() and reply.text not in used
    ]
    room = config.cold_training.max_tokens - _prompt_tokens(one)
    others = [reply for reply in others if reply.tokens <= room]
    if config.pairs == "coupled":
        wrong = [reply for reply in others if reply.is_right is False]
        wrong.sort(key=lambda reply: reply.keeps_form)  # those that fail in form, too, come first
        return (WRONG, wrong[0].text) if wrong else None
    spec = answer_spec(config)
    for reply in others:
        is_candidate = reply.fault is not None and _is_as_right(reply, best)
        if is_candidate and is_same_answer(best.text, reply.text, config.contract, spec):
            return SAMPLED, reply.text
    return corrupt(best.text, config.contract, draw)


def _is_as_right(reply: FormReply, best: FormReply) -> bool:
    return bool(reply.is_right) if best.is_right else reply.is_right is not False


def _most_agreed(
    replies: Sequence[FormReply], contract: ContractSpec, answer: AnswerSpec | None
) -> list[FormReply]:
    """The largest group of replies with the same answer; of equals the first."""
    groups: list[list[FormReply]] = []
    for reply in replies:
        for group in groups:
            if is_same_answer(group[0].text, reply.text, contract, answer):
                group.append(reply)
                break
        else:
            groups.append([reply])
    return max(groups, key=len)


def _prompt_tokens(one: Asked) -> int:
    """Of the prompt as it is trained, without what asks for the form."""
    return max((reply.prompt_tokens for reply in one.replies), default=0)


def _why_none(config: SpecsConfig) -> str:
    if config.pairs == "coupled":
        return "no wrong reply"
    return "nothing fails the form with the same answer"


def _shown(text: str) -> str:
    clean = redact(text)
    return clean if len(clean) <= _SHOWN_CHARS else f"{clean[:_SHOWN_CHARS]}…"
