"""API keys: minting, hashing, scopes. A key is shown once; only its hash is stored.

Not covered: transport security. Put TLS in front of a gateway that listens beyond loopback.
"""

import hashlib
import secrets
from enum import StrEnum

KEY_PREFIX = "el_"

MIN_SECRET_CHARS = 24
"""For a secret that somebody else thought of: a fast hash protects only what cannot be guessed."""


class Scope(StrEnum):
    """What a key may do."""

    CHAT = "chat"
    """Ask the model: everything under /v1."""
    INGEST = "ingest"
    """Send documents and see their state."""
    FEEDBACK = "feedback"
    """Judge replies."""
    READ = "read"
    """Look at everything that may be looked at: interactions, documents, runs, versions."""
    ADMIN = "admin"
    """Everything, including keys, promotion and rollback."""


def mint_key() -> str:
    """A new secret: 32 random bytes, so that a fast hash is enough to store it."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(secret: str) -> str:
    """SHA-256 in hex. Looked up by equality of the hash, so timing tells nothing of the secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def redacted(secret: str) -> str:
    """The part of a key that may be shown again: enough to recognise it, useless to guess it."""
    shown = min(len(KEY_PREFIX) + 4, len(secret) // 4)
    return f"{secret[:shown]}…"
