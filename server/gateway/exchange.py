"""One routed request, from the engine's first byte to the captured record.

Exactly one record is written however the exchange ends: before the last byte of a whole reply, or
when the engine breaks off, the client leaves or the server stops. A client that leaves, streaming
or not, ends the engine's work at once.
"""

import asyncio
from collections.abc import Mapping

import structlog
from starlette.types import Receive, Scope, Send

from server.core.clock import monotonic, new_id, utc_now
from server.core.errors import AppError, EngineUnavailable
from server.db import Outcome
from server.engine.proxy import EngineReply, open_reply
from server.engine.reading import Assembled
from server.engine.replica import Replica
from server.engine.routing import Route
from server.gateway.capture import Capture
from server.gateway.endpoints import EngineRequest
from server.gateway.errors import (
    Refusal,
    engine_refusal,
    error_body,
    is_lost_model,
    stream_error,
)
from server.gateway.records import interaction_record
from server.gateway.retries import Retries, conversation_beginning
from server.gateway.shadow import Shadows
from server.gateway.usage import tokens_used
from server.http import REQUEST_ID, Limiter
from server.runtime import Runtime
from server.services.keys import Principal

log = structlog.get_logger(__name__)

CLIENT_CLOSED = 499
"""Status of a request whose client left; nginx's number, never sent."""

WATCH_AFTER_S = 0.05
"""A request is watched for its client's leaving from then on: a quick one is over before."""


class EngineExchange:
    """The response to a request for the engine, an ASGI app: asks it when it is called, not before."""

    def __init__(
        self,
        runtime: Runtime,
        capture: Capture,
        limiter: Limiter,
        principal: Principal,
        request: EngineRequest,
        route: Route,
        request_id: str,
        shadows: Shadows,
    ) -> None:
        self._request_id = request_id
        self._shadows = shadows
        self._runtime = runtime
        self._capture = capture
        self._limiter = limiter
        self._principal = principal
        self._request = request
        self._endpoint = request.endpoint
        self._route = route
        self._id = new_id("int")
        self._created_at = utc_now()
        self._began = monotonic()
        self._first_byte_ms: float | None = None
        self._status = 200
        self._has_started = False
        self._is_recorded = False
        self._is_complete = False
        self._reply: EngineReply | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = _ClientWatch(receive)
        try:
            await self._answer(send)
        except asyncio.CancelledError:
            if not watch.has_left or watch.is_cancelled_otherwise():
                raise
            self._record(Outcome.CLIENT_LEFT, CLIENT_CLOSED)
        finally:
            watch.stop()
            # Here without a record comes only a server that is told to stop, or one that failed.
            self._record(Outcome.ENGINE_ERROR, self._status, "the server broke the reply off")
        if self._is_complete and self._route.shadow is not None:
            self._shadows.copy(self._id, self._principal, self._request, self._route.shadow)

    async def _answer(self, send: Send) -> None:
        """Ask one replica after another until the client has its answer."""
        retries = Retries()
        affinity = b"" if self._runtime.fleet.is_single else self._affinity()
        try:
            while not await self._is_answered(retries, affinity, send):
                continue
        except AppError as error:
            await self._fail(error, send)

    async def _is_answered(self, retries: Retries, affinity: bytes, send: Send) -> bool:
        """Ask one replica; False when another one is to be asked, or the same once more.

        That is so where it breaks off before anything has gone to the client, and where it has lost
        the weights since we last looked.

        Raises:
            EngineUnavailable: it broke off, and nobody else may be asked.
            AppError: as ``Runtime.ensure_route`` does.
        """
        self._leave_to_champion()
        with self._runtime.lease(self._route) as lease:
            replica = await self._runtime.ensure_route(self._route, affinity, retries.failed)
            lease.move_to(replica)
            try:
                if await self._is_relayed(replica, send, may_reload=retries.may_reload):
                    return True
            except EngineUnavailable as error:
                if self._has_started or not retries.may_go_on(replica, error):
                    raise
                url = replica.url
                log.info("replica_failed", url=url, interaction=self._id, error=str(error))
                return False
            retries.note_lost(replica, self._route.engine_name)
            return False

    async def _is_relayed(self, replica: Replica, send: Send, *, may_reload: bool) -> bool:
        """Pass on what a replica answers; not when it has lost the weights and may get them back."""
        async with open_reply(
            replica.client,
            self._endpoint.door,
            self._route.engine_name,
            self._request.body,
            self._id,
        ) as reply:
            if may_reload and await self._is_lost(reply):
                return False
            self._reply = reply
            if reply.status == 200 and reply.is_stream:
                await self._relay_stream(reply, send)
            else:
                await self._relay_body(reply, send)
            return True

    def _affinity(self) -> bytes:
        """What the requests of one conversation have in common, whose prefix a replica keeps."""
        beginning = conversation_beginning(self._request.body.get(self._endpoint.prompt_field))
        return (beginning or self._id).encode(errors="replace")

    def _leave_to_champion(self) -> None:
        """Where the challenger's weights are not there, a canary's user does not wait for them."""
        champion = self._route.fallback
        if champion is None or self._runtime.holds(self._route):
            return
        log.info("challenger_not_served", version=self._route.version_name, interaction=self._id)
        self._route = champion

    async def _is_lost(self, reply: EngineReply) -> bool:
        if reply.status != 404 or self._route.weights is None:
            return False
        return is_lost_model(reply.status, await reply.body())

    async def _relay_stream(self, reply: EngineReply, send: Send) -> None:
        async for block in reply.blocks():
            if not self._has_started:  # a head sent earlier would end the retries
                await self._start(send, 200, reply.content_type)
            self._note_first_byte()
            if reply.is_done:
                self._record(*_verdict(reply.assembled()))
                await _send_body(send, block, is_last=True)
                return
            await _send_body(send, block)
        message = "The engine ended the reply before it was complete."
        self._record(Outcome.ENGINE_ERROR, 200, reply.assembled().error or message)
        if not self._has_started:
            await self._start(send, 200, reply.content_type)
        event = stream_error(self._endpoint, message, "engine_error")
        await _send_body(send, event, is_last=True)

    async def _relay_body(self, reply: EngineReply, send: Send) -> None:
        body = await reply.body()
        self._note_first_byte()
        if reply.status == 200:
            self._record(*_verdict(reply.assembled()))
            await self._start(send, 200, reply.content_type, len(body))
            await _send_body(send, body, is_last=True)
        else:
            refusal = engine_refusal(self._endpoint, reply.status, body, reply.retry_after)
            await self._refuse(send, refusal)

    async def _fail(self, error: AppError, send: Send) -> None:
        if not self._has_started:
            await self._refuse(send, Refusal.of(error))
            return
        self._record(Outcome.ENGINE_ERROR, 200, str(error))
        event = stream_error(self._endpoint, str(error), error.code)
        await _send_body(send, event, is_last=True)

    async def _refuse(self, send: Send, refusal: Refusal) -> None:
        status = refusal.status
        self._record(Outcome.ENGINE_ERROR, status, refusal.envelope["error"]["message"])
        body = error_body(self._endpoint, status, refusal.envelope)
        await self._start(send, status, "application/json", len(body), refusal.headers)
        await _send_body(send, body, is_last=True)

    async def _start(
        self,
        send: Send,
        status: int,
        content_type: str,
        length: int | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        headers = {
            "content-type": content_type,
            "x-everlearn-version": self._route.version_name,
            "x-everlearn-interaction": self._id,
            REQUEST_ID: self._request_id,
            **({"x-everlearn-arm": self._route.arm} if self._route.is_on_trial else {}),
            **self._limiter.headers(self._principal),
            **(more or {}),
        }
        if length is not None:
            headers["content-length"] = str(length)
        else:
            headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._status = status
        self._has_started = True
        await send({"type": "http.response.start", "status": status, "headers": raw})

    def _note_first_byte(self) -> None:
        if self._first_byte_ms is None:
            self._first_byte_ms = self._elapsed_ms()

    def _elapsed_ms(self) -> float:
        return round((monotonic() - self._began) * 1000, 3)

    def _record(self, outcome: Outcome, status: int, error: str | None = None) -> None:
        if self._is_recorded:
            return
        self._is_recorded = True
        self._is_complete = outcome is Outcome.COMPLETE
        duration_ms = self._elapsed_ms()
        read = self._reply.assembled() if self._reply else Assembled()
        used = tokens_used(
            read.prompt_tokens, read.completion_tokens, read.reply, self._request.body
        )
        self._limiter.spend(self._principal, used)
        self._runtime.metrics.request_done(
            self._route.adapter,
            self._route.version_name,
            self._route.arm,
            self._endpoint.path,
            outcome,
            seconds=duration_ms / 1000,
            first_byte_s=None if self._first_byte_ms is None else self._first_byte_ms / 1000,
            prompt_tokens=read.prompt_tokens,
            completion_tokens=read.completion_tokens,
        )
        if self._endpoint.kind is not None:
            self._capture.record(
                interaction_record(
                    interaction_id=self._id,
                    created_at=self._created_at,
                    principal=self._principal,
                    request=self._request,
                    route=self._route,
                    read=read,
                    outcome=outcome,
                    status=status,
                    error=error,
                    first_byte_ms=self._first_byte_ms,
                    duration_ms=duration_ms,
                    may_learn=self._principal.allows_learning and self._request.may_store,
                )
            )
        if outcome is not Outcome.COMPLETE:  # a complete one has its row, which tells more
            log.info(
                "request_not_complete",
                endpoint=self._endpoint.path,
                interaction=self._id,
                version=self._route.version_name,
                outcome=outcome,
                status=status,
                duration_ms=duration_ms,
            )


class _ClientWatch:
    """Cancels the task that serves a request when its client leaves.

    It begins to listen a moment after the request: most that a stub or a cache answers are over by
    then, and cost no task of their own.
    """

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None, "a request is served in a task"
        self._task = task
        self._receive = receive
        self._listener: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._listen)
        self.has_left = False

    def is_cancelled_otherwise(self) -> bool:
        """Whether somebody else wants the task to end too. Takes our own wish back."""
        return self._task.uncancel() > 0

    def stop(self) -> None:
        self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()

    def _listen(self) -> None:
        self._listener = asyncio.create_task(self._until_left())

    async def _until_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self.has_left = True
        self._task.cancel()


def _verdict(read: Assembled) -> tuple[Outcome, int, str | None]:
    """A stream that came to its end may still have carried the engine's error."""
    if read.error is not None:
        return Outcome.ENGINE_ERROR, 200, read.error
    return Outcome.COMPLETE, 200, None


async def _send_body(send: Send, body: bytes, *, is_last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not is_last})
