"""Orders to one engine: list, load, unload, prove adapters; ask with fixed weights; typed errors.

Stateless and free of the gateway, so a worker can use it: ``async with open_control(…) as control``.

Facts it rests on (vLLM 0.32, tried): loading twice under one name answers 400, so whether an
adapter is there is read from the listing and never from an error's words; unloading only removes
the name, and requests in flight finish on the weights they began with.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from server.core.errors import (
    AdapterNotProven,
    AdapterRefused,
    EngineBroken,
    EngineError,
    EngineUnavailable,
    PromptRefused,
    SetupError,
    WeightsNotHeld,
)
from server.core.settings import EngineSettings
from server.engine.client import EngineClient, broken_answers
from server.engine.reading import (
    Assembled,
    ChatReader,
    error_message,
    says_no_such_model,
    says_too_long,
)

QUESTION_TIMEOUT_S = 5.0
"""For what the engine answers without generating."""

PROOF_PROMPTS = (
    "Hello.",
    "What is the capital of France?",
    "Tell me something that you have learnt.",
    "1, 2, 3,",
)
"""Read with and without the adapter; one whose answer differs is proof enough."""

PROOF_THRESHOLD = 1e-4
"""Smallest difference of a log-probability that counts as one (nats)."""

TOP_LOGPROBS = 20

_OF_THE_REQUEST = (400, 413, 422)
"""What the engine answers where the fault is in the request alone."""

_FINISHED = re.compile(
    r'^vllm:request_success_total\{[^}]*finished_reason="(?:stop|length)"[^}]*\} (\S+)$',
    re.MULTILINE,
)
_GAUGE = re.compile(r"^vllm:num_requests_(running|waiting)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One entry of the engine's own list."""

    name: str
    root: str
    """Folder it was loaded from."""
    parent: str | None
    """The base model's name; None for the base model itself."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Requests at an engine, whoever sent them."""

    running: int
    waiting: int
    finished: int | None = None
    """Answered whole since its start; None where it does not count them."""


class EngineControl:
    """Orders over one client; every method raises EngineUnavailable when the engine is silent."""

    def __init__(self, client: EngineClient, settings: EngineSettings) -> None:
        self.client = client
        self._settings = settings

    async def health(self) -> None:
        """Return if the engine says that it is well.

        Raises:
            EngineUnavailable: it does not, or says nothing.
        """
        async with self.client.request("GET", "/health", timeout_s=QUESTION_TIMEOUT_S) as answer:
            if answer.status != 200:
                raise EngineUnavailable(f"its health check answers {answer.status}")

    async def version(self) -> str:
        """vLLM's version, such as ``0.32.0``."""
        return str((await self._get("/version")).get("version", ""))

    async def models(self) -> list[ListedModel]:
        """What the engine holds now, the base model first."""
        entries = (await self._get("/v1/models")).get("data", [])
        return [ListedModel(e["id"], e.get("root") or "", e.get("parent")) for e in entries]

    async def metrics(self) -> str:
        """Prometheus text."""
        status, body = await self._exchange("GET", "/metrics", timeout_s=QUESTION_TIMEOUT_S)
        return body.decode(errors="replace") if status == 200 else ""

    async def load(self) -> EngineLoad | None:
        """How much the engine has to do; None where it does not tell."""
        found = {"running": 0.0, "waiting": 0.0}
        metrics = await self.metrics()
        gauges = _GAUGE.findall(metrics)
        for state, value in gauges:  # one of each for every engine behind the address
            found[state] += float(value)
        if not gauges:
            return None
        counts = [float(count) for count in _FINISHED.findall(metrics)]
        finished = int(sum(counts)) if counts else None
        return EngineLoad(int(found["running"]), int(found["waiting"]), finished)

    async def load_adapter(self, engine_name: str, path: str) -> None:
        """Have the engine hold the artifact at ``path``; if it does already, that is fine.

        Raises:
            AdapterRefused: the engine will not take it, or holds other files under that name.
        """
        order = {"lora_name": engine_name, "lora_path": path}
        status, body = await self._exchange(
            "POST", "/v1/load_lora_adapter", order, timeout_s=self._settings.load_timeout_s
        )
        if status == 200:
            return
        listed = {model.name: model for model in await self.models()}
        if engine_name not in listed:
            raise AdapterRefused(engine_name, _message(status, body))
        if listed[engine_name].root != path:
            held = listed[engine_name].root
            raise AdapterRefused(engine_name, f"it holds {held} under that name, not {path}")

    async def unload_adapter(self, engine_name: str) -> None:
        """Have the engine forget a name; if it does not know it, that is fine."""
        status, body = await self._exchange(
            "POST",
            "/v1/unload_lora_adapter",
            {"lora_name": engine_name},
            timeout_s=self._settings.load_timeout_s,
        )
        if status == 200 or engine_name not in {model.name for model in await self.models()}:
            return
        raise EngineError(f"The engine does not unload {engine_name}: {_message(status, body)}")

    async def has_load_route(self) -> bool:
        """Whether adapters can be loaded at run time.

        An empty order is refused with 400 where the route exists; without it, the answer is 404.
        """
        status, _ = await self._exchange(
            "POST", "/v1/load_lora_adapter", {}, timeout_s=QUESTION_TIMEOUT_S
        )
        return status != 404

    async def chat(
        self, model: str, body: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> str:
        """The text of one reply by the weights named; ``body`` is OpenAI's, without the model.

        ``priority`` above 0 lets everything of lower number go first.

        Raises:
            WeightsNotHeld: it does not know these weights.
            EngineBroken: it failed, and may be about to end; `health` tells.
            PromptRefused: it does not take this request, as one too long for its context.
            EngineError: the engine answered with another error.
        """
        return (await self.reply(model, body, timeout_s=timeout_s)).text

    async def reply(
        self, model: str, body: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> Assembled:
        """As `chat`, with all that the engine says of the reply.

        Raises:
            EngineError: as in `chat`.
        """
        reader = ChatReader()
        reader.feed_body(await self._complete(model, body, timeout_s))
        return reader.result()

    async def next_logprobs(
        self, model: str, ids: Sequence[int], *, priority: int = 0
    ) -> dict[int, float]:
        """Log-probabilities (nats) of the likeliest tokens after these, by id.

        One token is generated for each question. `prompt_logprobs` would score a whole text at
        once, and kills vLLM 0.32 when the model is an adapter (its CPU build, tried).

        Raises:
            EngineError: the engine refuses, or does not give them.
        """
        body = {
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": TOP_LOGPROBS,
            "return_tokens_as_token_ids": True,
            "priority": priority,
        }
        payload = _json(await self._complete(model, body, None, path="/v1/completions"))
        try:
            [place] = payload["choices"][0]["logprobs"]["top_logprobs"]
            found = {token_id(token): float(logprob) for token, logprob in place.items()}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(f"The engine gives no log-probabilities for {model}.") from error
        return found

    async def top_logprobs(self, model: str, prompt: str) -> dict[str, float]:
        """Log-probabilities (nats) of the likeliest next tokens of a reply to ``prompt``."""
        question = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        payload = _json(await self._complete(model, question, self._settings.load_timeout_s))
        try:
            entries = payload["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            logprobs = {entry["token"]: float(entry["logprob"]) for entry in entries}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(f"The engine gives no log-probabilities for {model}.") from error
        if not logprobs:
            raise EngineError(f"The engine gives no log-probabilities for {model}.")
        return logprobs

    async def prove_adapter(
        self,
        engine_name: str,
        base_engine_name: str,
        prompts: Sequence[str] = PROOF_PROMPTS,
    ) -> float:
        """Make sure that the engine answers with these weights and not with the base's.

        It must be listed; the next-token log-probabilities of at least one prompt must differ from
        the base model's, by more than the base model differs from itself when asked again; and a
        first reply is generated, so that no user waits for the engine's warm-up.

        Returns:
            The largest difference seen, in nats.

        Raises:
            AdapterNotProven: one of these fails; says which.
        """
        listed = {model.name: model for model in await self.models()}
        if engine_name not in listed:
            raise AdapterNotProven(engine_name, "it is not in the engine's list")
        if base_engine_name not in listed:
            raise AdapterNotProven(engine_name, f"the engine has no {base_engine_name}")
        largest = 0.0
        for prompt in prompts:
            base = await self.top_logprobs(base_engine_name, prompt)
            noise = _distance(base, await self.top_logprobs(base_engine_name, prompt))
            distance = _distance(base, await self.top_logprobs(engine_name, prompt))
            largest = max(largest, distance)
            if distance > max(PROOF_THRESHOLD, 2 * noise):
                await self._warm_up(engine_name, prompt)
                return largest
        why = (
            f"its log-probabilities on {len(prompts)} prompts differ from the base model's "
            f"by {largest:.1e} at most, as if it were not there"
        )
        raise AdapterNotProven(engine_name, why)

    async def _warm_up(self, engine_name: str, prompt: str) -> None:
        question = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4}
        body = await self._complete(engine_name, question, self._settings.load_timeout_s)
        if _json(body).get("model") != engine_name:
            raise AdapterNotProven(engine_name, "its first reply came from other weights")

    async def _complete(
        self,
        model: str,
        body: Mapping[str, Any],
        timeout_s: float | None,
        path: str = "/v1/chat/completions",
    ) -> bytes:
        order = {**body, "model": model}
        status, answer = await self._exchange("POST", path, order, timeout_s=timeout_s)
        if status != 200:
            raise _refusal(model, status, answer)
        return answer

    async def _get(self, path: str) -> dict[str, Any]:
        status, body = await self._exchange("GET", path, timeout_s=QUESTION_TIMEOUT_S)
        if status != 200:
            raise EngineError(f"The engine answers {path} with {_message(status, body)}")
        return _json(body)

    async def _exchange(
        self,
        method: str,
        path: str,
        order: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None,
    ) -> tuple[int, bytes]:
        request = self.client.request(method, path, body=order, timeout_s=timeout_s)
        async with request as answer:
            with broken_answers():
                return answer.status, await answer.read()


@asynccontextmanager
async def open_control(
    settings: EngineSettings, url: str | None = None
) -> AsyncIterator[EngineControl]:
    """A control with a client of its own, closed at the end; for workers and the command line.

    Args:
        url: the engine's address; the settings' own when left out.

    Raises:
        SetupError: no address is known.
    """
    url = url or settings.url
    if url is None:
        raise SetupError(
            "No engine is known: set EVERLEARN_ENGINE__URL, or start one with `everlearn up`."
        )
    async with EngineClient(settings, url) as client:
        yield EngineControl(client, settings)


def token_id(token: str) -> int:
    """The id in "token_id:17", as the engine writes tokens when it is asked for ids.

    Raises:
        ValueError: it is written otherwise.
    """
    return int(token.removeprefix("token_id:"))


def _distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Largest difference of a token's log-probability, as far as two top lists can tell.

    A token that only one list has is less likely in the other than all that is listed there.
    """
    lowest_one, lowest_other = min(one.values()), min(other.values())
    return max(
        abs(one.get(token, lowest_one) - other.get(token, lowest_other))
        for token in one.keys() | other.keys()
    )


def _refusal(model: str, status: int, body: bytes) -> EngineError:
    message = _message(status, body)
    if says_no_such_model(status, message.partition(": ")[2]):
        return WeightsNotHeld(model, message)
    if status >= 500:
        return EngineBroken(model, message)
    if status in _OF_THE_REQUEST:
        return PromptRefused(model, message, status == 413 or says_too_long(message))
    return EngineError(f"The engine refuses to chat as {model}: {message}")


def _json(body: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(body)
    except ValueError as error:
        raise EngineError("The engine's answer is not JSON; is that address vLLM?") from error
    if not isinstance(payload, dict):
        raise EngineError("The engine's answer is not an object; is that address vLLM?")
    return payload


def _message(status: int, body: bytes) -> str:
    try:
        return f"{status}: {error_message(_json(body))}"
    except EngineError:
        return f"{status}: {body[:200].decode(errors='replace')}"
