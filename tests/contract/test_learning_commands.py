"""`everlearn prompts`, `policies` and `learn`, against a running server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from server.cli.main import app
from server.core.settings import Settings
from server.db.session import Database
from server.services import runs
from tests.support.api import ADMIN_KEY, Api, running_api


@pytest.fixture
def api(
    tmp_path: Path, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Api]:
    with running_api(tmp_path, settings, database) as api:
        monkeypatch.setenv("EVERLEARN_URL", str(api.client.base_url))
        monkeypatch.setenv("EVERLEARN_API_KEY", ADMIN_KEY)
        monkeypatch.setenv("COLUMNS", "250")
        yield api


def run(*words: str) -> str:
    result: Result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def first_id(text: str, prefix: str) -> str:
    found = re.search(rf"{prefix}_\w+", text)
    assert found is not None, text
    return found[0]


@pytest.mark.usefixtures("api")
def test_prompts_are_sent_listed_shown_and_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"What is {n} + 1?", "answers": [str(n + 1)]} for n in range(20)]
    file.write_text("\n".join(json.dumps(row) for row in rows))

    assert run("prompts", "add", str(file), "--tag", "maths").startswith("20 prompts: 20 new, ")
    assert run("prompts", "add", str(file), "--tag", "maths").startswith("20 prompts: 0 new, ")
    listed = run("prompts", "list", "--tag", "maths")
    assert "+ 1?" in listed
    prompt_id = first_id(listed, "pmt")
    assert "Right is:" in run("prompts", "show", prompt_id)
    assert f"prompt {prompt_id}" in run("prompts", "forget", prompt_id)
    assert prompt_id not in run("prompts", "list")


@pytest.mark.usefixtures("api")
def test_plain_text_is_a_prompt_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("Who are you?\n\nWhere is Kell?\n")

    assert run("prompts", "add", str(file)).startswith("2 prompts: 2 new, ")


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("text", ['{"prompt": 1}\n{', "", "[1]", None])
def test_a_file_without_prompts_is_told_so(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "sums.jsonl"
    if text is not None:
        file.write_text(text)

    result = CliRunner().invoke(app, ["prompts", "add", str(file)])

    assert result.exit_code == 1
    assert "sums.jsonl" in result.output.replace("\n", "")


def test_a_policy_is_made_tried_changed_and_deleted(api: Api) -> None:
    made = run(
        *("policies", "create", "maths", "--method", "ttrl", "--tag", "maths"),
        *("--count", "4", "--schedule", "0 3 * * *", "--seconds", "600"),
    )
    policy_id = first_id(made, "pol")
    assert "ttrl, learns prompts of maths; from 4 new or at 0 3 * * *" in made
    assert "at most 600 seconds a run" in made
    dry = run("policies", "dry-run", policy_id)
    assert "Not due: Nothing is new since its last run." in dry
    assert "no update" in dry
    prompts = [{"prompt": f"What is {n} + 1?", "tag": "maths"} for n in range(40)]
    api.client.post("/api/v1/prompts", json={"prompts": prompts})

    dry = run("policies", "dry-run", policy_id)
    assert "at least 4" in dry
    assert "ttrl  It was named." in dry
    changed = run("policies", "update", policy_id, "--idle-hours", "2", "--disable")
    assert "from 4 new or at 0 3 * * *, idle for 2 hours" in changed
    assert "off" in changed
    listed = run("policies", "list")
    assert "documents" in listed
    assert policy_id in listed
    run("policies", "delete", policy_id)
    assert policy_id not in run("policies", "list")


def test_a_run_by_hand_can_differ_from_the_settings(api: Api) -> None:
    api.client.post("/api/v1/documents", json={"text": "The weir at Kell was built in 1904. " * 9})

    started = run(
        "learn",
        "--set",
        "strength=0.7",
        "--set",
        "training.precision=float32",
        "--set",
        "training.epochs=2",
    )

    with api.database.unit_of_work() as session:
        config = runs.get_run(session, first_id(started, "run")).config
    assert config["strength"] == 0.7
    assert (config["training"]["precision"], config["training"]["epochs"]) == ("float32", 2)


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        (["strength"], "NAME=VALUE"),
        (["=1"], "NAME=VALUE"),
        (["training.=1"], "NAME=VALUE"),
        (["strength=0.7", "strength=0.8"], "twice"),
        (["training=1", "training.epochs=1"], "training"),
        (["strength=2"], "strength"),
        (["no_such_thing=2"], "no_such_thing"),
    ],
    ids=str,
)
def test_a_run_with_settings_that_cannot_be_is_refused(changes: list[str], remedy: str) -> None:
    words = [word for change in changes for word in ("--set", change)]

    result = CliRunner().invoke(app, ["learn", *words])

    assert result.exit_code == 1
    assert remedy in result.output.replace("\n", "")


def test_learning_from_prompts_by_hand(api: Api) -> None:
    prompts = [{"prompt": f"What is {n} + 1?", "tag": "maths"} for n in range(40)]
    api.client.post("/api/v1/prompts", json={"prompts": prompts})

    started = run("learn", "--method", "ttrl", "--tag", "maths")

    assert "ttrl  queued" in started
    run_id = first_id(started, "run")
    shown = run("runs", run_id)
    assert "ttrl: It was named." in shown
    assert api.client.get(f"/api/v1/runs/{run_id}").json()["material"]["tag"] == "maths"
