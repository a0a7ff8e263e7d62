"""EngineSampler: `adapters.Sampler` over the serving engine, at low priority.

Learning rides on idle capacity: vLLM serves lower numbers first, and users' requests carry 0.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from adapters.sampling import SamplingError
from adapters.types import ChatMessage, ProgressCallback, SamplingParams
from server.core.errors import EngineError
from server.core.settings import Settings
from server.engine.control import EngineControl, open_control

LEARNING_PRIORITY = 10


class EngineSampler:
    """Generates with the weights of one engine name."""

    def __init__(self, settings: Settings, engine_name: str) -> None:
        self._settings = settings
        self._engine_name = engine_name

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        """See :class:`adapters.sampling.Sampler`; the requests run side by side."""
        return asyncio.run(self._chat(conversations, params, on_progress))

    async def _chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        on_progress: ProgressCallback | None,
    ) -> list[str]:
        slots = asyncio.Semaphore(self._settings.learning.rollout_concurrency)
        done = 0

        async def complete(control: EngineControl, messages: Sequence[ChatMessage]) -> str:
            nonlocal done
            async with slots:
                reply = await control.chat(self._engine_name, _body(messages, params))
            done += 1
            if on_progress is not None:
                on_progress(done, len(conversations))
            return reply

        try:
            async with (
                open_control(self._settings.engine) as control,
                asyncio.TaskGroup() as group,
            ):
                tasks = [
                    group.create_task(complete(control, messages)) for messages in conversations
                ]
        except* EngineError as errors:
            raise SamplingError(str(errors.exceptions[0])) from errors
        except* Exception as errors:
            # on_progress stopped the work (a cancel, a lost lease): its own error goes on
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]


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
