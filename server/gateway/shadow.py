"""Copies of answered requests for the challenger of a shadow trial; no user waits for them or sees them.

A copy begins when its original's last byte is out. It goes to the engine behind all that users ask,
a few at a time; what does not fit is dropped, since a trial needs a sample only. The key that asked
pays nothing for it.
"""

import asyncio
import dataclasses

import structlog

from server.core.clock import monotonic, new_id, utc_now
from server.core.errors import EngineError
from server.db import Endpoint, Outcome
from server.engine.proxy import EngineReply, open_reply
from server.engine.reading import Assembled
from server.engine.routing import Route
from server.gateway.capture import Capture
from server.gateway.endpoints import EngineRequest
from server.gateway.errors import engine_refusal, is_lost_model
from server.gateway.records import interaction_record
from server.runtime import Runtime
from server.services.keys import Principal

log = structlog.get_logger(__name__)

MOST_IN_FLIGHT = 4
PRIORITY = 100
"""vLLM takes lower numbers first: users carry 0, learning 10."""

_COPIED = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.MESSAGES)


class Shadows:
    """The copies of one gateway."""

    def __init__(self, runtime: Runtime, capture: Capture) -> None:
        self._runtime = runtime
        self._capture = capture
        self._tasks: set[asyncio.Task[None]] = set()
        self.dropped = 0
        """Copies that were not made, because as many as may be were in flight."""

    def copy(
        self, original_id: str, principal: Principal, request: EngineRequest, route: Route
    ) -> None:
        """Ask the challenger the same, in the background; never raises, never waits.

        What the client does not let us keep is not copied either.
        """
        if request.endpoint.kind not in _COPIED or not request.may_store:
            return
        if len(self._tasks) >= MOST_IN_FLIGHT:
            self.dropped += 1
            log.debug("shadow_dropped", dropped=self.dropped)
            return
        quiet = dataclasses.replace(request, is_stream=False, body=_quiet(request.body))
        task = asyncio.create_task(self._ask(original_id, principal, quiet, route), name="shadow")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Let go of what is in flight; it leaves no record."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(
        self, original_id: str, principal: Principal, request: EngineRequest, route: Route
    ) -> None:
        try:
            await self._ask_and_record(original_id, principal, request, route)
        except Exception:
            # The named boundary of a task that nobody waits for.
            log.exception("shadow_failed", original=original_id)

    async def _ask_and_record(
        self, original_id: str, principal: Principal, request: EngineRequest, route: Route
    ) -> None:
        replica = self._runtime.fleet.pick(route)
        if replica is None:  # it is loaded again by itself, or not; no user waits
            return
        interaction_id, created_at, began = new_id("int"), utc_now(), monotonic()
        read, status, error = Assembled(), 200, None
        try:
            with self._runtime.lease(route) as lease:
                lease.move_to(replica)
                async with (
                    asyncio.timeout(self._runtime.settings.engine.read_timeout_s),
                    open_reply(
                        replica.client,
                        request.endpoint.door,
                        route.engine_name,
                        request.body,
                        interaction_id,
                    ) as reply,
                ):
                    read, status, error = await _heard(reply, request)
        except EngineError as failure:
            status, error = failure.status, str(failure)
        except TimeoutError:
            status, error = 503, "no answer in time"
        if status == 404:
            return
        outcome = Outcome.COMPLETE if error is None else Outcome.ENGINE_ERROR
        duration_ms = round((monotonic() - began) * 1000, 3)
        self._runtime.metrics.request_done(
            route.adapter,
            route.version_name,
            route.arm,
            request.endpoint.path,
            outcome,
            seconds=duration_ms / 1000,
            first_byte_s=None,
            prompt_tokens=read.prompt_tokens,
            completion_tokens=read.completion_tokens,
        )
        self._capture.record(
            interaction_record(
                interaction_id=interaction_id,
                created_at=created_at,
                principal=principal,
                request=request,
                route=route,
                read=read,
                outcome=outcome,
                status=status,
                error=error,
                first_byte_ms=None,
                duration_ms=duration_ms,
                may_learn=False,
                shadow_of=original_id,
            )
        )


async def _heard(reply: EngineReply, request: EngineRequest) -> tuple[Assembled, int, str | None]:
    """What came, its status, and the error if it is one; 404 where the weights are gone."""
    body = await reply.body()
    if reply.status == 200:
        read = reply.assembled()
        return read, 200, read.error
    if is_lost_model(reply.status, body):
        return Assembled(), 404, None
    refusal = engine_refusal(request.endpoint, reply.status, body)
    return Assembled(), refusal.status, refusal.envelope["error"]["message"]


def _quiet(body: dict[str, object]) -> dict[str, object]:
    """The same request, whole instead of streamed, and behind all others."""
    kept = {name: value for name, value in body.items() if name != "stream_options"}
    return {**kept, "stream": False, "priority": PRIORITY}
