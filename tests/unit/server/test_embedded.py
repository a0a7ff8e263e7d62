"""The supervisor on trivial children: readiness, restart, stop order, groups, orphans, state, checks."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.core.errors import SetupError
from server.core.settings import Settings
from server.embedded.child import LOG_BYTES, Child
from server.embedded.plan import make_plan
from server.embedded.preflight import check_home, check_port, free_port
from server.embedded.state import (
    State,
    hold_home,
    process_start_time,
    read_state,
    remove_state,
    stop_server,
)
from server.embedded.supervisor import Supervisor

ROOT = Path(__file__).parents[3]
SLEEP = "import time; time.sleep(60)"


def python(name: str, code: str, folder: Path, **fields: object) -> Child:
    return Child(name, [sys.executable, "-c", code], folder / f"{name}.log", **fields)


def wait_until(condition, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    return process_start_time(pid) is not None


@pytest.fixture
def supervisor():
    made = Supervisor(lambda child: None, backoff_s=(0.0,))
    yield made
    made.stop()


def test_ready_child_is_waited_for(supervisor, tmp_path):
    flag = tmp_path / "flag"
    code = f"import time, pathlib; time.sleep(0.3); pathlib.Path({str(flag)!r}).touch(); {SLEEP}"
    child = python("late", code, tmp_path, is_ready=flag.exists)

    supervisor.start(child)
    supervisor.wait_ready(child)

    assert flag.exists()
    assert child.is_alive


def test_child_that_dies_while_starting_is_an_error_with_the_end_of_its_log(supervisor, tmp_path):
    child = python("broken", "raise SystemExit('no such model')", tmp_path, is_ready=lambda: False)

    supervisor.start(child)

    with pytest.raises(SetupError, match=r"(?s)broken: ended with status 1.*no such model"):
        supervisor.wait_ready(child)


def test_child_that_is_never_ready_is_an_error(supervisor, tmp_path):
    child = python("mute", SLEEP, tmp_path, is_ready=lambda: False, start_timeout_s=0.2)

    supervisor.start(child)

    with pytest.raises(SetupError, match="mute: not ready in"):
        supervisor.wait_ready(child)


def test_dead_child_is_started_again(tmp_path):
    changes: list[int | None] = []
    supervisor = Supervisor(lambda child: changes.append(child.pid), backoff_s=(0.0,))
    child = python("worker", SLEEP, tmp_path)
    supervisor.start(child)
    first = child.pid

    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not child.is_alive)
    supervisor.poll()

    assert child.is_alive
    assert child.pid != first
    assert changes == [first, child.pid]
    supervisor.stop()


def test_pause_grows_with_each_death_in_a_row(tmp_path):
    supervisor = Supervisor(lambda child: None, backoff_s=(0.0, 60.0))
    child = python("crashing", "raise SystemExit(1)", tmp_path)
    supervisor.start(child)

    for _ in range(2):
        wait_until(lambda: not child.is_alive)
        supervisor.poll()

    assert not child.is_alive  # the second pause is a minute long
    assert child.failures == 2
    supervisor.stop()


def test_children_stop_in_reverse_order(tmp_path):
    journal = tmp_path / "journal"
    code = """
import pathlib, signal, sys, time
def leave(*_):
    with open({journal!r}, "a") as file: file.write({name!r} + " ")
    sys.exit()
signal.signal(signal.SIGTERM, leave)
pathlib.Path({flag!r}).touch()
time.sleep(60)
"""
    supervisor = Supervisor(lambda child: None)
    for name in ("queue", "engine", "gateway"):
        flag = tmp_path / f"{name}.flag"
        text = code.format(journal=str(journal), name=name, flag=str(flag))
        child = python(name, text, tmp_path, is_ready=flag.exists)
        supervisor.start(child)
        supervisor.wait_ready(child)

    supervisor.stop()

    assert journal.read_text().split() == ["gateway", "engine", "queue"]


def test_stop_takes_the_whole_group_and_does_not_wait_for_the_deaf(tmp_path):
    note = tmp_path / "grandchild"
    code = f"""
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
pathlib.Path({str(note)!r}).write_text(str(other.pid))
time.sleep(60)
"""
    child = python("deaf", code, tmp_path, grace_s=0.2)
    child.start()
    wait_until(lambda: note.exists() and note.read_text())

    child.stop()

    assert not child.is_alive
    wait_until(lambda: not runs(int(note.read_text())))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_no_child_outlives_a_killed_supervisor(tmp_path):
    code = f"""
import pathlib, time
from server.embedded.child import Child
child = Child("c", [{sys.executable!r}, "-c", {SLEEP!r}], pathlib.Path({str(tmp_path / "c.log")!r}))
child.start()
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert runs(pid)

    parent.kill()
    parent.wait()

    wait_until(lambda: not runs(pid))


def test_no_grandchild_outlives_a_killed_supervisor(tmp_path):
    grandchild = tmp_path / "grandchild"
    child_code = f"""
import pathlib, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
pathlib.Path({str(grandchild)!r}).write_text(str(other.pid))
time.sleep(60)
"""
    code = f"""
import pathlib, time
from server.embedded.child import Child
from server.embedded.supervisor import Supervisor
command = [{sys.executable!r}, "-c", {child_code!r}]
Supervisor(lambda child: None).start(Child("c", command, pathlib.Path({str(tmp_path / "log")!r})))
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    wait_until(lambda: grandchild.exists() and grandchild.read_text())
    pid = int(grandchild.read_text())
    assert runs(pid)

    parent.kill()
    parent.wait()

    wait_until(lambda: not runs(pid))


def test_long_log_is_set_aside(tmp_path):
    child = python("chatty", "print('fresh')", tmp_path)
    child.log_path.touch()
    os.truncate(child.log_path, LOG_BYTES + 1)

    child.start()
    child.process.wait()

    assert (tmp_path / "chatty.log.1").stat().st_size == LOG_BYTES + 1
    assert child.log_path.read_text() == "fresh\n"


def test_long_log_is_set_aside_while_its_child_writes_on(supervisor, tmp_path):
    flag = tmp_path / "flag"
    code = f"""
import pathlib, time
print("before", flush=True)
while not pathlib.Path({str(flag)!r}).exists(): time.sleep(0.01)
print("after", flush=True)
{SLEEP}
"""
    child = python("chatty", code, tmp_path)
    supervisor.start(child)
    wait_until(lambda: child.log_path.read_text() == "before\n")
    os.truncate(child.log_path, LOG_BYTES + 1)

    supervisor.poll()
    flag.touch()
    wait_until(lambda: child.log_path.read_text() == "after\n")

    assert (tmp_path / "chatty.log.1").read_bytes().startswith(b"before")


def test_child_says_itself_that_it_is_ready(supervisor, tmp_path):
    file = tmp_path / "ready"
    file.touch()  # of an earlier start
    code = f"""
import os, pathlib, time
time.sleep(0.3)
pathlib.Path(os.environ["EVERLEARN_READY_FILE"]).write_text("now")
{SLEEP}
"""
    child = python("worker", code, tmp_path, ready_file=file, is_ready=file.exists)

    supervisor.start(child)
    assert not file.exists()
    supervisor.wait_ready(child)

    assert child.is_alive


def test_worker_that_takes_messages_touches_the_file(tmp_path):
    file = tmp_path / "ready"
    code = """
import os
from celery import signals
import workers.app
signals.worker_ready.send(sender=None)
"""
    env = {**os.environ, "EVERLEARN_REDIS_URL": "redis://127.0.0.1:9/0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]

    subprocess.run(command, env=env, cwd=tmp_path, check=True)
    assert not file.exists()
    env["EVERLEARN_READY_FILE"] = str(file)
    subprocess.run(command, env=env, cwd=tmp_path, check=True)

    assert file.exists()


def test_state_is_read_back_while_its_process_lives(tmp_path):
    state = State.of_this_process("http://127.0.0.1:1").with_child("gateway", 7)

    state.write(tmp_path)

    assert read_state(tmp_path) == state
    remove_state(tmp_path)
    assert read_state(tmp_path) is None


def test_state_of_a_reused_pid_is_stale(tmp_path):
    State(pid=os.getpid(), pid_started="1", url="http://127.0.0.1:1").write(tmp_path)

    assert read_state(tmp_path) is None


def test_state_that_is_not_ours_is_stale(tmp_path):
    (tmp_path / "state.json").write_text('{"something": "else"}')

    assert read_state(tmp_path) is None


def test_second_server_in_a_home_is_refused(tmp_path):
    with hold_home(tmp_path), pytest.raises(SetupError, match="everlearn down"):
        hold_home(tmp_path)


def test_stop_server_waits_for_the_supervisor(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLEEP])
    started = process_start_time(process.pid)

    # The zombie of our own child counts as gone, as it would for a supervisor of init's.
    assert stop_server(State(process.pid, started or "", "http://x"), timeout_s=5)
    process.wait()


def test_port_in_use_names_the_setting():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(SetupError, match=f"Port {port} .*EVERLEARN_GATEWAY__PORT={port + 1}"):
            check_port("127.0.0.1", port)


def test_address_of_another_machine_names_the_setting():
    with pytest.raises(SetupError, match="EVERLEARN_GATEWAY__HOST"):
        check_port("192.0.2.1", 8000)


def test_free_port_can_be_used():
    check_port("127.0.0.1", free_port())


def test_home_without_room_is_refused(tmp_path):
    with pytest.raises(SetupError, match=r"GiB are free at .*EVERLEARN_HOME"):
        check_home(tmp_path, needed_bytes=2**60)


def test_home_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(SetupError, match="Cannot make the folder"):
        check_home(tmp_path / "file" / "home")


def test_home_is_its_owners_alone(tmp_path):
    old = tmp_path / "old"
    old.mkdir(mode=0o755)

    for home in (old, tmp_path / "new"):
        check_home(home)
        assert home.stat().st_mode & 0o777 == 0o700


def test_plan_starts_all_and_gives_the_children_their_addresses(tmp_path):
    settings = Settings(_env_file=None, home=tmp_path, gateway={"port": 0})

    plan = make_plan(settings, tmp_path / "model")

    names = [child.name for child in plan.children]
    assert names == ["valkey", "engine", "worker-train", "worker-light", "beat", "gateway"]
    env = plan.gateway.env
    assert env["EVERLEARN_HOME"] == str(tmp_path)
    assert env["EVERLEARN_REDIS_URL"].startswith("redis://:")
    assert plan.gateway_url.endswith(env["EVERLEARN_GATEWAY__PORT"])
    assert all(worker.env == env for worker in plan.workers)


def test_plan_starts_nothing_that_somebody_else_runs(tmp_path):
    settings = Settings(
        _env_file=None,
        home=tmp_path,
        redis_url="redis://elsewhere/0",
        engine={"url": "http://elsewhere:8000"},
    )

    plan = make_plan(settings, tmp_path / "model")

    names = [child.name for child in plan.children]
    assert names == ["worker-train", "worker-light", "beat", "gateway"]
    assert plan.gateway.env["EVERLEARN_ENGINE__URL"] == "http://elsewhere:8000"


def test_engine_gets_a_key_of_this_start_that_only_its_clients_know(tmp_path):
    settings = Settings(_env_file=None, home=tmp_path)

    plans = [make_plan(settings, tmp_path / "model") for _ in range(2)]

    keys = [plan.engine.env["VLLM_API_KEY"] for plan in plans]
    assert len(set(keys)) == 2
    for plan, key in zip(plans, keys, strict=True):
        assert len(key) >= 32
        assert plan.gateway.env["EVERLEARN_ENGINE__API_KEY"] == key
        assert key not in str(plan.settings)
        assert key not in plan.queue.env.values()
        assert all(key not in part for child in plan.children for part in child.command)


def test_password_of_the_queue_is_in_no_command_line(tmp_path):
    plan = make_plan(Settings(_env_file=None, home=tmp_path), tmp_path / "model")

    password = plan.settings.redis_url.split(":")[2].partition("@")[0]
    assert all(password not in part for child in plan.children for part in child.command)
    assert (tmp_path / "valkey" / "valkey.conf").stat().st_mode & 0o077 == 0
