"""EngineSampler: what `adapters.sampling` asks for, over the serving engine, at low priority.

Learning rides on idle capacity: vLLM serves lower numbers first, and users' requests carry 0. What it
asks goes to the engine itself: no gateway records it, and no key is charged for it.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import structlog

from adapters.sampling import REFUSED, NotScored, Reply, SamplingError
from adapters.types import ChatMessage, ProgressCallback, Rollout, SamplingParams, TopK
from server.core.errors import EngineError, EngineUnavailable, PromptRefused, WeightsNotHeld
from server.core.settings import Settings
from server.engine.control import TOP_LOGPROBS, EngineControl, open_control, token_id
from server.engine.reading import Assembled
from workers.courtesy import Courtesy, Manners
from workers.turns import Order, Turns

log = structlog.get_logger(__name__)

LEARNING_PRIORITY = 10

_NO_LOGPROB = -9000.0
"""vLLM writes -9999 where it knows no log-probability."""

_ROUNDING = 1e-3
"""How far above 0 a log-probability may be written."""

_AS_SAMPLED = {
    "logprobs": True,
    "top_logprobs": 0,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    # The model's own generation_config may say otherwise, and the policy would be another one.
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
"""The sampled tokens and their log-probabilities; drawn as `SamplingParams` says and no otherwise."""

_T = TypeVar("_T")


class EngineSampler:
    """Generates with the weights of one engine name.

    Of several replicas, a prompt always goes to the same one, whichever weights are asked, and to
    the next one when that one is away. What an engine that is restarted has not answered is asked
    again, and so is what was broken off for users; with a seed it gets the same draws.

    Args:
        urls: of the replicas; empty takes the settings' own.
        courtesy: shared by samplers that are used side by side, who would else take each other for
            users; None: this one's own.
        folder: of the adapter, where nobody else gives it to an engine that was started anew.
    """

    def __init__(
        self,
        settings: Settings,
        engine_name: str,
        urls: Sequence[str] = (),
        *,
        courtesy: Courtesy | None = None,
        folder: Path | None = None,
    ) -> None:
        self.engine_name = engine_name
        self.was_cut = False
        """Whether the engine may still be at work on a request that nobody waits for."""
        self._settings = settings
        self._urls: Sequence[str | None] = urls or [None]
        self._courtesy = courtesy or Courtesy(Manners.of(settings.learning))
        self._folder = folder

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

        replies = self._replies(conversations, params, {}, on_progress)
        return ["" if reply is None else _storable(reply.text) for reply in replies]

    def replies(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[Reply]:
        """See :class:`adapters.sampling.MeasuringSampler`."""
        asked = {"logprobs": True, "top_logprobs": TOP_LOGPROBS, "return_token_ids": True}
        asked["return_tokens_as_token_ids"] = True

        replies = self._replies(conversations, params, asked, on_progress)
        return [Reply("", REFUSED) if reply is None else _reply(reply) for reply in replies]

    def _replies(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        asked: Mapping[str, Any],
        on_progress: ProgressCallback | None,
    ) -> list[Assembled | None]:
        """What the engine says to each, None where it refuses one that may be refused."""
        orders = [
            self._order(messages, {**_body(messages, params), **asked})
            for messages in conversations
        ]
        found = asyncio.run(self._ask_all(orders, on_progress))
        return _answered(found, may_be_refused=params.may_be_refused)

    def _order(
        self, messages: Sequence[ChatMessage], body: Mapping[str, Any]
    ) -> Order[Assembled | PromptRefused]:
        async def ask(control: EngineControl) -> Assembled | PromptRefused:
            try:
                return await control.reply(self.engine_name, body)
            except PromptRefused as refusal:  # the others' answers are waited for
                return refusal

        return Order(messages, ask)

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        on_progress: ProgressCallback | None = None,
    ) -> list[tuple[Rollout, ...]]:
        """See :class:`adapters.sampling.RolloutSampler`; progress counts completions.

        Each completion is a request with a seed of its own, made from the one of `params`, the
        conversation's place and its own place in the group: one that is asked again draws the same,
        and neither equal conversations nor neighbouring seeds draw alike. A group's requests follow
        one another, so that all but the first find the prompt in the engine's cache.
        """

        def order(
            place: int, messages: Sequence[ChatMessage], index: int
        ) -> Order[Assembled | PromptRefused]:
            body = _body(messages, params) | _AS_SAMPLED
            if params.seed is not None:
                body["seed"] = _seed(params.seed, place, index)
            return self._order(messages, body)

        orders = [
            order(place, messages, index)
            for place, messages in enumerate(conversations)
            for index in range(group)
        ]
        found = _answered(asyncio.run(self._ask_all(orders, on_progress)), may_be_refused=True)
        groups = [found[first : first + group] for first in range(0, len(found), group)]
        return [self._group(replies) for replies in groups]

    def score(
        self, beginnings: Sequence[Sequence[int]], *, on_progress: ProgressCallback | None = None
    ) -> list[TopK]:
        """See :class:`adapters.sampling.MeasuringSampler`.

        Beside users one at a time. A reply's steps cost the engine little however many it makes at
        once; a beginning is all prompt, so several are as slow together as one by one, and a user
        who waits for a token waits for all of them.
        """

        def order(ids: Sequence[int]) -> Order[dict[int, float]]:
            return Order(
                ids,
                lambda control: control.next_logprobs(
                    self.engine_name, ids, priority=LEARNING_PRIORITY
                ),
            )

        orders = [order(ids) for ids in beginnings]
        try:
            found = asyncio.run(self._ask_all(orders, on_progress, one_by_one=True))
        except SamplingError as failure:
            if isinstance(failure.__cause__, EngineUnavailable):
                raise
            raise NotScored(str(failure)) from failure
        return [TopK(tuple(place), tuple(place.values())) for place in found]

    async def _ask_all(
        self,
        orders: Sequence[Order[_T]],
        on_progress: ProgressCallback | None,
        *,
        one_by_one: bool = False,
    ) -> list[_T]:
        async with self._opened() as controls:
            turns: Turns[_T] = Turns(
                controls,
                self._courtesy,
                self._settings.engine.start_timeout_s,
                one_by_one=one_by_one,
                restore=self._restore if self._folder else None,
                on_progress=on_progress,
            )
            try:
                return await turns.run(orders)
            finally:
                self.was_cut = self.was_cut or turns.was_cut

    def load(self) -> None:
        """Have the engine hold the folder under this name; if it does already, that is fine.

        Raises:
            AdapterRefused: it will not take it.
            EngineUnavailable: it does not answer.
        """

        async def load() -> None:
            async with self._opened() as [control, *_]:
                await self._restore(control)

        asyncio.run(load())

    def unload(self) -> bool:
        """Have the engine forget this name, when it has ended all that it was asked under it.

        Whether it has; an engine that does not answer now is asked again by the worker's tick.
        """

        async def unload() -> None:
            async with self._opened() as [control, *_]:
                if self.was_cut:
                    await self._let_end(control)
                await control.unload_adapter(self.engine_name)

        try:
            asyncio.run(unload())
        except EngineError as error:
            log.warning("trial_adapter_not_unloaded", name=self.engine_name, error=str(error))
            return False
        return True

    async def _let_end(self, control: EngineControl) -> None:
        """Wait until the engine is rid of the requests that we left: it breaks them off by itself,
        a moment later, and must not lose their weights before. One that is answered was behind them.
        """
        last = _body([{"role": "user", "content": "."}], SamplingParams(max_tokens=1))
        with suppress(WeightsNotHeld):
            await control.chat(
                self.engine_name, last, timeout_s=self._settings.engine.load_timeout_s
            )

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[list[EngineControl]]:
        async with AsyncExitStack() as opened:
            yield [
                await opened.enter_async_context(open_control(self._settings.engine, url))
                for url in self._urls
            ]

    async def _restore(self, control: EngineControl) -> None:
        """Give the engine the adapter again, under its name: the files are the same."""
        if self.engine_name not in {model.name for model in await control.models()}:
            await control.load_adapter(self.engine_name, str(self._folder))

    def _group(self, replies: Sequence[Assembled | None]) -> tuple[Rollout, ...]:
        """The rollouts of one conversation; none where the engine refuses it."""
        whole = [reply for reply in replies if reply is not None]
        return tuple(map(self._rollout, whole)) if len(whole) == len(replies) else ()

    def _rollout(self, found: Assembled) -> Rollout:
        first, prompt_ids = found.first, tuple(found.prompt_token_ids)
        ids = tuple(first.token_ids)
        places = first.logprobs.get("content", ())
        if not prompt_ids or not ids:
            raise self._lacking("tells no token ids; is it vLLM 0.32?")
        if len(places) != len(ids):
            raise self._lacking(f"tells {len(places)} log-probabilities of {len(ids)} tokens")
        try:
            told = tuple(token_id(place["token"]) for place in places)
            logprobs = tuple(float(place["logprob"]) for place in places)
        except (KeyError, TypeError, ValueError) as error:
            raise self._lacking("tells log-probabilities without ids") from error
        if told != ids:
            raise self._lacking("tells the log-probabilities of other tokens")
        if not all(_NO_LOGPROB < logprob <= _ROUNDING for logprob in logprobs):
            raise self._lacking("does not know the log-probability of a token")
        is_truncated = first.finish_reason == "length"
        return Rollout(_storable(first.text), prompt_ids, ids, logprobs, is_truncated)

    def _lacking(self, what: str) -> SamplingError:
        return SamplingError(f"No rollouts of {self.engine_name}: the engine {what}.")


def _answered(
    found: Sequence[Assembled | PromptRefused], *, may_be_refused: bool
) -> list[Assembled | None]:
    """The answers, None for what was refused.

    Where all are refused and not for their length, it is the way we ask that the engine refuses.

    Raises:
        SamplingError: it is that, or no prompt may be refused and one is.
    """
    refusals = [reply for reply in found if isinstance(reply, PromptRefused)]
    is_of_prompts = len(refusals) < len(found) or all(each.is_too_long for each in refusals)
    if refusals and not (may_be_refused and is_of_prompts):
        raise SamplingError(str(refusals[0])) from refusals[0]
    if refusals:
        log.info("prompts_refused", requests=len(refusals), of=len(found), why=str(refusals[0]))
    return [None if isinstance(reply, PromptRefused) else reply for reply in found]


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
    if messages and messages[-1]["role"] == "assistant":
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def _seed(seed: int, place: int, index: int) -> int:
    digest = blake2b(f"{seed}:{place}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # vLLM takes 63 bits


def _reply(found: Assembled) -> Reply:
    first = found.first
    return Reply(
        _storable(first.text),
        first.finish_reason,
        tuple(found.prompt_token_ids),
        tuple(first.token_ids),
        tuple(map(_likeliest, first.logprobs.get("content", ()))),
    )


def _storable(text: str) -> str:
    """Without NUL, which a model may say, and PostgreSQL has no place for."""
    return text.replace("\x00", "\ufffd")


def _likeliest(place: dict[str, Any]) -> TopK:
    """Empty from an engine that writes tokens and not their ids."""
    entries = place.get("top_logprobs") or ()
    try:
        ids = tuple(token_id(entry["token"]) for entry in entries)
    except ValueError:
        return TopK((), ())
    return TopK(ids, tuple(float(entry["logprob"]) for entry in entries))
