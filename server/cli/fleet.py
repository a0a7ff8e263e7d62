"""`everlearn fleet`: the engines that serve: list, add, drain, remove."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from server.cli.client import Api, connect
from server.cli.console import Failure, out

app = typer.Typer(help="The engines that serve, and how they are.", invoke_without_command=True)

Which = Annotated[str, typer.Argument(help="Its id or its address; see `everlearn fleet`.")]


@app.callback()
def show(context: typer.Context) -> None:
    """Every replica as one gateway sees it, and every gateway."""
    if context.invoked_subcommand is not None:
        return
    with connect() as api:
        fleet = api.get("/api/v1/replicas")
    table = Table(
        Column("id", no_wrap=True), "address", "state", "requests", "holds", "problem", box=None
    )
    for replica in fleet["data"]:
        table.add_row(
            replica["id"],
            escape(replica["url"]),
            replica["state"],
            str(replica["outstanding"]),
            str(len(replica["resident"])),
            escape(replica["error"] or ""),
        )
    out.print(table)
    gateways = Table("gateway", "seen", "routes", "requests", box=None)
    for gateway in fleet["gateways"]:
        gateways.add_row(
            escape(gateway["name"]),
            gateway["seen_at"][:19],
            str(gateway["revision"]),
            str(sum(gateway["in_flight"].values())),
        )
    out.print()
    out.print(gateways)


@app.command()
def add(url: Annotated[str, typer.Argument(help="Such as http://10.0.0.7:8000.")]) -> None:
    """Use a further engine; it takes requests once it holds what serves."""
    with connect() as api:
        replica = api.post("/api/v1/replicas", {"url": url})
    out.print(
        f"{replica['url']} is added ({replica['id']}); `everlearn fleet` shows when it is healthy."
    )


@app.command()
def drain(which: Which) -> None:
    """Let it take no new request; what runs on it is finished."""
    _set_draining(which, is_draining=True)


@app.command()
def undrain(which: Which) -> None:
    """Let it take requests again."""
    _set_draining(which, is_draining=False)


@app.command()
def remove(which: Which) -> None:
    """Use it no more; what runs on it is finished."""
    with connect() as api:
        replica = _find(api, which)
        api.delete(f"/api/v1/replicas/{replica['id']}")
    out.print(f"{replica['url']} is removed.")


def _set_draining(which: str, *, is_draining: bool) -> None:
    with connect() as api:
        replica = _find(api, which)
        api.patch(f"/api/v1/replicas/{replica['id']}", {"is_draining": is_draining})
    now = "drains" if is_draining else "takes requests again"
    out.print(f"{replica['url']} {now}.")


def _find(api: Api, which: str) -> dict[str, Any]:
    replicas: list[dict[str, Any]] = api.get("/api/v1/replicas")["data"]
    for replica in replicas:
        if which.rstrip("/") in (replica["id"], replica["url"]):
            return replica
    known = ", ".join(replica["url"] for replica in replicas)
    raise Failure(f"There is no replica {which!r}. There is {known}.")
