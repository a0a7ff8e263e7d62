"""What gateways tell each other, through the Valkey of the queue. Without it each goes on alone."""

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

VALKEY_AWAY = (RedisError, OSError)
"""What a call raises when Valkey does not answer in time, or not at all."""

_TIMEOUT_S = 0.5
_HEALTH_CHECK_S = 5.0


def open_valkey(url: str) -> redis.Redis:
    """A client that fails within half a second and never tries twice; close it at the end."""
    return redis.Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        socket_keepalive=True,
        health_check_interval=_HEALTH_CHECK_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
