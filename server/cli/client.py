"""HTTP to a server, from the command line: addresses, keys, and errors in words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import httpx2

from server.cli.console import Failure
from server.core.settings import Settings
from server.embedded.state import read_state

LONG_TIMEOUT_S = 900
"""For what reads every byte of large files before it answers."""
DEFAULT_URL = "http://127.0.0.1:8000"


class Api:
    """One server and one key; close it, or use it as a context manager."""

    def __init__(
        self, url: str, key: str | None, *, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(120, connect=5),
            transport=transport,
        )

    def __enter__(self) -> "Api":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET. Parameters that are None are left out."""
        return self._call("GET", path, params={k: v for k, v in params.items() if v is not None})

    def text(self, path: str) -> str:
        """The text of a GET."""
        return self._answer("GET", path).text

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON of a POST."""
        return self._call("POST", path, json=body)

    def post_form(
        self, path: str, files: list[tuple[str, tuple[str, bytes]]], fields: dict[str, str]
    ) -> Any:
        """The JSON of a POST of a multipart form: files as (field, (name, content))."""
        return self._call("POST", path, files=files, data=fields)

    def post_files(
        self, path: str, files: dict[str, tuple[str, BinaryIO]], fields: dict[str, str]
    ) -> Any:
        """The JSON of a POST of a form with open files, which are sent as they are read."""
        timeout = httpx2.Timeout(LONG_TIMEOUT_S, connect=5)
        return self._call("POST", path, files=files, data=fields, timeout=timeout)

    def patch(self, path: str, body: Any) -> Any:
        """The JSON of a PATCH."""
        return self._call("PATCH", path, json=body)

    def delete(self, path: str) -> Any:
        """The JSON of a DELETE."""
        return self._call("DELETE", path)

    @contextmanager
    def stream(self, method: str, path: str, body: Any = None) -> Iterator[httpx2.Response]:
        """An open response whose status is 2xx."""
        timeout = httpx2.Timeout(None, connect=5)
        try:
            with self._http.stream(method, path, json=body, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise _failure(response)
                yield response
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None

    def events(self, path: str) -> Iterator[tuple[str, str]]:
        """Server-sent events as (event, data), until the server ends the stream."""
        with self.stream("GET", path) as response:
            for event in httpx2.EventSource(response):
                yield event.event, event.data

    def _call(self, method: str, path: str, **request: Any) -> Any:
        return self._answer(method, path, **request).json()

    def _answer(self, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **request)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None
        if response.is_error:
            raise _failure(response)
        return response

    def _unreachable(self, error: Exception) -> Failure:
        return Failure(
            f"No server answers at {self.url} ({error}). Start one with `everlearn up`, or set "
            "EVERLEARN_URL to its address."
        )


def connect() -> Api:
    """The server that the environment names, else the one that runs in the home folder.

    `EVERLEARN_URL` and `EVERLEARN_API_KEY` (or `OPENAI_API_KEY`) are read here.
    """
    key = os.environ.get("EVERLEARN_API_KEY") or os.environ.get("OPENAI_API_KEY")
    return Api(server_url(), key)


def server_url() -> str:
    """`EVERLEARN_URL`, else the address of the server in the home folder, else the default."""
    if url := os.environ.get("EVERLEARN_URL"):
        return url
    state = read_state(Settings().home_path)
    return state.url if state else DEFAULT_URL


def _failure(response: httpx2.Response) -> Failure:
    """The server's own words where it has some."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The server answered {response.status_code} {response.reason_phrase}."
    if response.status_code == 401:
        message += (
            " Set EVERLEARN_API_KEY; on the server's own machine, "
            "`everlearn key create NAME --local` mints a key."
        )
    return Failure(message)
