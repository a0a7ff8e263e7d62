"""Commands: servers that are away or fail, wrong settings, the doctor."""

import json

import pytest

from tests.support.scripted_server import run


def test_error_of_the_server_is_one_line_with_its_words(server):
    envelope = {"error": {"message": "smollm2 has no v9 (latest is v1).", "code": "not_found"}}
    server.answers["POST /api/v1/adapters/smollm2/promote"] = (404, envelope)

    result = run("promote", "smollm2", "--to", "v9")

    assert result.exit_code == 1
    assert result.stderr == "smollm2 has no v9 (latest is v1).\n"


def test_missing_key_says_how_to_get_one(server):
    envelope = {"error": {"message": "No key.", "code": "invalid_api_key"}}
    server.answers["GET /api/v1/runs?limit=20"] = (401, envelope)

    result = run("runs")

    assert result.exit_code == 1
    assert "everlearn key create NAME --local" in result.stderr


@pytest.mark.parametrize(
    "end", ["", f"data: {json.dumps({'error': {'message': 'no memory'}})}\n\n"]
)
def test_a_reply_that_breaks_off_is_a_failure(server, end):
    piece = {"choices": [{"index": 0, "delta": {"content": "The Pale"}}]}
    server.answers["POST /v1/chat/completions"] = (200, f"data: {json.dumps(piece)}\n\n{end}")

    result = run("chat", "Which ferry?")

    assert result.exit_code == 1
    assert "The Pale" in result.stdout
    assert "The reply broke off" in result.stderr
    assert ("no memory" in result.stderr) is bool(end)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("EVERLEARN_GATEWAY__PORT", "EVERLEARN_GATEWAY__PORT does not fit"),
        ("EVERLEARN_GATEWAY__PROT", "EVERLEARN_GATEWAY__PROT does not fit"),
        ("EVERLEARN_ENGINE__EXTRA_ARGS", '"engine"'),
        ("EVERLEARN_ENGINE", '"engine"'),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_and_not_shown(server, monkeypatch, name, named):
    monkeypatch.setenv(name, "my-secret")

    result = run("doctor")

    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert named in result.stderr
    assert "my-secret" not in result.output


def test_no_server_says_how_to_start_one(server, monkeypatch):
    monkeypatch.setenv("EVERLEARN_URL", "http://127.0.0.1:9")

    result = run("runs")

    assert result.exit_code == 1
    assert "everlearn up" in result.stderr


def test_status_and_down_without_a_server(server):
    assert run("status").exit_code == 1
    assert run("down").exit_code == 0


def test_doctor_names_each_problem_with_its_remedy(server, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    monkeypatch.setenv("EVERLEARN_MODEL__SOURCE", str(tmp_path / "model"))
    monkeypatch.setenv("EVERLEARN_GATEWAY__PORT", str(server.server_address[1]))
    monkeypatch.setenv("EVERLEARN_ENGINE__URL", "http://127.0.0.1:9")

    result = run("doctor")

    assert result.exit_code == 1
    assert "a tokenizer, weights" in result.stdout
    assert "is in use" in result.stdout
    assert "It does not answer" in result.stdout
    assert not (tmp_path / "home").exists()


def test_doctor_is_content_with_a_fit_machine(server, monkeypatch):
    monkeypatch.setenv("EVERLEARN_GATEWAY__PORT", "0")

    result = run("doctor")

    assert result.exit_code == 0, result.output
    assert "Nothing is missing" in result.stdout
