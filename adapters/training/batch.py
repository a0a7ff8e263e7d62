"""Training samples to tensors: encoding through the chat template, and packing without padding.

A batch is one row. Sequences that begin with the same tokens (in a chat: the system prompt) share
them: the common prefix is computed once, each sequence attends to it and to itself only. Samples of
one group (rollouts of a prompt, two answers compared) share what they have in common beyond that.
On short sequences that halves the work, and there is no padding that could be trained by mistake.
Not covered: models with recurrent layers, which see no attention mask.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adapters.types import (
    ChatMessage,
    Component,
    Judged,
    PreferencePair,
    SelfEdit,
    TrainingSample,
    Unit,
    reply_mask,
)

_UnitT = TypeVar("_UnitT", bound=Unit)


@dataclass(frozen=True, slots=True)
class Part:
    """The targets that one loss component acts on."""

    rows_M: Tensor | None  # index in N; None is all of N, in order
    weights_M: Tensor

    def to(self, device: torch.device) -> "Part":
        """The same part on another device."""
        rows = None if self.rows_M is None else self.rows_M.to(device)
        return Part(rows, self.weights_M.to(device))

    def of(self, values_N: Tensor) -> Tensor:
        """The entries of `values_N` that the component acts on; shape M, or M x what follows."""
        return values_N if self.rows_M is None else values_N[self.rows_M]


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences packed in one row of T tokens, N of them predicting a trained token.

    The optional tensors hold NaN where a target's sample does not say.
    """

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    mask_11TT: Tensor  # bool, True where the row index may look at the column index
    predictors_N: Tensor  # index in T whose hidden state predicts the target
    targets_N: Tensor
    samples_N: Tensor  # which of the batch's samples a target belongs to
    parts: Mapping[Component, Part]
    advantages_N: Tensor | None = None
    sampler_N: Tensor | None = None
    old_N: Tensor | None = None
    reference_N: Tensor | None = None
    teacher_ids_NK: Tensor | None = None
    teacher_logprobs_NK: Tensor | None = None  # -inf where a place has fewer than K tokens
    pairs_P2: Tensor | None = None  # samples: the chosen, the rejected
    pair_weights_P: Tensor | None = None
    judged_J: Tensor | None = None  # samples
    is_liked_J: Tensor | None = None
    judged_weights_J: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {
            "parts": {component: part.to(device) for component, part in self.parts.items()}
        }
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), Tensor):
                moved[field.name] = value.to(device)
        return Batch(**moved)


def encode(
    edit: SelfEdit, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> TrainingSample:
    """A self-edit as a sample for `ce`, ending in exactly one end-of-text or end-of-turn.

    A prompt is rendered by the tokenizer's chat template, as the engine's chat endpoint does.
    What the texts themselves hold of the model's control tokens is encoded as the plain characters
    that it is: a document cannot end a turn. An edit longer than `max_tokens` loses its tail, the end marker with it
    (`encode_whole` keeps it). The weights lie between a token mean and a sequence mean: a long passage counts more than a name, not 50 times.
    """
    if edit.prompt is None:
        head: list[int] = []
        end = _required_eos(tokenizer)
        body = plain_ids(edit.text, tokenizer, end)
    else:
        head = encode_prompt(edit.prompt, tokenizer)
        end = end_of_turn(tokenizer)
        body = plain_ids(edit.text, tokenizer, end, add_special_tokens=False)
    ids = (*head, *body, end)[:max_tokens]
    return lesson(ids, max(1, min(len(head), len(ids) - 1)))


def encode_whole(
    edit: SelfEdit, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> list[TrainingSample]:
    """The samples that train all of a self-edit, as `encode` does one that is short enough.

    A text without a prompt that is longer than `max_tokens` becomes several of nearly one length:
    in scripts that the tokenizer hardly knows, 1,500 characters take thousands of tokens. Each begins
    with the token that the one before it ends with, so that every token but the first is trained once.
    """
    if edit.prompt is not None:
        return [encode(edit, tokenizer, max_tokens=max_tokens)]
    end = _required_eos(tokenizer)
    ids = (*plain_ids(edit.text, tokenizer, end), end)
    count = max(1, math.ceil((len(ids) - 1) / (max_tokens - 1)))
    cuts = [part * (len(ids) - 1) // count for part in range(count + 1)]
    return [lesson(ids[start : stop + 1], 1) for start, stop in pairwise(cuts)]


def lesson(ids: tuple[int, ...], trained_from: int) -> TrainingSample:
    """A sample for `ce` whose tokens from `trained_from` on are trained, weighted as in `encode`."""
    count = len(ids) - trained_from
    weight = 1.0 / math.sqrt(count)
    return TrainingSample(
        ids,
        reply_mask(trained_from, len(ids)),
        weights={Component.CE: (weight,) * count},
        mass=weight * count,
    )


def as_anchor(sample: TrainingSample, weight: float = 1.0) -> TrainingSample:
    """The same tokens, not learnt: there the model is held to what the base would say.

    Args:
        sample: for `ce`.
        weight: of its tokens against those that are learnt.
    """
    held = tuple(weight * token for token in sample.weights[Component.CE])
    return dataclasses.replace(sample, weights={Component.REF_KL: held}, mass=weight * sample.mass)


def weighted_anchors(
    samples: Sequence[TrainingSample],
    learnt: Sequence[Unit],
    *,
    per_epoch: int,
    least_share: float,
) -> list[TrainingSample]:
    """The samples, for `ce`, as anchors that have at least `least_share` of an epoch's weight.

    Args:
        samples: all of them, of which an epoch draws `per_epoch`.
        learnt: what else an epoch goes through.
    """
    drawn = per_epoch * sum(sample.mass for sample in samples) / max(1, len(samples))
    wanted = least_share / (1 - least_share) * sum(unit.mass for unit in learnt)
    weight = max(1.0, wanted / drawn) if drawn else 1.0
    return [as_anchor(sample, weight) for sample in samples]


def encode_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens before the reply when `prompt` is the only message of a chat."""
    return encode_messages([{"role": "user", "content": prompt}], tokenizer)


def encode_messages(
    messages: Sequence[ChatMessage], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Tokens before the reply to a conversation.

    A last message of the assistant's is gone on with: its turn is left open. The control tokens are
    the template's own; those spelt in a message lose their brackets.
    """
    plain = [
        {**message, "content": without_control_tokens(message["content"], tokenizer)}
        for message in messages
    ]
    begun = plain.pop()["content"] if plain and plain[-1]["role"] == "assistant" else ""
    text = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text + begun, add_special_tokens=False)["input_ids"])


def without_control_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with the tokenizer's control tokens spelt so that they are none: "im_end"."""
    for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
        bare = token.strip("<>|[]\uff5c")
        text = text.replace(token, "" if bare == token else bare)
    return text


def members(unit: Unit) -> tuple[TrainingSample, ...]:
    """The samples of a unit."""
    match unit:
        case PreferencePair():
            return (unit.chosen, unit.rejected)
        case Judged():
            return (unit.sample,)
        case _:
            return (unit,)


@dataclass(frozen=True, slots=True)
class RowCost:
    """What a row costs, in tokens: one token's matrix products are 1.

    In a row every token is compared with every other, also with those that it may not see. So
    sequences that share little are better off in short rows, up to what each row costs by itself.
    """

    per_look: float = 0.0
    """Of comparing one token with one other."""
    per_row: float = math.inf
    """Of one more forward and backward pass."""

    def joins(self, row: int, added: int, alone: int) -> bool:
        """Whether a unit that lengthens a row by `added` is cheaper in it than alone."""
        looks = (row + added) ** 2 - row**2 - alone**2
        return added + self.per_look * looks <= alone + self.per_row


def split_by_tokens(
    units: Sequence[_UnitT], limit: int, cost: RowCost | None = None
) -> Iterator[list[_UnitT]]:
    """Batches of at most `limit` tokens (one longer unit stands alone), shortest first.

    Units of one group come one after another, and what they share counts once. With a `cost`, a
    batch also ends where its row would grow dear.
    """
    cost = cost or RowCost()
    longest: dict[str, int] = {}
    for unit in units:
        if (group := _group(unit)) is not None:
            longest[group] = max(longest.get(group, 0), _token_count(unit))

    def order(unit: _UnitT) -> tuple[int, str, int, tuple[int, ...]]:
        group, count = _group(unit) or "", _token_count(unit)
        return (longest.get(group, count), group, count, _all_ids(unit))

    batch: list[_UnitT] = []
    total = 0
    for unit in sorted(units, key=order):
        added, alone = _added_tokens(unit, after=batch), _added_tokens(unit, after=())
        if batch and (total + added > limit or not cost.joins(total, added, alone)):
            yield batch
            batch, total, added = [], 0, alone
        batch.append(unit)
        total += added
    if batch:
        yield batch


def pack(units: Sequence[Unit], *, divisor: float = 1.0) -> Batch:
    """One row of the units' samples behind their common prefix, weights divided by `divisor`.

    A prefix stops before the first trained token's predictor of any sequence in it, so that every
    prediction has its own hidden state.
    """
    samples, pairs, judged = _flatten(units)
    order, row = _lay_out(samples)
    ordered = [samples[index] for index in order]
    optional = {
        "advantages_N": _gather([s.advantages for s in ordered], ordered),
        "sampler_N": _gather([s.sampler_logprobs for s in ordered], ordered),
        "old_N": _gather([s.old_logprobs for s in ordered], ordered),
        "reference_N": _gather([s.reference_logprobs for s in ordered], ordered),
    }
    teacher_ids_NK, teacher_logprobs_NK = _teachers(ordered)
    return Batch(
        torch.tensor([row.ids]),
        torch.tensor([row.positions]),
        _attention_mask(torch.tensor(row.groups), torch.tensor(row.owners)),
        torch.tensor(row.predictors),
        torch.tensor(row.targets),
        torch.tensor([i for i in order for _ in range(samples[i].trained_count)]),
        parts=_parts(ordered, divisor),
        **optional,
        teacher_ids_NK=teacher_ids_NK,
        teacher_logprobs_NK=teacher_logprobs_NK,
        pairs_P2=torch.tensor(list(pairs)) if pairs else None,
        pair_weights_P=_weights(pairs.values(), divisor),
        judged_J=torch.tensor(list(judged)) if judged else None,
        is_liked_J=torch.tensor([unit.is_liked for unit in judged.values()]) if judged else None,
        judged_weights_J=_weights(judged.values(), divisor),
    )


class _Row:
    """The packed row while it grows."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.groups: list[int] = []  # -1: shared by all
        self.owners: list[int] = []  # -1: shared by all, or by the group
        self.predictors: list[int] = []
        self.targets: list[int] = []

    def add(self, ids: Sequence[int], *, start: int, group: int = -1, owner: int = -1) -> None:
        """Tokens of a sequence from its position `start` on."""
        self.ids.extend(ids)
        self.positions.extend(range(start, start + len(ids)))
        self.groups.extend([group] * len(ids))
        self.owners.extend([owner] * len(ids))

    def train(self, sample: TrainingSample, *, offset: int) -> None:
        """Predict the sample's trained tokens; its token i lies at i + `offset` in the row."""
        for index in range(sample.trained_from, len(sample.ids)):
            if sample.is_trained[index]:
                self.predictors.append(offset + index - 1)
                self.targets.append(sample.ids[index])


def _lay_out(samples: Sequence[TrainingSample]) -> tuple[list[int], _Row]:
    """The order of the samples in the row, group by group, and the row."""
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(f"#{index}" if sample.group is None else f"@{sample.group}", []).append(
            index
        )
    heads = [_head(sample) for sample in samples]
    shared = _common_prefix(heads)
    row = _Row()
    row.add(samples[0].ids[:shared], start=0)
    for group, indices in enumerate(groups.values()):
        own = shared if len(indices) == 1 else _common_prefix([heads[index] for index in indices])
        row.add(samples[indices[0]].ids[shared:own], start=shared, group=group)
        for index in indices:
            offset = len(row.ids) - own
            row.add(samples[index].ids[own:], start=own, group=group, owner=index)
            row.train(samples[index], offset=offset)
    return list(chain.from_iterable(groups.values())), row


def _flatten(
    units: Sequence[Unit],
) -> tuple[list[TrainingSample], dict[tuple[int, int], PreferencePair], dict[int, Judged]]:
    """All samples; the pairs by their two indices; the judged ones by theirs. A pair is a group."""
    samples: list[TrainingSample] = []
    pairs: dict[tuple[int, int], PreferencePair] = {}
    judged: dict[int, Judged] = {}
    for number, unit in enumerate(units):
        match unit:
            case PreferencePair():
                pairs[len(samples), len(samples) + 1] = unit
                group = f"pair {number}"
                samples.extend(dataclasses.replace(s, group=group) for s in members(unit))
            case Judged():
                judged[len(samples)] = unit
                samples.append(unit.sample)
            case _:
                samples.append(unit)
    return samples, pairs, judged


def _weights(units: Collection[PreferencePair | Judged], divisor: float) -> Tensor | None:
    return torch.tensor([unit.weight / divisor for unit in units]) if units else None


def _parts(samples: Sequence[TrainingSample], divisor: float) -> dict[Component, Part]:
    """Which targets each component acts on; those of weight 0 are left out."""
    parts: dict[Component, Part] = {}
    count = sum(sample.trained_count for sample in samples)
    for component in Component:
        silent = (0.0,)
        weights = [
            weight
            for sample in samples
            for weight in sample.weights.get(component, silent * sample.trained_count)
        ]
        rows = [row for row, weight in enumerate(weights) if weight]
        if rows:
            parts[component] = Part(
                None if len(rows) == count else torch.tensor(rows),
                torch.tensor([weights[row] / divisor for row in rows]),
            )
    return parts


def _gather(
    values: Sequence[tuple[float, ...] | None], samples: Sequence[TrainingSample]
) -> Tensor | None:
    """The samples' values one after another, NaN for those that have none; None if none has."""
    if all(value is None for value in values):
        return None
    filled = [
        value or (math.nan,) * s.trained_count for value, s in zip(values, samples, strict=True)
    ]
    return torch.tensor(list(chain.from_iterable(filled)))


def _teachers(samples: Sequence[TrainingSample]) -> tuple[Tensor | None, Tensor | None]:
    """Ids and log-probabilities of the teachers' tokens, N x K, filled up to the largest K."""
    if all(sample.teacher is None for sample in samples):
        return None, None
    width = max(len(place.ids) for sample in samples for place in sample.teacher or ())
    ids: list[tuple[int, ...]] = []
    logprobs: list[tuple[float, ...]] = []
    for sample in samples:
        places = [(p.ids, p.logprobs) for p in sample.teacher or ()]
        for place_ids, place_logprobs in places or [((), ())] * sample.trained_count:
            missing = width - len(place_ids)
            ids.append(place_ids + (0,) * missing)
            logprobs.append(place_logprobs + (-math.inf,) * missing)
    return torch.tensor(ids), torch.tensor(logprobs)


def _group(unit: Unit) -> str | None:
    return None if isinstance(unit, PreferencePair) else members(unit)[0].group


def _token_count(unit: Unit) -> int:
    return sum(len(sample.ids) for sample in members(unit))


def _added_tokens(unit: Unit, *, after: Sequence[Unit]) -> int:
    """By how much the unit lengthens a row, beside what it shares with others of its group."""
    relatives = list(members(unit))
    if _group(unit) is not None and after and _group(after[-1]) == _group(unit):
        relatives.extend(members(after[-1]))
    if len(relatives) == 1:
        return _token_count(unit)
    return _token_count(unit) - _common_prefix([_head(sample) for sample in relatives])


def _head(sample: TrainingSample) -> tuple[int, ...]:
    """What others may share: all before the first trained token's predictor."""
    return sample.ids[: sample.trained_from - 1]


def _all_ids(unit: Unit) -> tuple[int, ...]:
    return tuple(chain.from_iterable(sample.ids for sample in members(unit)))


def _common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all of them share."""
    first, last = min(sequences), max(sequences)
    same = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(same, min(len(first), len(last)))


def _attention_mask(groups_T: Tensor, owners_T: Tensor) -> Tensor:
    """Causal, to what is shared by all, by the own group, and to the own sequence only."""
    is_shared_T = owners_T == -1
    group_TT = (groups_T[:, None] == groups_T[None, :]) | (groups_T[None, :] == -1)
    own_TT = (owners_T[:, None] == owners_T[None, :]) | is_shared_T[None, :]
    return (group_TT & own_TT).tril()[None, None]


def plain_ids(
    text: str, tokenizer: PreTrainedTokenizerBase, end: int, *, add_special_tokens: bool = True
) -> list[int]:
    """A text as tokens none of which is a control token, without an end marker spelt at its end."""
    marker = tokenizer.convert_ids_to_tokens(end)
    while marker and text.rstrip().endswith(marker):
        text = text.rstrip().removesuffix(marker)
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, split_special_tokens=True)
    ids = list(encoded["input_ids"])
    while ids and ids[-1] == end:  # the tokenizer's own, after a text
        ids.pop()
    return ids


def _required_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise ValueError("the tokenizer names no end-of-text token; set eos_token in its config")
    return tokenizer.eos_token_id


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The first special token that the template writes after a reply; else the end of text."""
    reply = "~"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "-"}, {"role": "assistant", "content": reply}], tokenize=False
    )
    tail = tokenizer(str(text).rpartition(reply)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    return next((token for token in tail if token in special), _required_eos(tokenizer))
