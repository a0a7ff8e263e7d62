"""EngineSampler: `adapters.Sampler` over the serving engine, at low priority.

Learning rides on idle capacity: vLLM serves lower numbers first, and users' requests carry 0.
"""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from hashlib import blake2b
from typing import Any

from adapters.sampling import SamplingError
from adapters.types import ChatMessage, ProgressCallback, SamplingParams
from server.core.errors import EngineError, EngineUnavailable
from server.core.settings import Settings
from server.engine.control import EngineControl, open_control
from workers.patience import PAUSE_S, Patience

LEARNING_PRIORITY = 10


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
        return asyncio.run(self._chat(conversations, params, on_progress))

    async def _chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        on_progress: ProgressCallback | None,
    ) -> list[str]:
        slots = asyncio.Semaphore(self._settings.learning.rollout_concurrency)
        patience = Patience(self._settings.engine.start_timeout_s)
        done = 0

        def report() -> None:
            if on_progress is not None:
                on_progress(done, len(conversations))

        async def complete(
            controls: Sequence[EngineControl], messages: Sequence[ChatMessage]
        ) -> str:
            nonlocal done
            order = _in_order(controls, messages)
            async with slots:
                while True:
                    try:
                        reply = await self._ask_in_turn(order, _body(messages, params))
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
                    tasks = [
                        group.create_task(complete(controls, messages))
                        for messages in conversations
                    ]
        except BaseExceptionGroup as failures:
            raise _first_cause(failures) from None
        return [task.result() for task in tasks]

    async def _ask_in_turn(self, order: Sequence[EngineControl], body: dict[str, Any]) -> str:
        for control in order[:-1]:
            try:
                return await control.chat(self._engine_name, body)
            except EngineUnavailable:
                continue
        return await order[-1].chat(self._engine_name, body)


def _in_order(
    controls: Sequence[EngineControl], messages: Sequence[ChatMessage]
) -> list[EngineControl]:
    """The replicas as this prompt asks them: the same order for whichever weights."""
    if len(controls) == 1:
        return list(controls)
    prompt = json.dumps(messages)

    def rank(control: EngineControl) -> bytes:
        return blake2b(f"{control.client.url}\n{prompt}".encode(), digest_size=8).digest()

    return sorted(controls, key=rank, reverse=True)


def _first_cause(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Whatever stopped the work on purpose (a cancel, a lost lease), else the engine's failure."""
    _, others = failures.split(EngineError)
    if others is not None:
        return _leaf(others)
    return SamplingError(str(_leaf(failures)))


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
