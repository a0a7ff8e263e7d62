"""`everlearn chat`: one question, or a conversation; says which version answered."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import httpx2
import typer

from server.cli.client import Api, connect
from server.cli.console import Failure, err, out
from server.core.settings import Settings

VERSION_HEADER = "x-everlearn-version"
Message = dict[str, str]


def chat(
    prompt: Annotated[str | None, typer.Argument(help="Without it: a conversation.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A name such as smollm2, smollm2@v2, smollm2@base.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest word.")] = 0.0,
) -> None:
    """Ask the model."""
    options = {
        "model": model or Settings().model.name,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
    }
    with connect() as api:
        if prompt is not None:
            _answer(api, options, [{"role": "user", "content": prompt}])
            return
        err.print("[dim]An empty line or Ctrl-D ends the conversation.[/]")
        conversation: list[Message] = []
        while question := _read():
            conversation.append({"role": "user", "content": question})
            reply = _answer(api, options, conversation)
            conversation.append({"role": "assistant", "content": reply})


def _answer(api: Api, options: dict[str, Any], messages: list[Message]) -> str:
    """Print a reply as it comes and return it whole."""
    body = {**options, "messages": messages}
    with api.stream("POST", "/v1/chat/completions", body) as response:
        pieces = []
        for piece in _pieces(response):
            pieces.append(piece)
            out.print(piece, end="", markup=False, soft_wrap=True)
            out.file.flush()
        out.print()
        err.print(f"[dim]{response.headers.get(VERSION_HEADER, 'version unknown')}[/]")
    return "".join(pieces)


def _pieces(response: httpx2.Response) -> Iterator[str]:
    for event in httpx2.EventSource(response):
        if event.data == "[DONE]":
            return
        payload = json.loads(event.data)
        if error := payload.get("error"):
            raise Failure(f"The reply broke off: {error['message']}")
        for choice in payload.get("choices", []):
            if text := choice["delta"].get("content"):
                yield text
    raise Failure("The reply broke off.")


def _read() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
