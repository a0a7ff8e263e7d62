"""EngineSampler: `adapters.sampling.MeasuringSampler` over the serving engine, at low priority.

Learning rides on idle capacity: vLLM serves lower numbers first, and users' requests carry 0.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from adapters.sampling import NotScored, Reply, SamplingError
from adapters.types import ChatMessage, ProgressCallback, SamplingParams, TopK
from server.core.errors import EngineError, EngineUnavailable
from server.core.settings import Settings
from server.engine.control import TOP_LOGPROBS, EngineControl, open_control, token_id
from server.engine.reading import Assembled
from workers.patience import PAUSE_S, Patience

LEARNING_PRIORITY = 10

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Order(Generic[_T]):
    """One request, which any replica may be asked; equal prompts go to the same one."""

    prompt: Sequence[object]
    ask: Callable[[EngineControl], Awaitable[_T]]


class EngineSampler:
    """Generates with the weights of one engine name.

    Of several replicas, a prompt always goes to the same one, whichever weights are asked, and to
    the next one when that one is away.
    """

    def __init__(self, settings: Settings, engine_name: str, urls: Sequence[str] = ()) -> None:
        self._settings = settings
        self._engine_name = engine_name
        self._urls: Sequence[str | None] = urls or [None]  # none: the settings' own

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        """See :class:`adapters.sampling.Sampler`; the requests run side by side.

        An engine that is away is waited for as long as a start may take.
        """

        def order(messages: Sequence[ChatMessage]) -> _Order[str]:
            body = _body(messages, params)
            return _Order(messages, lambda control: control.chat(self._engine_name, body))

        orders = [order(messages) for messages in conversations]
        return [_storable(text) for text in asyncio.run(self._ask_all(orders, on_progress))]

    def replies(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[Reply]:
        """See :class:`adapters.sampling.MeasuringSampler`."""
        asked = {"logprobs": True, "top_logprobs": TOP_LOGPROBS, "return_token_ids": True}
        asked["return_tokens_as_token_ids"] = True

        def order(messages: Sequence[ChatMessage]) -> _Order[Assembled]:
            body = _body(messages, params) | asked
            return _Order(messages, lambda control: control.reply(self._engine_name, body))

        orders = [order(messages) for messages in conversations]
        return [_reply(found) for found in asyncio.run(self._ask_all(orders, on_progress))]

    def score(
        self, beginnings: Sequence[Sequence[int]], *, on_progress: ProgressCallback | None = None
    ) -> list[TopK]:
        """See :class:`adapters.sampling.MeasuringSampler`."""

        def order(ids: Sequence[int]) -> _Order[dict[int, float]]:
            return _Order(
                ids,
                lambda control: control.next_logprobs(
                    self._engine_name, ids, priority=LEARNING_PRIORITY
                ),
            )

        orders = [order(ids) for ids in beginnings]
        try:
            found = asyncio.run(self._ask_all(orders, on_progress))
        except SamplingError as failure:
            if isinstance(failure.__cause__, EngineUnavailable):
                raise
            raise NotScored(str(failure)) from failure
        return [TopK(tuple(place), tuple(place.values())) for place in found]

    async def _ask_all(
        self, orders: Sequence[_Order[_T]], on_progress: ProgressCallback | None
    ) -> list[_T]:
        slots = asyncio.Semaphore(self._settings.learning.rollout_concurrency)
        patience = Patience(self._settings.engine.start_timeout_s)
        done = 0

        def report() -> None:
            if on_progress is not None:
                on_progress(done, len(orders))

        async def complete(controls: Sequence[EngineControl], order: _Order[_T]) -> _T:
            nonlocal done
            ranked = _in_order(controls, order.prompt)
            async with slots:
                while True:
                    try:
                        reply = await _ask_in_turn(ranked, order)
                        break
                    except EngineUnavailable:
                        # They are being restarted, or users keep them busy beyond our time-out.
                        if patience.must_end():
                            raise
                        report()  # whoever watches may stop the work meanwhile
                        await asyncio.sleep(PAUSE_S)
            done += 1
            report()
            return reply

        try:
            async with AsyncExitStack() as opened:
                controls = [
                    await opened.enter_async_context(open_control(self._settings.engine, url))
                    for url in self._urls
                ]
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(complete(controls, order)) for order in orders]
        except BaseExceptionGroup as failures:
            first = _first_cause(failures)
            raise first from first.__cause__
        return [task.result() for task in tasks]


async def _ask_in_turn(controls: Sequence[EngineControl], order: _Order[_T]) -> _T:
    for control in controls[:-1]:
        try:
            return await order.ask(control)
        except EngineUnavailable:
            continue
    return await order.ask(controls[-1])


def _in_order(controls: Sequence[EngineControl], wanted: Sequence[object]) -> list[EngineControl]:
    """The replicas as this prompt asks them: the same order for whichever weights."""
    if len(controls) == 1:
        return list(controls)
    prompt = json.dumps(wanted)

    def rank(control: EngineControl) -> bytes:
        return blake2b(f"{control.client.url}\n{prompt}".encode(), digest_size=8).digest()

    return sorted(controls, key=rank, reverse=True)


def _first_cause(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Whatever stopped the work on purpose (a cancel, a lost lease), else the engine's failure."""
    _, others = failures.split(EngineError)
    if others is not None:
        return _leaf(others)
    failure = SamplingError(str(_leaf(failures)))
    failure.__cause__ = _leaf(failures)
    return failure


def _leaf(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    first: BaseException = failures
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def _body(messages: Sequence[ChatMessage], params: SamplingParams) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": list(messages),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "priority": LEARNING_PRIORITY,
    }
    if params.seed is not None:
        body["seed"] = params.seed
    if params.stop:
        body["stop"] = list(params.stop)
    return body


def _reply(found: Assembled) -> Reply:
    first = found.first
    return Reply(
        _storable(first.text),
        first.finish_reason,
        tuple(found.prompt_token_ids),
        tuple(first.token_ids),
        tuple(map(_likeliest, first.logprobs.get("content", ()))),
    )


def _storable(text: str) -> str:
    """Without NUL, which a model may say, and PostgreSQL has no place for."""
    return text.replace("\x00", "\ufffd")


def _likeliest(place: dict[str, Any]) -> TopK:
    """Empty from an engine that writes tokens and not their ids."""
    entries = place.get("top_logprobs") or ()
    try:
        ids = tuple(token_id(entry["token"]) for entry in entries)
    except ValueError:
        return TopK((), ())
    return TopK(ids, tuple(float(entry["logprob"]) for entry in entries))
