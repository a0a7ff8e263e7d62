"""Settings and their printed form agree."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.core.settings import Settings
from server.core.settings_doc import render_env_example

ROOT = Path(__file__).parents[3]


def test_env_example_lists_every_setting():
    assert (ROOT / ".env.example").read_text() == render_env_example(), "run `make env-example`"


def test_uncommented_example_gives_the_defaults(tmp_path, monkeypatch):
    for name in re.findall(r"^#(EVERLEARN_\w+)=", render_env_example(), re.MULTILINE):
        monkeypatch.delenv(name, raising=False)
    # A setting that is not set by default has nothing after its `=`, and stays commented.
    lines = re.sub(r"^#(EVERLEARN_\w+=.+)$", r"\1", render_env_example(), flags=re.MULTILINE)
    file = tmp_path / ".env"
    file.write_text(lines)

    assert Settings(_env_file=file) == Settings(_env_file=None)


def test_every_setting_is_described():
    described = re.findall(r"^# ?(.*)\n#EVERLEARN_\w+=", render_env_example(), re.MULTILINE)

    assert described
    assert all(described)


def test_nested_setting_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("EVERLEARN_GATEWAY__PORT", "9000")

    assert Settings(_env_file=None).gateway.port == 9000


@pytest.mark.parametrize("name", ["EVERLEARN_ENGINE__MAX_MODEL_LEN", "EVERLEARN_DATABASE_URL"])
def test_empty_means_not_set(monkeypatch, name):
    monkeypatch.setenv(name, "")

    settings = Settings(_env_file=None)

    assert settings.database_url is None
    assert settings.engine.max_model_len is None


def test_secrets_are_not_printed(monkeypatch):
    monkeypatch.setenv("EVERLEARN_ADMIN_KEY", "a-secret-of-an-operator")
    monkeypatch.setenv("EVERLEARN_ENGINE__API_KEY", "a-secret-of-an-operator")

    assert "a-secret" not in repr(Settings(_env_file=None))


def test_wrong_value_is_not_repeated(monkeypatch):
    monkeypatch.setenv("EVERLEARN_GATEWAY__PORT", "a-secret-in-the-wrong-place")

    with pytest.raises(ValidationError) as caught:
        Settings(_env_file=None)

    assert "a-secret" not in str(caught.value)


def test_unknown_name_in_a_group_is_refused(monkeypatch):
    monkeypatch.setenv("EVERLEARN_GATEWAY__PROT", "9000")

    with pytest.raises(ValidationError, match=r"gateway\.prot"):
        Settings(_env_file=None)
