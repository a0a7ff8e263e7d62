"""Ships what a gateway has captured: `python -m server.ship`, which `server.serve` starts.

It ends when its standard input does: when the gateway stops, or is killed. Either way it first ships
what there is. It is nice to others, because a reply is worth more than a row that comes a moment
later.
"""

import asyncio
import os
import signal
import sys
import threading
from contextlib import suppress

from server.core.logging import configure_logging
from server.core.settings import Settings
from server.db.session import Database
from server.gateway.shipping import RETRY_S, Shipper

NICENESS = 10


def main() -> None:
    """Ship until the gateway is gone."""
    for number in (signal.SIGTERM, signal.SIGINT):  # they come to the whole group; the gateway ends
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    settings = Settings()
    configure_logging(settings.log)
    database = Database(settings.sqlalchemy_url)
    try:
        asyncio.run(_ship(settings, Shipper(settings.segments_path, database)))
    finally:
        database.close_sync()


async def _ship(settings: Settings, shipper: Shipper) -> None:
    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()
    threading.Thread(target=_wait_for_end, args=(loop, is_over), daemon=True).start()
    while not is_over.is_set():
        pause_s = settings.capture.ship_s if await shipper.ship_on() else RETRY_S
        with suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), pause_s)
    await shipper.ship_on()


def _wait_for_end(loop: asyncio.AbstractEventLoop, is_over: asyncio.Event) -> None:
    while sys.stdin.buffer.read(1024):
        continue
    loop.call_soon_threadsafe(is_over.set)


if __name__ == "__main__":
    main()
