"""create_app(): settings, lifespan, routers, error handlers. `python -m server.serve`."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI

from server import api
from server.api import health, metrics
from server.core.errors import SetupError
from server.core.logging import configure_logging
from server.core.queue import CeleryQueue, Queue
from server.core.security import Scope
from server.core.settings import Settings
from server.db.session import Database
from server.gateway import routes
from server.gateway.capture import Capture
from server.gateway.endpoints import ENDPOINTS
from server.gateway.lane import Gateway
from server.gateway.shadow import Shadows
from server.http import (
    BodyLimitMiddleware,
    KeyRing,
    Limiter,
    RequestIdMiddleware,
    install_error_handlers,
    open_valkey,
    require,
)
from server.openapi import describe
from server.runtime import Runtime

_OWN_BODY_LIMIT = frozenset({"/api/v1/documents", *(spec.path for spec in ENDPOINTS)})
_IMPORTS = re.compile(r"/api/v1/adapters/[^/]+/versions")


def create_app(
    settings: Settings | None = None, *, queue: Queue | None = None, ships_apart: bool = False
) -> FastAPI:
    """The whole HTTP surface over the engines and one database.

    Args:
        settings: read from the environment when left out.
        queue: where hints for the workers go; the settings' Redis when left out.
        ships_apart: see :class:`server.gateway.capture.Capture`; the process that is started
            reads its settings from the environment.

    Raises:
        SetupError: the settings name no engine or no queue.
    """
    settings = settings or Settings()
    configure_logging(settings.log)
    if settings.engine.url is None:
        raise SetupError(
            "No engine is known: set EVERLEARN_ENGINE__URL, or run `everlearn up`, which starts "
            "one and the gateway with it."
        )
    waiting_queue = queue or _queue(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.sqlalchemy_url)
        runtime = Runtime(settings, database, waiting_queue)
        capture = Capture(
            settings.capture, settings.segments_path, database, ships_apart=ships_apart
        )
        app.state.runtime = runtime
        valkey = open_valkey(settings.redis_url) if settings.redis_url else None
        app.state.key_ring = key_ring = KeyRing(database, valkey)
        app.state.limiter = limiter = Limiter(database, valkey)
        app.state.capture = capture
        runtime.watch_capture(capture.backlog)
        app.state.shadows = shadows = Shadows(runtime, capture)
        await capture.start()
        await runtime.start()
        await key_ring.start()
        await limiter.start()
        try:
            yield
        finally:
            await shadows.close()
            await runtime.close()
            await limiter.close()
            await key_ring.close()
            await capture.close()
            if valkey is not None:
                await valkey.aclose()
            await database.close()

    app = Gateway(title="Everlearn", lifespan=lifespan, docs_url=None, openapi_url=None)
    app.lane = routes.LANE
    app.add_middleware(BodyLimitMiddleware, own_limit=_OWN_BODY_LIMIT, own_limit_pattern=_IMPORTS)
    app.add_middleware(RequestIdMiddleware)
    install_error_handlers(app)
    app.include_router(routes.router)  # first: routes are tried in turn, and these are asked most
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.include_router(api.router)
    _serve_schema(app)
    return app


def _queue(settings: Settings) -> Queue:
    if settings.redis_url is None:
        raise SetupError(
            "No queue is known: set EVERLEARN_REDIS_URL, or run `everlearn up`, which starts one."
        )
    return CeleryQueue(settings.redis_url)


def _serve_schema(app: FastAPI) -> None:
    """The OpenAPI document, behind a key like everything under /api."""

    @app.get(
        "/api/openapi.json",
        include_in_schema=False,
        dependencies=[Depends(require(Scope.READ, Scope.INGEST))],
    )
    async def schema() -> dict[str, Any]:
        return describe(app)
