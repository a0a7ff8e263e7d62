"""Messages to the workers: short waits, an end of their life, and silence about a lost one."""

import socket
import time

from kombu import Connection

from server.core.queue import INGEST_DOCUMENT, LIGHT_QUEUE, MESSAGE_EXPIRES_S, CeleryQueue


def seconds_to_send(port: int) -> float:
    began = time.monotonic()
    CeleryQueue(f"redis://127.0.0.1:{port}/0").send(INGEST_DOCUMENT, "doc_1")
    return time.monotonic() - began


def test_a_refused_connection_costs_no_time() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))

        assert seconds_to_send(unused.getsockname()[1]) < 1.5


def test_a_silent_queue_is_given_up_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert seconds_to_send(silent.getsockname()[1]) < 5


def test_a_message_that_nobody_takes_expires() -> None:
    queue = CeleryQueue("memory://")
    queue.send(INGEST_DOCUMENT, "doc_1")

    with Connection("memory://") as connection:
        message = connection.SimpleQueue(LIGHT_QUEUE).get(timeout=1)

    assert message.headers["expires"] is not None
    assert message.headers["id"]
    assert MESSAGE_EXPIRES_S >= 10  # a worker that is a little late still takes it
