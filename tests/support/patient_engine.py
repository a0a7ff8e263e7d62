"""A fake engine that waits in the middle of a stream or a load until a test lets it go on."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tests.support.fake_engine import FakeEngine

WARM_UP_TOKENS = 4
"""What the last question of a proof asks for, and no client of this test."""


@dataclass
class PatientEngine(FakeEngine):
    """Stops in a stream or a load while a test holds it, and knows what is being proven."""

    held: dict[str, threading.Event] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    unproven: set[str] = field(default_factory=set)
    """What was loaded, and has not been asked for its first words yet, which end the proof."""
    loads_may_end: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.loads_may_end.set()

    @contextmanager
    def loads_held(self) -> Iterator[None]:
        """No load ends in here, however long it is."""
        self.loads_may_end.clear()
        try:
            yield
        finally:
            self.loads_may_end.set()

    def hold(self, prompt: str) -> None:
        self.held[prompt] = threading.Event()

    def release(self, prompt: str) -> None:
        if event := self.held.pop(prompt, None):
            event.set()

    def cut_held(self) -> None:
        """End every held stream here and now, unfinished, as a killed process does."""
        self.cut |= self.held.keys()
        for prompt in list(self.held):
            self.release(prompt)

    def lose_adapters(self) -> None:
        super().lose_adapters()
        self.unproven.clear()

    async def _stream(self, reply: Any, body: dict[str, Any]) -> Any:
        prompt = body["messages"][-1]["content"] if "messages" in body else ""
        async for number, event in _numbered(super()._stream(reply, body)):
            yield event
            if number == 1 and (held := self.held.get(prompt)):
                await asyncio.to_thread(held.wait)
            if prompt in self.cut:
                raise ConnectionAbortedError("ordered by the test")

    async def _load(self, request: Request) -> Response:
        await asyncio.to_thread(self.loads_may_end.wait)
        answer = await super()._load(request)
        if answer.status_code == 200:
            self.unproven.add((await request.json())["lora_name"])
        return answer

    async def _chat(self, request: Request) -> Response:
        answer = await super()._chat(request)
        body = await request.json()
        if body.get("max_tokens") == WARM_UP_TOKENS:
            self.unproven.discard(body["model"])
        return answer


async def _numbered(events: Any) -> Any:
    number = 0
    async for event in events:
        yield number, event
        number += 1
