"""Which code this is: the package's version, and the commit where it is known."""

import json
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "everlearn"

_GIT_TIMEOUT_S = 5


@cache
def code_version() -> str:
    """Such as ``0.1.0+3f2a91c0d1e2``; what is not known is left out, and all of it is ``unknown``."""
    version, commit = "unknown", _commit(Path(__file__).parents[1])
    try:
        found = distribution(PACKAGE)
    except PackageNotFoundError:
        pass
    else:
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        version, commit = found.version, origin.get("vcs_info", {}).get("commit_id") or commit
    return f"{version}+{commit[:12]}" if commit else version


def _commit(root: Path) -> str | None:
    """The commit of a checkout; None elsewhere."""
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_S,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
