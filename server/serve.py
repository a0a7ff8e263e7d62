"""One gateway process: `python -m server.serve [--host H] [--port P]`; the settings say the rest."""

import argparse
import gc
import resource
import sys
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.core.settings import GatewaySettings, Settings
from server.http.protocol import BoundedProtocol, ConnectionLimits

FILES_PER_CONNECTION = 2
"""A client's socket and the engine's."""

OTHER_FILES = 256
SWITCH_S = 0.0002
"""How long the shipper's thread may compute before the event loop's gets its turn; Python's own 5 ms
are longer than what a request may be held up in all."""

GRACE_S = 8
"""How long replies under way may take once the process is told to stop."""


def main(arguments: list[str] | None = None) -> None:
    """Serve until a signal says stop."""
    settings = Settings()
    options = _parse(arguments, settings.gateway)
    sys.setswitchinterval(SWITCH_S)
    uvicorn.run(**server_options(settings, options.host, options.port))


def server_options(settings: Settings, host: str, port: int) -> dict[str, Any]:
    """How uvicorn runs the app."""
    gateway = settings.gateway
    limits = ConnectionLimits(
        max_connections=min(gateway.max_connections, _connections_that_fit()),
        head_timeout_s=gateway.head_timeout_s,
        body_timeout_s=gateway.body_timeout_s,
        write_timeout_s=gateway.write_timeout_s,
    )
    return {
        "app": partial(_lasting_app, settings),
        "factory": True,
        "host": host,
        "port": port,
        "http": partial(BoundedProtocol, limits=limits),
        "ws": "none",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "backlog": gateway.max_connections,
        "timeout_graceful_shutdown": GRACE_S,
    }


def _lasting_app(settings: Settings) -> FastAPI:
    """The app, out of the garbage collector's sight with all that was imported for it.

    None of it ever becomes garbage, and a full collection over it stops every request for a tenth
    of a second.
    """
    app = create_app(settings, ships_apart=True)
    gc.collect()
    gc.freeze()
    return app


def _connections_that_fit() -> int:
    """Connections for which the process may open files, after asking for all it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return 2**31
    return max(16, (hard - OTHER_FILES) // FILES_PER_CONNECTION)


def _parse(arguments: list[str] | None, gateway: GatewaySettings) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server.serve", description=__doc__)
    parser.add_argument("--host", default=gateway.host)
    parser.add_argument("--port", type=int, default=gateway.port)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
