"""Commands: runs that are followed while they go."""

import io
import threading

from rich.console import Console

from server.cli.client import Api
from server.cli.progress import follow
from tests.support.scripted_server import LEARNT, RUN, sse


def test_broken_event_stream_is_taken_up_again(server):
    api = Api(server.url, "el_test")
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", RUN)))

    def heal() -> None:
        server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", LEARNT)))

    threading.Timer(0.3, heal).start()
    with api:
        last = follow(api, "run_1", Console(file=io.StringIO()))

    assert last["status"] == "succeeded"
    assert len(server.asked) >= 2


def test_bars_show_every_stage_on_a_terminal(server):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(("run", RUN), ("run", LEARNT)))

    with Api(server.url, "el_test") as api:
        follow(api, "run_1", terminal)

    shown = terminal.file.getvalue()
    assert all(stage in shown for stage in ("chunk", "self-edits", "training", "exam", "swap"))
    assert "10/10" in shown


def test_bars_show_the_stages_of_the_method(server):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    events = (("run", {**each, "method": "distill"}) for each in (RUN, LEARNT))
    server.answers["GET /api/v1/runs/run_1/events"] = (200, sse(*events))

    with Api(server.url, "el_test") as api:
        follow(api, "run_1", terminal)

    shown = terminal.file.getvalue()
    assert "replies" in shown
    assert "self-edits" not in shown
