"""The engines that a worker asks: every replica of the table; a version on each of them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from server.core.clock import monotonic
from server.core.errors import EngineError, EngineUnavailable, ReplicasNotReady
from server.core.settings import EngineSettings
from server.engine.control import open_control
from server.engine.fleet import needed_for
from server.services import fleet
from workers.context import WorkerContext

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Proof:
    """What one replica says about a version."""

    figures: Mapping[str, Any] | None = None
    """Of the load and the proof; None where it is not proven."""
    error: EngineError | None = None
    is_away: bool = False
    """Whether the replica does not answer at all."""


def known_urls(context: WorkerContext) -> list[str]:
    """Address of every replica that does not drain; without rows, the settings' own."""
    with context.database.unit_of_work() as session:
        return fleet.urls(session, context.settings.engine.urls)


def urls_holding(context: WorkerContext, *engine_names: str) -> list[str]:
    """Replicas that answer and list all of these names; every known one when none does."""
    urls = known_urls(context)
    if len(urls) < 2:
        return urls
    settings = context.settings.engine
    listed = asyncio.run(_each(urls, lambda url: _listed(settings, url)))
    return [url for url, names in listed.items() if names and names >= set(engine_names)] or urls


def prove_everywhere(
    context: WorkerContext, engine_name: str, path: str, base_engine_name: str
) -> dict[str, dict[str, Any]]:
    """Have every replica that answers hold and prove a version; figures by address.

    Raises:
        EngineUnavailable: none answers, or all that fail do so by silence.
        ReplicasNotReady: too few have proven it, where there are several replicas.
        EngineError: the only replica refuses it, or answers as the base does.
    """
    settings = context.settings.engine
    urls = known_urls(context)
    if not urls:
        raise EngineUnavailable("every replica is draining")

    async def prove(url: str) -> Proof:
        return await _prove(settings, url, engine_name, path, base_engine_name)

    proofs = asyncio.run(_each(urls, prove))
    _check_quorum(context, engine_name, proofs)
    return {url: dict(p.figures) for url, p in proofs.items() if p.figures is not None}


def check_held(context: WorkerContext, engine_name: str) -> None:
    """Return when the quorum of the replicas that answer still lists a version; asks for no more.

    Raises:
        EngineUnavailable: none answers.
        ReplicasNotReady: too few have it.
    """
    settings = context.settings.engine
    urls = known_urls(context)

    async def look(url: str) -> Proof:
        names = await _listed(settings, url)
        if names is None:
            return Proof(error=EngineUnavailable(url), is_away=True)
        if engine_name not in names:
            return Proof(error=EngineError("It does not hold it any more."))
        return Proof({})

    proofs = asyncio.run(_each(urls, look))
    lost = {url: str(p.error) for url, p in proofs.items() if p.error and not p.is_away}
    held = sum(proof.figures is not None for proof in proofs.values())
    needed = needed_for(context.settings.swap.quorum, held + len(lost))
    if not held and not lost:
        raise EngineUnavailable("no replica answers")
    if held < needed:
        raise ReplicasNotReady(engine_name, held, needed, lost)


def _check_quorum(context: WorkerContext, engine_name: str, proofs: Mapping[str, Proof]) -> None:
    failed = {url: p.error for url, p in proofs.items() if p.error is not None}
    present = sum(not proof.is_away for proof in proofs.values())
    proven = len(proofs) - len(failed)
    needed = needed_for(context.settings.swap.quorum, present)
    if proven >= needed:
        return
    errors = list(failed.values())
    if len(proofs) == 1:
        raise errors[0]
    if all(isinstance(error, EngineUnavailable) for error in errors):
        raise EngineUnavailable("; ".join(f"{url}: {error}" for url, error in failed.items()))
    why = {url: str(error) for url, error in failed.items()}
    raise ReplicasNotReady(engine_name, proven, needed, why)


async def _prove(
    settings: EngineSettings, url: str, engine_name: str, path: str, base_engine_name: str
) -> Proof:
    async with open_control(settings, url) as control:
        try:
            await control.models()
        except EngineUnavailable as error:
            return Proof(error=error, is_away=True)
        except EngineError as error:
            return Proof(error=error)
        began = monotonic()
        try:
            await control.load_adapter(engine_name, path)
            load_s = monotonic() - began
            difference = await control.prove_adapter(engine_name, base_engine_name)
        except EngineError as error:
            return Proof(error=error)
    return Proof({"load_seconds": round(load_s, 3), "logprob_difference": round(difference, 4)})


async def _listed(settings: EngineSettings, url: str) -> set[str] | None:
    """Every name in an engine's list; None when it does not answer."""
    async with open_control(settings, url) as control:
        try:
            return {model.name for model in await control.models()}
        except EngineError:
            return None


async def _each(urls: Sequence[str], ask: Callable[[str], Awaitable[Answer]]) -> dict[str, Answer]:
    answers = await asyncio.gather(*(ask(url) for url in urls))
    return dict(zip(urls, answers, strict=True))
