"""The limit on bodies: what reaches a route, what does not, and how much is kept."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from server.http.body import DRAINED_LIMITS, MAX_BODY_BYTES, BodyLimitMiddleware

SCOPE = {"type": "http", "method": "POST", "path": "/taken", "headers": [], "query_string": b""}


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


async def ask(path: str, *, megabytes: int) -> tuple[int, bytes, int]:
    """Status, body, and how many parts were asked for."""
    app = BodyLimitMiddleware(echo_length, own_limit={"/own"})
    sent: list[Message] = []
    received = 0

    async def receive() -> Message:
        nonlocal received
        received += 1
        is_more = received < megabytes
        return {"type": "http.request", "body": b" " * 2**20, "more_body": is_more}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({**SCOPE, "path": path}, receive, send)
    return sent[0]["status"], sent[1]["body"], received


async def test_a_body_within_the_limit_arrives_whole() -> None:
    assert await ask("/taken", megabytes=1) == (200, str(MAX_BODY_BYTES).encode(), 1)


async def test_a_longer_one_is_refused_and_an_endless_one_not_followed() -> None:
    status, body, received = await ask("/taken", megabytes=2)
    assert (status, received) == (413, 2)
    assert b"payload_too_large" in body

    status, _, received = await ask("/taken", megabytes=10_000)
    assert (status, received) == (413, DRAINED_LIMITS + 1)


async def test_a_route_with_a_limit_of_its_own_reads_for_itself() -> None:
    assert await ask("/own", megabytes=3) == (200, str(3 * 2**20).encode(), 3)
