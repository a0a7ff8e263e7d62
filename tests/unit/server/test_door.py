"""The key at every door of a supervised engine."""

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server.engine.door import Door


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> httpx2.AsyncClient:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.url.path)

    monkeypatch.setenv("VLLM_API_KEY", "k3y")
    app = Door(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])]))
    transport = httpx2.ASGITransport(app=app)
    return httpx2.AsyncClient(transport=transport, base_url="http://engine")


@pytest.mark.parametrize("path", ["/v1/models", "/adapters", "/invocations", "/metrics", "/"])
@pytest.mark.parametrize(
    "header", [None, "k3y", "Bearer ", "Bearer k3", "Bearer k3y ", "Basic k3y"]
)
async def test_nothing_answers_without_the_key(
    client: httpx2.AsyncClient, path: str, header: str | None
) -> None:
    headers = {"authorization": header} if header else {}

    assert (await client.post(path, headers=headers)).status_code == 401


async def test_the_key_opens_and_health_needs_none(client: httpx2.AsyncClient) -> None:
    opened = await client.post("/adapters", headers={"authorization": "Bearer k3y"})

    assert (opened.status_code, opened.text) == (200, "/adapters")
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/health/../adapters")).status_code == 401
