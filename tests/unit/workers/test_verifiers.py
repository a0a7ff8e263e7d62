"""A user's service as a verifier: real sockets, and services that hang, fail, lie or lead astray."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from adapters.spec import HttpVerifier
from adapters.types import Attempt, Prompt, Verdict
from workers import verifiers
from workers.verifiers import ServiceVerifier

EXAMPLE = Path(__file__).parents[3] / "examples" / "verifier_service.py"


def attempt(reply: str, question: str = "What is 3 + 5?") -> Attempt:
    return Attempt(Prompt("p1", ({"role": "user", "content": question},), tag="sums"), reply)


class Service:
    """Behaves as the path says; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.port = 0
        self.body = b""
        """What `/says` answers."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            return await self._behave(request.match_info["how"], request)
        finally:
            self.at_once -= 1

    async def _behave(self, how: str, request: web.Request) -> web.StreamResponse:
        reply = self.asked[-1]["reply"]
        if how == "good" or (how == "shaky" and len(self.asked) % 2 == 0):
            await asyncio.sleep(0.02)
            return web.json_response({"is_right": "8" in reply})
        if how == "shaky":
            return web.Response(status=500)
        if how == "hangs":
            await asyncio.sleep(30)
        if how == "trickles":
            stream = web.StreamResponse()
            await stream.prepare(request)
            while True:
                await stream.write(b" ")
                await asyncio.sleep(0.05)
        if how == "floods":
            return web.Response(body=b'{"is_right": true' + b" " * 200_000 + b"}")
        if how == "redirects":
            raise web.HTTPFound("/good")
        if how == "unsure":
            return web.json_response({"is_right": None})
        return web.Response(body=self.body)


@pytest.fixture(scope="module")
def running() -> Iterator[Service]:
    service = Service()
    started = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    ended = asyncio.Event()

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        app = web.Application()
        app.router.add_post("/{how}", service.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        service.port = runner.addresses[0][1]
        started.set()
        await ended.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield service
    loops[0].call_soon_threadsafe(ended.set)
    thread.join(10)


@pytest.fixture
def service(running: Service) -> Service:
    running.asked.clear()
    running.headers.clear()
    running.most_at_once = 0
    return running


def verifier(service: Service, how: str, **fields: Any) -> ServiceVerifier:
    spec = HttpVerifier(url=f"http://127.0.0.1:{service.port}/{how}", **fields)
    return ServiceVerifier(spec, [f"127.0.0.1:{service.port}"])


def test_a_service_gets_prompt_and_reply_and_is_believed(service: Service) -> None:
    found = verifier(service, "good").verify([attempt("8"), attempt("9"), attempt("It is 8.")])

    assert found == [Verdict(True), Verdict(False, "the service calls it wrong"), Verdict(True)]
    assert sorted(asked["reply"] for asked in service.asked) == ["8", "9", "It is 8."]
    assert service.asked[0]["messages"] == [{"role": "user", "content": "What is 3 + 5?"}]
    assert service.headers[0]["host"] == f"127.0.0.1:{service.port}"
    assert "authorization" not in service.headers[0]


def test_only_so_many_are_asked_at_once(service: Service) -> None:
    hanging = service.at_once  # of tests before this one, which left them behind

    found = verifier(service, "good").verify([attempt("8")] * 40)

    assert all(each.is_right for each in found)
    assert 1 < service.most_at_once - hanging <= 8


def test_what_fails_once_is_asked_again(service: Service) -> None:
    assert verifier(service, "shaky").verify([attempt("8")]) == [Verdict(True)]
    assert len(service.asked) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"\xff\x00",
        b"[true]",
        b"true",
        b'{"is_right": "true"}',
        b'{"is_right": 1}',
        b'{"right": true}',
        b"[" * 50_000,
    ],
)
def test_what_is_no_verdict_counts_for_nothing(service: Service, body: bytes) -> None:
    service.body = body

    found = verifier(service, "says").verify([attempt("8")])

    assert found == [Verdict(None, "the service answered no verdict")]
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("how", "reason", "asked"),
    [
        ("floods", "the service's answer is too long", 1),
        ("unsure", "the service can not tell", 1),
        ("redirects", "the service failed", 2),
    ],
)
def test_what_went_wrong_is_said(service: Service, how: str, reason: str, asked: int) -> None:
    assert verifier(service, how).verify([attempt("8")]) == [Verdict(None, reason)]
    assert len(service.asked) == asked


@pytest.mark.parametrize("how", ["hangs", "trickles"])
def test_a_service_that_hangs_is_left_after_the_time(service: Service, how: str) -> None:
    began = time.monotonic()

    found = verifier(service, how, timeout_s=0.2).verify([attempt("8")] * 40)

    assert found == [Verdict(None, "the service did not answer")] * 40
    assert time.monotonic() - began < 3
    assert len(service.asked) <= 2 * 16  # of 80: the others are not even asked


def test_a_service_that_is_not_there_is_no_error(service: Service) -> None:
    spec = HttpVerifier(url="http://127.0.0.1:9/")

    found = ServiceVerifier(spec, ["127.0.0.1:9"]).verify([attempt("8")])

    assert found == [Verdict(None, "the service did not answer")]


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("http://127.0.0.1:{port}/good", []),
        ("http://127.0.0.1:{port}/good", ["127.0.0.1"]),
        ("http://127.0.0.1:{port}/good", ["127.0.0.1:1", "localhost:{port}"]),
        ("http://verifier@127.0.0.1:{port}/good", ["127.0.0.1:{port}"]),
        ("http://127.1:{port}/good", ["127.0.0.1:{port}"]),
        ("http://2130706433:{port}/good", ["127.0.0.1:{port}"]),
        ("http://127.0.0.1.:{port}x/good", ["127.0.0.1:{port}"]),
        ("ftp://127.0.0.1:{port}/good", ["127.0.0.1:{port}"]),
        ("file:///etc/passwd", ["", "etc"]),
        ("http://[::1/good", ["127.0.0.1:{port}"]),
        ("nonsense", ["nonsense"]),
    ],
)
def test_only_listed_hosts_are_called(service: Service, url: str, hosts: list[str]) -> None:
    spec = HttpVerifier(url=url.format(port=service.port))
    listed = [host.format(port=service.port) for host in hosts]

    found = ServiceVerifier(spec, listed).verify([attempt("8"), attempt("8")])

    assert found == [Verdict(None, "the service is not on the operator's list")] * 2
    assert service.asked == []


@contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> Iterator[list[str]]:
    """Every name leads to these; yields which names were looked up."""
    looked_up: list[str] = []

    async def getaddrinfo(self: object, host: str, port: int, **_: object) -> list[Any]:
        looked_up.append(host)
        return [(2, 1, 6, "", (address, port)) for address in addresses]

    with monkeypatch.context() as patched:
        patched.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
        yield looked_up


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.9",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_a_listed_name_that_leads_inside_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    spec = HttpVerifier(url=f"https://verify.example:{service.port}/good")
    made = ServiceVerifier(spec, [f"verify.example:{service.port}"])

    with resolving(monkeypatch, "93.184.215.14", address) as looked_up:
        found = made.verify([attempt("8")])

    assert found == [Verdict(None, "the service's name leads to an address that is not public")]
    assert looked_up == ["verify.example"]


def test_the_address_that_was_checked_is_the_one_that_is_called(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, str, str]] = []

    async def ask(client: object, target: Any, question: bytes) -> bytes:
        called.append((target.by_address, target.host_header, target.host))
        return json.dumps({"is_right": True}).encode()

    monkeypatch.setattr(verifiers, "_ask", ask)
    spec = HttpVerifier(url="https://Verify.Example/path?a=1#x")

    with resolving(monkeypatch, "93.184.215.14") as looked_up:
        found = ServiceVerifier(spec, ["verify.example"]).verify([attempt("8")] * 3)

    assert found == [Verdict(True)] * 3
    assert (
        called == [("https://93.184.215.14:443/path?a=1", "verify.example", "verify.example")] * 3
    )
    assert looked_up == ["verify.example"]  # once: it cannot lead elsewhere in between


def test_without_tls_only_this_machine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with resolving(monkeypatch, "93.184.215.14"):
        made = ServiceVerifier(HttpVerifier(url="http://verify.example/"), ["verify.example"])
        found = made.verify([attempt("8")])
    private = ServiceVerifier(HttpVerifier(url="http://10.0.0.7/"), ["10.0.0.7"])

    assert found == [Verdict(None, "the service is not asked without TLS")]
    assert private.verify([attempt("8")]) == found


def test_localhost_may_be_listed_by_its_name(service: Service) -> None:
    spec = HttpVerifier(url=f"http://localhost:{service.port}/good")

    assert ServiceVerifier(spec, [f"localhost:{service.port}"]).verify([attempt("8")]) == [
        Verdict(True)
    ]


def test_proxies_of_the_environment_are_not_used(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert verifier(service, "good").verify([attempt("8")]) == [Verdict(True)]


def test_the_example_service_judges_sums() -> None:
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE), "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[-1])
        made = ServiceVerifier(HttpVerifier(url=f"http://127.0.0.1:{port}/"), [f"127.0.0.1:{port}"])

        found = made.verify([attempt("8"), attempt("7"), attempt("8", "Who are you?")])

        process.terminate()
    assert [each.is_right for each in found] == [True, False, None]
    assert found[2].reason == "the service can not tell"
