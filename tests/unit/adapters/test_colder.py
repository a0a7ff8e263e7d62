"""The temperature at which an untouched model is as sure as a trained one."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.evaluation.colder import colder_temperature, matching, tempered
from adapters.evaluation.drift import entropy
from adapters.sampling import NotScored, Reply
from adapters.types import ChatMessage, ProgressCallback, SamplingParams, TopK
from tests.support.workbench import ScriptedSampler

logits = st.lists(st.floats(-3, 3), min_size=2, max_size=5)


def place_of(values: Sequence[float]) -> TopK:
    total = math.log(sum(map(math.exp, values)))
    return TopK(tuple(range(len(values))), tuple(value - total for value in values))


class CertainSampler(ScriptedSampler):
    """Every token's logits are the same ones."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__(lambda _: "-")
        self.values = values

    def replies(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[Reply]:
        place = place_of(self.values)  # the engine tells those at temperature 1, whatever is asked
        return [Reply("-", "stop", (1,), (0,), (place,)) for _ in conversations]


@given(values=logits, temperature=st.floats(0.2, 1.0))
def test_a_place_at_another_temperature_is_its_logits_divided(
    values: list[float], temperature: float
) -> None:
    cold = tempered(place_of(values), temperature)

    expected = place_of([value / temperature for value in values])
    assert cold.logprobs == pytest.approx(expected.logprobs, abs=1e-6)
    assert entropy(cold) <= entropy(place_of(values)) + 1e-9


def test_at_temperature_1_a_place_known_in_part_stays_as_it_is() -> None:
    place = TopK((1, 2), (math.log(0.5), math.log(0.2)))

    assert tempered(place, 1.0).logprobs == pytest.approx(place.logprobs)


def test_the_temperature_is_found_that_makes_the_untouched_model_as_sure() -> None:
    values = (1.0, 0.0, -1.0)
    trained = CertainSampler([value / 0.6 for value in values])  # the fixed point of 0.6

    found = colder_temperature(
        trained,
        CertainSampler(values),
        [[{"role": "user", "content": "Hi."}]],
        SamplingParams(max_tokens=1),
        grid=[0.1 * n for n in range(1, 11)],
    )

    assert found == pytest.approx(0.6, abs=0.02)


def test_outside_of_what_was_measured_there_is_no_such_temperature() -> None:
    assert matching({0.5: 1.0, 1.0: 2.0}, 2.5) is None
    assert matching({0.5: 1.0, 1.0: 2.0}, 1.5) == pytest.approx(0.75)


def test_an_engine_that_tells_nothing_is_no_temperature() -> None:
    silent = ScriptedSampler(lambda _: "Hi.")

    with pytest.raises(NotScored):
        colder_temperature(
            silent, silent, [[{"role": "user", "content": "Hi."}]], SamplingParams(max_tokens=1)
        )
