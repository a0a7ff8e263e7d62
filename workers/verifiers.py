"""A user's own service as a verifier: asked over HTTP, and believed in nothing but its verdicts.

Only hosts of the operator's list are called. A listed name must lead to public addresses, however
it resolves at that moment; the address that was checked is the one that is called. A machine of the
private network or this one is called only where the list has its very address (or `localhost`).
"""

import asyncio
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx2

from adapters.spec import HttpVerifier
from adapters.types import Attempt, Verdict

NOT_ALLOWED = "the service is not on the operator's list"
NOT_PUBLIC = "the service's name leads to an address that is not public"
NOT_FOUND = "the service's name leads nowhere"
NOT_SAFE = "the service is not asked without TLS"
NO_REPLY = "the service did not answer"
FAILED = "the service failed"
TOO_LONG = "the service's answer is too long"
NO_VERDICT = "the service answered no verdict"
CAN_NOT_TELL = "the service can not tell"
IS_WRONG = "the service calls it wrong"

_AT_ONCE = 8
_TRIES = 2
_MOST_BYTES = 64 * 1024
_MOST_FAILURES = 8
_PORTS = {"https": 443, "http": 80}
_LOCALHOST = "localhost"
_NAT64 = ip_network("64:ff9b::/96")

_Address = IPv4Address | IPv6Address


class _Refused(Exception):
    """It must not be called; the message is the verdict's reason."""


class _Failed(Exception):
    """It gave nothing to go by; the message is the verdict's reason."""


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a service is called."""

    url: SplitResult
    host: str
    port: int
    address: _Address

    @property
    def by_address(self) -> str:
        """The URL with the checked address in the name's place."""
        shown = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return self.url._replace(netloc=f"{shown}:{self.port}", fragment="").geturl()

    @property
    def host_header(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        is_usual = self.port == _PORTS[self.url.scheme]
        return shown if is_usual else f"{shown}:{self.port}"


class ServiceVerifier:
    """Verdicts of one service; a failure of any kind is a verdict of None."""

    def __init__(self, spec: HttpVerifier, hosts: Sequence[str]) -> None:
        """
        Args:
            hosts: `learning.verifier_hosts`: names or addresses, with a port where it is not the
                usual one.
        """
        self._spec = spec
        self._hosts = frozenset(host.strip().lower().rstrip(".") for host in hosts)

    def verify(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See `Verifier.verify`; a few are asked side by side, each twice at most."""
        return asyncio.run(self._verify_all(attempts))

    async def _verify_all(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        try:
            target = await self._target()
        except _Refused as refusal:
            return [Verdict(None, str(refusal)) for _ in attempts]
        slots = asyncio.Semaphore(_AT_ONCE)
        failures = 0  # in a row: a service that is away is not waited for again and again

        async def judge(attempt: Attempt) -> Verdict:
            nonlocal failures
            async with slots:
                if failures >= _MOST_FAILURES:
                    return Verdict(None, NO_REPLY)
                verdict = await self._verify(client, target, attempt)
                is_failure = verdict.reason in (NO_REPLY, FAILED)
                failures = failures + 1 if is_failure else 0
                return verdict

        async with httpx2.AsyncClient(
            trust_env=False, follow_redirects=False, timeout=self._spec.timeout_s
        ) as client:
            return list(await asyncio.gather(*(judge(attempt) for attempt in attempts)))

    async def _verify(
        self, client: httpx2.AsyncClient, target: _Target, attempt: Attempt
    ) -> Verdict:
        reason = NO_REPLY
        for _ in range(_TRIES):
            try:
                async with asyncio.timeout(self._spec.timeout_s):
                    return _verdict(await _ask(client, target, _question(attempt)))
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, TimeoutError):
                reason = NO_REPLY
            except _Failed as failure:
                reason = str(failure)
                if reason != FAILED:
                    break
        return Verdict(None, reason)

    async def _target(self) -> _Target:
        """Where to call.

        Raises:
            _Refused: nowhere.
        """
        try:
            url = urlsplit(self._spec.url)
            host, port = (url.hostname or "").rstrip("."), url.port
        except ValueError:
            raise _Refused(NOT_ALLOWED) from None
        if url.scheme not in _PORTS or not host or url.username or url.password:
            raise _Refused(NOT_ALLOWED)
        usual = _PORTS[url.scheme]
        port = usual if port is None else port
        if not self._lists(host, port, is_usual=port == usual):
            raise _Refused(NOT_ALLOWED)
        literal = _literal(host)
        addresses = [literal] if literal else await _resolve(host, port)
        if not literal and not all(map(_is_public, addresses)):
            raise _Refused(NOT_PUBLIC)
        if url.scheme == "http" and not addresses[0].is_loopback:
            raise _Refused(NOT_SAFE)
        return _Target(url, host, port, addresses[0])

    def _lists(self, host: str, port: int, *, is_usual: bool) -> bool:
        shown = f"[{host}]" if ":" in host else host
        forms = {f"{shown}:{port}"} | ({host, shown} if is_usual else set())
        return not self._hosts.isdisjoint(forms)


def _literal(host: str) -> _Address | None:
    """The address that a host names by itself; None for a name that must be looked up."""
    if host == _LOCALHOST:
        return IPv4Address("127.0.0.1")
    try:
        return ip_address(host)
    except ValueError:
        return None


async def _resolve(host: str, port: int) -> list[_Address]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _Refused(NOT_FOUND) from None
    addresses = [ip_address(str(row[4][0]).partition("%")[0]) for row in found]
    if not addresses:
        raise _Refused(NOT_FOUND)
    return addresses


def _is_public(address: _Address) -> bool:
    """Whether an address, and any that hides in it, belongs to the open internet."""
    if isinstance(address, IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if hidden is None and address in _NAT64:
            hidden = IPv4Address(int(address) & 0xFFFFFFFF)
        if hidden is not None:
            return _is_public(hidden)
    return address.is_global and not address.is_multicast


def _question(attempt: Attempt) -> bytes:
    prompt = attempt.prompt
    question = {
        "prompt_id": prompt.id,
        "messages": list(prompt.messages),
        "tag": prompt.tag,
        "answers": list(prompt.answers),
        "reply": attempt.reply,
    }
    return json.dumps(question).encode()


async def _ask(client: httpx2.AsyncClient, target: _Target, question: bytes) -> bytes:
    headers = {
        "host": target.host_header,
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",  # a small body must not become a large one
    }
    extensions = {"sni_hostname": target.host}  # whose certificate it must be
    async with client.stream(
        "POST", target.by_address, content=question, headers=headers, extensions=extensions
    ) as response:
        if response.status_code != 200:
            raise _Failed(FAILED)
        body = b""
        async for part in response.aiter_raw():
            body += part
            if len(body) > _MOST_BYTES:
                raise _Failed(TOO_LONG)
    return body


def _verdict(body: bytes) -> Verdict:
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise _Failed(NO_VERDICT) from None
    said = answer.get("is_right", "") if isinstance(answer, dict) else ""
    if said is None:
        return Verdict(None, CAN_NOT_TELL)
    if not isinstance(said, bool):
        raise _Failed(NO_VERDICT)
    return Verdict(said, "" if said else IS_WRONG)
