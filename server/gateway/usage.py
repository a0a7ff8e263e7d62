"""What a reply counts for against the limits of a key."""

from collections.abc import Mapping
from typing import Any

from server.engine.sse import Assembled

CHARS_PER_TOKEN = 4
"""English text has about four characters a token; only for what the engine did not count."""


def tokens_used(read: Assembled, body: Mapping[str, Any]) -> int:
    """Tokens of prompt and completion, by the engine's count.

    A client that leaves in mid-stream is not told by the engine what it used, and must not have it
    for nothing: then prompt and reply are estimated by their length. A reply that never began, such
    as a refusal, counts nothing.
    """
    if read.completion_tokens is not None:
        return (read.prompt_tokens or 0) + read.completion_tokens
    if not read.reply:
        return 0
    return (len(str(body.get("messages", ""))) + len(read.reply)) // CHARS_PER_TOKEN
