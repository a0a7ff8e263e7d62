"""Taking a version out of service for good."""

from sqlalchemy.orm import Session

from server.core.errors import VersionInUse
from server.db import Adapter, AdapterVersion, VersionStatus
from server.services import promotion, registry, trials


def retire(
    session: Session, adapter: Adapter, version: AdapterVersion, *, actor: str, reason: str
) -> bool:
    """Take a version out of service for good, and off its trial; False when it was out already.

    Raises:
        VersionInUse: it serves, or its run is still open.
    """
    promotion.lock_champion(session, adapter)
    session.refresh(version)
    if version.status == VersionStatus.RETIRED:
        return False
    if (run := promotion.open_run(session, version)) is not None:
        why = f"its run {run.id} is still open; cancel that first: `everlearn runs {run.id} --cancel`."
        raise VersionInUse(adapter.name, version.number, why)
    trial = trials.open_trial_of(session, adapter)
    if trial is not None and trial.version_id == version.id:
        trials.abort(session, trial, actor=actor, reason=f"The version was retired: {reason}")
    registry.retire(session, version, reason=reason)
    return True
