"""What a reply counts for against the limits of a key."""

from collections.abc import Mapping
from typing import Any

CHARS_PER_TOKEN = 4
"""English text has about four characters a token; only for what the engine did not count."""

_PROMPT_FIELDS = ("messages", "prompt", "input")


def tokens_used(
    prompt_tokens: int | None, completion_tokens: int | None, reply: str, body: Mapping[str, Any]
) -> int:
    """Tokens of prompt and completion, by the engine's count.

    A client that leaves in mid-stream is not told by the engine what it used, and must not have it
    for nothing: what was not counted of prompt and reply is estimated by its length. Where there is
    neither count nor reply, as in a refusal, nothing was used.

    Args:
        reply: the text so far.
        body: the request, as the client sent it.
    """
    if prompt_tokens is None:
        prompt = sum(len(str(body[name])) for name in _PROMPT_FIELDS if name in body and reply)
        prompt_tokens = prompt // CHARS_PER_TOKEN
    if completion_tokens is None:
        completion_tokens = len(reply) // CHARS_PER_TOKEN
    return prompt_tokens + completion_tokens
