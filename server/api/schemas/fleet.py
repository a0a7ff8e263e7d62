"""Replicas and gateways."""

from datetime import datetime
from typing import Any

from pydantic import StrictBool

from server.api.schemas.base import Body, Name, View


class ReplicaBody(Body):
    url: Name
    """Address of a vLLM server like the others; ``http`` or ``https``, without a key in it."""


class DrainBody(Body):
    is_draining: StrictBool
    """Whether it shall take no new request."""


class ReplicaView(View):
    id: str
    url: str
    origin: str
    """``settings``, or ``api``."""
    is_draining: bool
    state: str
    """joining, healing, healthy, away, unsafe or draining, as this gateway sees it."""
    error: str | None
    outstanding: int
    """Requests of this gateway that run on it."""
    resident: list[str]
    """The adapters that it holds, by their engine names."""
    created_at: datetime


class GatewayView(View):
    id: str
    name: str
    """Host and process."""
    seen_at: datetime
    revision: int
    """Of the routes it works by."""
    in_flight: dict[str, int]
    """Engine name to running requests."""
    replicas: dict[str, Any]
    """Address to what this gateway sees of the replica."""


class FleetView(View):
    data: list[ReplicaView]
    gateways: list[GatewayView]
    """Those that gave a sign of life lately."""
