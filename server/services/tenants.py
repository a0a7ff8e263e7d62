"""Tenants: whose rows a caller may see and change.

A tenant is a name on rows (``owner``). A caller whose tenant is None is the operator and sees every
row. What is another tenant's is answered as if it were not there.
"""

from typing import Any

from sqlalchemy import ColumnElement, true

from server.core.errors import ForeignTenant


def sees(tenant: str | None, owner: str | None) -> bool:
    """Whether a caller of ``tenant`` may look at a row of ``owner``."""
    return tenant is None or tenant == owner


def only(column: Any, tenant: str | None) -> ColumnElement[bool]:
    """The condition that leaves the rows which a caller of ``tenant`` may look at."""
    condition: ColumnElement[bool] = true() if tenant is None else column == tenant
    return condition


def operator_only(tenant: str | None, remedy: str) -> None:
    """Raises ForeignTenant for every caller of a tenant."""
    if tenant is not None:
        raise ForeignTenant(tenant, remedy)


def owner_for(tenant: str | None, wanted: str | None) -> str | None:
    """Who owns what a caller of ``tenant`` makes: that tenant; for the operator, whom it names.

    Raises:
        ForeignTenant: one tenant names another.
    """
    if tenant is None:
        return wanted
    if wanted not in (None, tenant):
        raise ForeignTenant(tenant, "Leave `owner` out, or name that tenant.")
    return tenant
