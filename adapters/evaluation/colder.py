"""The same model at a colder temperature: what a method that only sharpens is to be held against.

SePT (arXiv 2510.18814) makes what a model prefers likelier, and so does a lower temperature. A fair
comparison lets the untouched model sample at the temperature at which it is as sure of its words as
the trained one is at 1. Entropies are read from the likeliest tokens that the engine tells, all
others being one bucket: a lower bound, for both sides alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

from adapters.evaluation.drift import entropy
from adapters.sampling import MeasuringSampler, NotScored
from adapters.types import ChatMessage, SamplingParams, TopK

GRID = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0)
"""Temperatures that the untouched model is asked at."""


def colder_temperature(
    trained: MeasuringSampler,
    untouched: MeasuringSampler,
    conversations: Sequence[Sequence[ChatMessage]],
    params: SamplingParams,
    *,
    grid: Sequence[float] = GRID,
) -> float | None:
    """Where the untouched model's entropy equals that of the trained one at temperature 1.

    None if it lies outside of the grid. `params` say all but the temperature.

    Raises:
        NotScored: the engine tells no log-probabilities.
        SamplingError: it did not answer.
    """
    entropies = {
        temperature: entropy_of(untouched, conversations, params, temperature)
        for temperature in grid
    }
    return matching(entropies, entropy_of(trained, conversations, params, 1.0))


def entropy_of(
    sampler: MeasuringSampler,
    conversations: Sequence[Sequence[ChatMessage]],
    params: SamplingParams,
    temperature: float,
) -> float:
    """Mean entropy, per token in nats, of what is sampled from at a temperature.

    Raises:
        NotScored, SamplingError: as `colder_temperature`.
    """
    replies = sampler.replies(conversations, replace(params, temperature=temperature))
    places = [place for reply in replies for place in reply.likeliest if place.ids]
    if not places:
        raise NotScored("the engine tells no log-probabilities of its replies")
    return fmean(entropy(tempered(place, temperature)) for place in places)


def tempered(place: TopK, temperature: float) -> TopK:
    """What is likeliest at another temperature, above 0, from what is at temperature 1.

    The tokens that are not named count as so many equal ones as are, which at temperature 1 leaves
    the place as it is.
    """
    rest = max(0.0, 1.0 - math.fsum(map(math.exp, place.logprobs)))
    count = len(place.ids)
    scaled = [logprob / temperature for logprob in place.logprobs]
    unnamed = count * (rest / count) ** (1.0 / temperature)
    highest = max(scaled)
    total = math.fsum(math.exp(each - highest) for each in scaled)
    total += unnamed * math.exp(-highest)
    return TopK(place.ids, tuple(each - highest - math.log(total) for each in scaled))


def matching(entropies: Mapping[float, float], target: float) -> float | None:
    """The temperature of a target entropy, linear between measured ones; None outside of them."""
    points = sorted(entropies.items())
    for (low, below), (high, above) in pairwise(points):
        if min(below, above) <= target <= max(below, above):
            if above == below:
                return high
            return low + (target - below) / (above - below) * (high - low)
    return None
