"""The planes stay apart: what may import what, and how light the service stays."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "vllm", "numpy", "safetensors")


def loaded_modules(imports: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after an import."""
    script = f"import {imports}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("entry", ["server.app", "server.cli.main", "server.embedded.up"])
def test_the_service_loads_no_ml_framework(entry: str) -> None:
    assert loaded_modules(entry).isdisjoint(HEAVY)


def test_the_check_above_can_fail() -> None:
    assert "torch" in loaded_modules("adapters.training.model")


def test_the_library_loads_no_database_and_no_queue() -> None:
    imported = loaded_modules("adapters.methods, adapters.evaluation.gate, adapters.artifact")

    assert imported.isdisjoint({"sqlalchemy", "fastapi", "celery", "redis", "server", "workers"})


def test_import_contracts_hold() -> None:
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout[-3000:]
