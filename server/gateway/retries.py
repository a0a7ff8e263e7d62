"""Where a request goes, and where it goes next when a replica fails it. Decides; sends nothing."""

from server.core.errors import EngineUnavailable, EngineUnreachable
from server.engine.replica import Replica

MAX_BROKEN = 2
"""Replicas that may break off on one request before it is given up: it may be what kills them.
One that refuses the connection has not seen it, and does not count."""

MAX_RELOADS = 3
"""Times that one request may find its weights gone and have them loaded again: an engine that never
keeps them would go on for ever."""

_MESSAGES_READ = 8
_CHARS_READ = 256


class Retries:
    """What one request has met so far."""

    __slots__ = ("_broken", "_reloads", "failed")

    def __init__(self) -> None:
        self.failed: tuple[Replica, ...] = ()
        """Replicas that refused the connection or broke it off: not asked again."""
        self._broken = 0
        self._reloads = 0

    @property
    def may_reload(self) -> bool:
        """Whether a replica that has lost the weights may get them back for this request."""
        return self._reloads < MAX_RELOADS

    def note_lost(self, replica: Replica, engine_name: str) -> None:
        """A replica does not know the weights: it gets them back before anybody asks it for them."""
        self._reloads += 1
        replica.has_lost(engine_name)

    def may_go_on(self, replica: Replica, error: EngineUnavailable) -> bool:
        """Whether another replica may be asked; the failed one is avoided by everybody from now on.

        One that is only silent is neither: it may be at work on this very request.
        """
        if isinstance(error.__cause__, TimeoutError) and not isinstance(error, EngineUnreachable):
            return False
        replica.suspect(error)
        if replica in self.failed:
            return False
        self.failed = (*self.failed, replica)
        self._broken += not isinstance(error, EngineUnreachable)
        return self._broken <= MAX_BROKEN


def conversation_beginning(prompt: object) -> str:
    """The first words of a prompt up to its first user message: alike in all turns; cheap to make."""
    if isinstance(prompt, str):
        return prompt[:_CHARS_READ]
    if not isinstance(prompt, list):
        return ""
    said: list[str] = []
    for message in prompt[:_MESSAGES_READ]:
        if not isinstance(message, dict):  # a list of texts, or of token ids
            said.append(str(message)[:_CHARS_READ])
            continue
        said.append(_words(message.get("content")))
        if message.get("role") == "user":
            break
    return "\n".join(said)


def _words(content: object) -> str:
    if isinstance(content, str):
        return content[:_CHARS_READ]
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return next((text for text in texts if isinstance(text, str)), "")[:_CHARS_READ]
    return ""
