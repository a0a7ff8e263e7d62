"""From the command line to a running server and back: import, lineage, export, merged model."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from adapters.artifact import Manifest, ManifestFields, config_hash
from adapters.merge import merge
from adapters.model_folder import folder_hash, tokenizer_files
from adapters.spec import LoraSpec
from adapters.training.model import load_trainee, save_adapter
from server.cli.main import app
from server.core.clock import utc_now
from server.core.settings import Settings
from server.db.session import Database
from server.services import evaluations, registry, runs
from tests.support.api import ADMIN_KEY, Api, running_api
from tests.support.factories import make_document, make_version
from tests.unit.adapters.conftest import save_random_model

TOKENS = torch.tensor([[1, 40, 41, 42, 43, 44, 45]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter_folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the base model says, as PEFT saves it."""
    trainee = load_trainee(base, spec=LoraSpec(rank=4, alpha=8), seed=1)
    torch.manual_seed(2)
    for name, weights in trainee.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    folder = tmp_path_factory.mktemp("peft") / "foreign"
    save_adapter(trainee.model, folder, base_name="base")
    (folder / "README.md").write_text("An adapter.")
    return folder


@pytest.fixture
def api(
    base: Path,
    tmp_path: Path,
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Api]:
    (tmp_path / "base").symlink_to(base)
    with running_api(tmp_path, settings, database, base_hash=folder_hash(base)) as running:
        monkeypatch.setenv("EVERLEARN_URL", str(running.client.base_url))
        monkeypatch.setenv("EVERLEARN_API_KEY", ADMIN_KEY)
        monkeypatch.setenv("EVERLEARN_HOME", str(settings.home))
        monkeypatch.setenv("EVERLEARN_MODEL__SOURCE", str(base))
        yield running


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "200"}
    )


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        said: torch.Tensor = model(TOKENS).logits
    return said


def test_what_goes_in_comes_out_and_says_the_same(
    api: Api, base: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    expected = logits(base, adapter_folder)
    assert not torch.allclose(expected, logits(base), atol=1e-2)

    imported = run("adapters", "import", "smollm2", adapter_folder, "--reason", "a try")
    exported = run("adapters", "export", "smollm2", "v1", tmp_path / "out")

    assert (imported.exit_code, exported.exit_code) == (0, 0), imported.output + exported.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "exam.json",
        "manifest.json",
    ]
    assert torch.equal(logits(base, tmp_path / "out"), expected)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["source"], manifest["origin"]) == ("foreign", "import")
    assert (tmp_path / "out" / "exam.json").read_text() == "null\n"


def test_a_merged_model_says_the_same_without_an_adapter(
    api: Api, base: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    run("adapters", "import", "smollm2", adapter_folder)

    done = run("adapters", "export", "smollm2", "v1", tmp_path / "whole", "--merged")

    assert done.exit_code == 0, done.output
    torch.testing.assert_close(
        logits(tmp_path / "whole"), logits(base, adapter_folder), atol=1e-4, rtol=1e-4
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    assert tokenizer("Ada")["input_ids"] == AutoTokenizer.from_pretrained(base)("Ada")["input_ids"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".export")] == []


def test_merging_copies_the_tokenizer_and_overwrites_nothing(
    base: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    merge(base, adapter_folder, tmp_path / "whole")

    for name in tokenizer_files(base):
        assert (tmp_path / "whole" / name).read_bytes() == (base / name).read_bytes()
    with pytest.raises(FileExistsError):
        merge(base, adapter_folder, tmp_path / "whole")


def test_nothing_is_exported_over_what_is_there(api: Api, tmp_path: Path) -> None:
    done = run("adapters", "export", "smollm2", "v1", tmp_path)

    assert done.exit_code == 1
    assert "exists" in done.stderr


def test_a_merged_model_needs_the_base_model_of_the_version(
    api: Api, adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("adapters", "import", "smollm2", adapter_folder)
    other = save_random_model(tmp_path / "other")
    config = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps(config | {"temperature": 0.5}))
    monkeypatch.setenv("EVERLEARN_MODEL__SOURCE", str(other))

    done = run("adapters", "export", "smollm2", "v1", tmp_path / "whole", "--merged")

    assert done.exit_code == 1
    assert "EVERLEARN_MODEL__SOURCE" in done.stderr
    assert not (tmp_path / "whole").exists()


@pytest.mark.parametrize(
    ("name", "is_taken"),
    [("tokenizer.json", True), ("optimizer.pt", False), ("modeling.py", False)],
)
def test_files_beside_an_adapter_are_left_or_refused(
    api: Api, adapter_folder: Path, tmp_path: Path, name: str, is_taken: bool
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    for path in adapter_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_text("{}")

    done = run("adapters", "import", "smollm2", folder)

    assert (done.exit_code == 0) is is_taken
    assert is_taken or name in done.stderr


def test_the_lineage_is_drawn(api: Api, adapter_folder: Path) -> None:
    with api.database.unit_of_work() as session:
        line = registry.get_adapter(session, "smollm2")
        learnt = make_version(session, line)
        evaluations.record(
            session,
            run_id=str(learnt.run_id),
            version=learnt,
            champion=None,
            verdict="promote",
            decision={"verdict": "promote", "reasons": ["6 gained, 0 lost"]},
            results=[
                {
                    "item_id": "i1",
                    "document_id": None,
                    "kind": "cloze",
                    "prompt": "Who?",
                    "expected": ["Ada"],
                    "champion_reply": "Bob",
                    "champion_is_correct": False,
                    "challenger_reply": "Ada",
                    "challenger_is_correct": True,
                }
            ],
        )
    run("adapters", "import", "smollm2", adapter_folder, "--source", "hub/ada")

    tree = run("adapters", "show", "smollm2").stdout.splitlines()
    first, second = (
        run("adapters", "show", "smollm2", "v1"),
        run("adapters", "show", "smollm2", "2"),
    )
    raw = json.loads(run("adapters", "show", "smollm2", "v2", "--json").stdout)

    assert tree[0].startswith("smollm2@base champion")
    assert "smollm2@v1  servable, run_of_smollm2_v1, 0 documents, promote" in tree[1]
    assert "smollm2@v2  unproven, import, 0 documents, no exam" in tree[2]
    assert "6 gained, 0 lost" in first.stdout
    assert "hub/ada" in second.stdout
    assert (raw["name"], raw["manifest"]["source"]) == ("smollm2@v2", "hub/ada")


def test_a_version_that_was_trained_on_says_from_what(api: Api) -> None:
    with api.database.unit_of_work() as session:
        line = registry.get_adapter(session, "smollm2")
        make_version(session, line, parent=make_version(session, line))

    shown = run("adapters", "show", "smollm2", "v2").stdout
    tree = run("adapters", "show", "smollm2").stdout.splitlines()
    raw = json.loads(run("adapters", "show", "smollm2", "v2", "--json").stdout)
    first = run("adapters", "show", "smollm2", "v1").stdout

    assert "trained    on from smollm2@v1, generation 1" in shown
    assert "trained" not in first
    assert (raw["parent"], raw["generation"]) == ("smollm2@v1", 1)
    assert [step["name"] for step in raw["lineage"]] == ["smollm2@v2", "smollm2@v1", "smollm2@base"]
    assert tree[2].index("smollm2@v2") > tree[1].index("smollm2@v1")


def test_an_export_tells_the_exam_question_by_question(api: Api, adapter_folder: Path) -> None:
    run("adapters", "import", "smollm2", adapter_folder)
    with api.database.unit_of_work() as session:
        line = registry.get_adapter(session, "smollm2")
        version = registry.versions_of(session, line)[0]
        evaluations.record(
            session,
            run_id=str(make_version(session, line).run_id),
            version=version,
            champion=None,
            verdict="reject",
            decision={"verdict": "reject"},
            results=[],
        )

    answer = api.client.get("/api/v1/adapters/smollm2/versions/v1/export")

    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        exam = json.loads(archive.read("smollm2-v1/exam.json"))
    assert exam == {"verdict": "reject", "decision": {"verdict": "reject"}, "results": []}
    event = api.client.get("/api/v1/audit").json()["data"][0]
    assert (event["action"], event["target"]) == ("version.export", "smollm2@v1")


@pytest.mark.parametrize(("version", "status"), [("base", 404), ("v9", 404), ("v0", 400)])
@pytest.mark.parametrize("suffix", ["", "/export", "/rebuild"])
def test_what_is_no_version_is_said_to_be_none(
    api: Api, version: str, status: int, suffix: str
) -> None:
    method = "POST" if suffix == "/rebuild" else "GET"

    answer = api.client.request(method, f"/api/v1/adapters/smollm2/versions/{version}{suffix}")

    assert answer.status_code == status


def test_an_imported_version_cannot_be_rebuilt(api: Api, adapter_folder: Path) -> None:
    run("adapters", "import", "smollm2", adapter_folder)

    done = run("adapters", "rebuild", "smollm2", "v1")

    assert done.exit_code == 1
    assert "imported" in done.stderr
    assert api.client.get("/api/v1/runs").json()["data"] == []


def test_a_rebuild_is_queued_once(api: Api) -> None:
    with api.database.unit_of_work() as session:
        make_document(session)
        line = registry.get_adapter(session, "smollm2")
        version = make_version(session, line)
        fields = ManifestFields(
            adapter="smollm2",
            version=1,
            base_model="x",
            base_hash=line.base_hash,
            run_id="run_of_smollm2_v1",
            method="seal",
            config={"type": "seal"},
            documents=(),
            lesson_sha256="d" * 64,
            seed=0,
            created_at=utc_now(),
            libraries={},
        )
        manifest = Manifest(**dict(fields), config_hash=config_hash(fields.config), files={})
        version.manifest = manifest.model_dump(mode="json")
    path = "/api/v1/adapters/smollm2/versions/v1/rebuild"

    first, again = api.client.post(path), api.client.post(path)

    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    assert (first.json()["kind"], first.json()["rebuilds"]) == ("rebuild", "smollm2@v1")
    with api.database.unit_of_work() as session:
        assert runs.documents_of(session, first.json()["id"]) == []
