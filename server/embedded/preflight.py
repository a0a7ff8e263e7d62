"""Checks before anything is started: folder, disk, port, libraries. Each failure names its remedy."""

import ctypes
import errno
import os
import shutil
import socket
from pathlib import Path

from server.core.errors import SetupError

GIB = 1024**3
PRIVATE_UMASK = 0o077
"""For the supervisor and all it starts: database, keys, logs and prompts are its owner's alone."""

NEEDED_DISK_BYTES = 2 * GIB
"""Room for the converted model (0.5 GiB by default), adapters, database and logs."""

ENGINE_LIBRARIES = ("libnuma.so.1",)


def check_home(home: Path, needed_bytes: int = NEEDED_DISK_BYTES) -> None:
    """Make the home folder if it is missing; it must be writable and have room.

    Only its owner may look into it: it holds documents, conversations and hashes of keys.

    Raises:
        SetupError: it cannot be made or written, or the disk is too full.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.stat().st_uid == os.geteuid():
            home.chmod(0o700)
    except OSError as error:
        raise SetupError(
            f"Cannot make the folder {home}: {error.strerror}. "
            "Choose another one: EVERLEARN_HOME=/path/to/folder."
        ) from None
    check_folder(home, needed_bytes)


def check_folder(home: Path, needed_bytes: int = NEEDED_DISK_BYTES) -> None:
    """An existing folder must be writable and have room.

    Raises:
        SetupError: it is not, or has not.
    """
    if not os.access(home, os.W_OK | os.X_OK):
        raise SetupError(
            f"The folder {home} is not writable. Choose another one: EVERLEARN_HOME=/path/to/folder."
        )
    free = shutil.disk_usage(home).free
    if free < needed_bytes:
        raise SetupError(
            f"Only {free / GIB:.1f} GiB are free at {home}, and {needed_bytes / GIB:.1f} GiB are "
            "needed. Free some, or choose a folder on another disk: EVERLEARN_HOME=/path/to/folder."
        )


def check_port(host: str, port: int) -> None:
    """Nobody may listen on the gateway's address yet.

    Raises:
        SetupError: the port is taken or not allowed, or the address is not this machine's.
    """
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SetupError(
                    f"Port {port} on {host} is in use. Stop the program that listens there, or "
                    f"choose another port: EVERLEARN_GATEWAY__PORT={port + 1}."
                ) from None
            raise SetupError(
                f"Cannot listen on {host}:{port} ({error.strerror}). Change "
                "EVERLEARN_GATEWAY__HOST or EVERLEARN_GATEWAY__PORT."
            ) from None


def check_libraries(names: tuple[str, ...] = ENGINE_LIBRARIES) -> None:
    """The system libraries that vLLM's CPU build is linked against; no wheel carries them.

    Raises:
        SetupError: one is missing.
    """
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            raise SetupError(
                f"vLLM's CPU build needs the system library {name}. "
                "On Debian: apt-get install libnuma1."
            ) from None


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
