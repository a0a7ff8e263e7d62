"""What the figures were measured on: processor, cores, memory. No host name, no user."""

import os
import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_CORES = len(os.sched_getaffinity(0))  # read now: a benchmark pins itself to some of them later


def machine() -> str:
    """One line, such as ``AMD EPYC, 2 cores, 23 GiB, Linux x86_64, Python 3.11.7``."""
    kind = f"{platform.system()} {platform.machine()}"
    processor = _found(_CPUINFO, r"model name\s*:\s*(.+)") or "unknown processor"
    return (
        f"{processor}, {_CORES} cores, "
        f"{memory_gib()} GiB, {kind}, Python {platform.python_version()}"
    )


def memory_gib() -> int:
    """Memory of the machine, in whole GiB; 0 where it cannot be read."""
    return int(_found(_MEMINFO, r"MemTotal:\s*(\d+)") or 0) // 1024**2


def _found(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, path.read_text()) if path.exists() else None
    return found[1].strip() if found else None
