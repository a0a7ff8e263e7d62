"""What a user can meet is documented: routes, error codes, commands, document and run states."""

import re
from pathlib import Path

import pytest
import typer

from server.app import create_app
from server.cli.main import app as command_line
from server.core import errors
from server.core.metrics import Metrics
from server.core.settings import EngineSettings, Settings
from server.db import (
    Arm,
    DeletionState,
    DocumentState,
    RunStatus,
    TaskState,
    TrialMode,
    TrialState,
    VersionStatus,
)
from tests.conftest import RecordingQueue

DOCS = Path(__file__).parents[2] / "docs"
API = (DOCS / "api.md").read_text()
EVERYTHING = "\n".join(
    path.read_text() for path in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
)


def error_classes(root: type[errors.AppError]) -> set[type[errors.AppError]]:
    below = {found for child in root.__subclasses__() for found in error_classes(child)}
    return {root, *below}


def test_every_route_is_documented(settings: Settings) -> None:
    settings = settings.model_copy(update={"engine": EngineSettings(url="http://127.0.0.1:9")})
    schema = create_app(settings, queue=RecordingQueue()).openapi()

    missing = [
        f"{method.upper()} {path}"
        for path, methods in schema["paths"].items()
        for method in methods
        if f"`{method.upper()} {path}`" not in API
    ]

    assert missing == []


def test_every_error_code_is_documented_with_its_status() -> None:
    documented = dict(re.findall(r"\| `(\w+)` \| (\d{3}) \|", API))
    raised = {
        found.code: str(found.status)
        for found in error_classes(errors.AppError) - {errors.AppError}
    }

    assert documented == raised


def test_the_error_tree_in_the_docstring_names_every_class() -> None:
    drawn = errors.__doc__ or ""

    missing = [
        found.__name__ for found in error_classes(errors.AppError) if found.__name__ not in drawn
    ]

    assert missing == []


STATES = (
    DocumentState,
    TaskState,
    RunStatus,
    VersionStatus,
    DeletionState,
    TrialState,
    TrialMode,
    Arm,
)


@pytest.mark.parametrize("state", sorted({str(one) for states in STATES for one in states}))
def test_every_state_is_documented(state: str) -> None:
    assert f"`{state}`" in API


def test_every_command_is_documented() -> None:
    commands = set(typer.main.get_command(command_line).commands)  # type: ignore[attr-defined]

    missing = [name for name in sorted(commands) if f"everlearn {name}" not in EVERYTHING]

    assert missing == []


def test_every_metric_is_documented() -> None:
    documented = re.findall(r"^\| `(everlearn_\w+)` \|", (DOCS / "operations.md").read_text(), re.M)

    assert sorted(documented) == Metrics().names()


def test_links_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]

    assert broken == []


def test_every_test_that_the_traps_name_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", (DOCS / "traps.md").read_text()))
    tests = DOCS.parent / "tests"

    missing = [
        f"{path}::{test}"
        for path, test in sorted(named)
        if not re.search(rf"^(?:async )?def {test}\(", (tests / path).read_text(), re.MULTILINE)
    ]

    assert len(named) > 50
    assert missing == []


def test_every_trap_has_a_test_or_says_that_it_has_none_yet() -> None:
    rows = [row for row in (DOCS / "traps.md").read_text().splitlines() if row.startswith("| ")]

    bare = [row for row in rows if "::test_" not in row and "*to come*" not in row]

    assert bare == [row for row in rows if row.endswith("| Shown by |")]
