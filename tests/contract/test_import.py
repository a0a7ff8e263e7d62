"""Foreign adapters: a good one becomes an unproven version, a broken one is refused with its cause."""

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import httpx2
import pytest

from server.core.clock import utc_now
from server.core.settings import Settings, SwapSettings
from server.db import Base
from server.db.session import Database
from server.services import registry
from tests.support.adapter_files import (
    CONFIG,
    LAYERS,
    RANK,
    Tensors,
    floats,
    half,
    lora,
    safetensors,
    write_base,
)
from tests.support.api import Api, running_api

PATH = "/api/v1/adapters/smollm2/versions"
LAYER = "model.layers.0.self_attn.q_proj"
A, B = half(LAYER, "A"), half(LAYER, "B")
INPUTS, OUTPUTS = LAYERS[LAYER]

Part: TypeAlias = tuple[str, tuple[str, bytes]]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One server for all of the broken ones: none of them leaves anything behind."""
    yield from _server(tmp_path_factory.mktemp("imports"))


@pytest.fixture
def fresh_api(tmp_path: Path) -> Iterator[Api]:
    yield from _server(tmp_path)


def _server(folder: Path) -> Iterator[Api]:
    write_base(folder / "base")
    settings = Settings(
        _env_file=None,
        home=folder / "home",
        swap=SwapSettings(refresh_s=0.05, import_max_bytes=100_000),
    )
    database = Database(f"sqlite:///{folder / 'test.db'}")
    Base.metadata.create_all(database.engine)
    with running_api(folder, settings, database) as running:
        yield running
    database.close_sync()


def parts(config: Any = CONFIG, tensors: Tensors | bytes | None = None) -> list[Part]:
    """The form's files, from what is wrong with them."""
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    tensors = lora() if tensors is None else tensors
    weights = tensors if isinstance(tensors, bytes) else safetensors(tensors)
    return [
        ("config", ("adapter_config.json", text)),
        ("weights", ("adapter_model.safetensors", weights)),
    ]


def renamed(field: str, name: str) -> list[Part]:
    return [(key, (name if key == field else sent, raw)) for key, (sent, raw) in parts()]


def without(*names: str) -> Tensors:
    return {name: tensor for name, tensor in lora().items() if name not in names}


def changed(**settings: Any) -> list[Part]:
    return parts(CONFIG | settings)


def raw_header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def wide_bomb() -> bytes:
    """A header longer than any adapter's, all of it blanks; the form's own limit is lower still."""
    return raw_header(b"{" + b" " * 90_000 + b"}")


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
NAN_A = ("F32", [RANK, INPUTS], floats(*[math.nan] * RANK * INPUTS))
INF_B = ("F32", [OUTPUTS, RANK], floats(math.inf, -math.inf, *[1.0] * (OUTPUTS * RANK - 2)))
ZEROS = {
    half(layer, "B"): ("F32", [outputs, RANK], floats(*[0.0] * outputs * RANK))
    for layer, (_, outputs) in LAYERS.items()
}
DOUBLE_A = ("F64", [RANK, INPUTS], b"\1" * 8 * RANK * INPUTS)
WHOLE_A = ("I32", [RANK, INPUTS], b"\1" * 4 * RANK * INPUTS)
WIDE_A = ("F32", [RANK, INPUTS + 1], floats(*[1.0] * RANK * (INPUTS + 1)))
TALL_B = ("F32", [OUTPUTS - 1, RANK], floats(*[1.0] * RANK * (OUTPUTS - 1)))
ELSEWHERE = "model.layers.7.self_attn.q_proj"

BROKEN: dict[str, tuple[list[Part], str, str]] = {
    # name: the form, the cause that is named, the remedy that is named
    "no weights": (parts()[:1], "adapter_model.safetensors is missing", "file weights"),
    "no config": (parts()[1:], "adapter_config.json is missing", "file config"),
    "a pickle by name": (
        renamed("weights", "adapter_model.bin"),
        "'adapter_model.bin'",
        "safetens",
    ),
    "a path as a name": (renamed("weights", "../../x.safetensors"), "'../../x.safe", "plain names"),
    "a file too many": (
        [*parts(), ("code", ("modeling.py", b"import os"))],
        "'modeling.py' came as 'code'",
        "nothing else",
    ),
    "a file twice": ([*parts(), parts()[0]], "came twice", "once"),
    "a pickle inside": (parts(tensors=b"PK\x03\x04" + b"x" * 64), "is a pickle", "save_pretrained"),
    "a Git LFS pointer": (
        parts(tensors=b"version https://git-lfs"),
        "git lfs pull",
        "save_pretrained",
    ),
    "an empty file": (parts(tensors=b""), "header is cut off", "save_pretrained"),
    "weights cut off": (parts(tensors=safetensors(lora())[:-4]), "the file has", "save_pretrained"),
    "bytes behind the end": (parts(tensors=safetensors(lora()) + b"\0"), "describes", "save_pretr"),
    "a deep header": (
        parts(tensors=raw_header(b"[" * 60_000)),
        "not valid JSON",
        "save_pretrained",
    ),
    "a header of blanks": (parts(tensors=wide_bomb()), "no weights", "save_pretrained"),
    "shared data": (
        parts(tensors=raw_header(b'{"a":' + ENTRY + b',"b":' + ENTRY + b"}", b"\0" * 4)),
        "overlaps",
        "save_pretrained",
    ),
    "a name twice": (
        parts(tensors=raw_header(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", b"\0" * 4)),
        "stands twice",
        "save_pretrained",
    ),
    "a config that is no JSON": (parts(b"{"), "not valid JSON", "save_pretrained"),
    "a config that is a list": (parts([CONFIG]), "not a JSON object", "save_pretrained"),
    "an endless config": (parts(b" " * 70_000), "more than 65536 bytes", "PEFT's own"),
    "a deep config": (
        parts(b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
        "not valid JSON (maximum recursion",
        "save_pretrained",
    ),
    "an unknown feature, nested": (
        parts({**CONFIG, "turbo": json.loads("[" * 300 + "1" + "]" * 300)}),
        "turbo is [[[[",
        "plain LoRA",
    ),
    "a config of endless words": (changed(bias="x" * 50_000), "bias is 'xxx", "plain LoRA"),
    "a shape of endless numbers": (
        parts(tensors=safetensors(lora() | {A: ("F32", [10**4000] * 20, b"")})),
        "has the shape [10000",
        "save_pretrained",
    ),
    "another method": (changed(peft_type="IA3"), "does not describe LoRA", "plain LoRA"),
    "DoRA": (changed(use_dora=True), "use_dora is True", "plain LoRA"),
    "a scaling that is none": (changed(use_rslora="root"), "use_rslora is 'root'", "plain LoRA"),
    "a scale for each module": (
        changed(alpha_pattern={"q_proj": 8}),
        "alpha_pattern",
        "plain LoRA",
    ),
    "whole modules": (changed(modules_to_save=["lm_head"]), "modules_to_save", "plain LoRA"),
    "a rank for each module": (changed(rank_pattern={"q_proj": 4}), "rank_pattern", "plain LoRA"),
    "a bias": (changed(bias="all"), "bias is 'all'", "plain LoRA"),
    "a changed base": (changed(init_lora_weights="pissa"), "changes the base", "conversion"),
    "too high a rank": (
        parts(CONFIG | {"r": 32}, lora(rank=32)),
        "rank is 32, the engine takes 1 to 16",
        "EVERLEARN_ENGINE__MAX_LORA_RANK",
    ),
    "no rank": (changed(r=0), "rank is 0", "MAX_LORA_RANK"),
    "a rank that is not the weights'": (changed(r=4), "the config says 4", "same training"),
    "no scale": (changed(lora_alpha=0), "lora_alpha is 0", "trained with"),
    "a module the engine lacks": (changed(target_modules=["lm_head"]), "'lm_head' is", "train on"),
    "a module without weights": (
        changed(target_modules=["q_proj", "v_proj", "o_proj"]),
        "'o_proj' has no weights",
        "save_pretrained",
    ),
    "NaN": (parts(tensors=lora() | {A: NAN_A}), f"{A} holds NaN", "learning rate"),
    "infinities": (parts(tensors=lora() | {B: INF_B}), f"{B} holds NaN", "learning rate"),
    "a B of zeros": (parts(tensors=lora() | ZEROS), "every lora_B is zero", "train it"),
    "double precision": (parts(tensors=lora() | {A: DOUBLE_A}), "has type F64", "float32"),
    "whole numbers": (parts(tensors=lora() | {A: WHOLE_A}), "has type I32", "float32"),
    "A without B": (parts(tensors=without(B)), "lacks lora_B", "save_pretrained"),
    "B without A": (parts(tensors=without(A)), "lacks lora_A", "save_pretrained"),
    "a layer left out": (parts(tensors=without(A, B)), f"layer {LAYER!r}", "every layer"),
    "a layer the base lacks": (
        parts(tensors=lora(LAYERS | {ELSEWHERE: (INPUTS, OUTPUTS)})),
        f"no layer {ELSEWHERE!r}",
        "another base model",
    ),
    "an input too wide": (parts(tensors=lora() | {A: WIDE_A}), "has 4 features", "another base"),
    "an output too narrow": (parts(tensors=lora() | {B: TALL_B}), "has 6 features", "another base"),
    "a whole matrix": (
        parts(tensors=lora() | {"base_model.model.lm_head.weight": ("F32", [1, 1], floats(1))}),
        "'base_model.model.lm_head.weight' is not LoRA",
        "plain LoRA",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_adapter_is_refused_and_nobody_sees_it(api: Api, kind: str) -> None:
    form, cause, remedy = BROKEN[kind]
    asked = len(api.engine.bodies)

    answer = api.client.post(PATH, files=form)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "artifact_invalid"), error
    reason, _, helps = error["message"].partition(" What helps: ")
    assert cause in reason
    assert len(error["message"]) < 1000
    assert remedy in helps
    assert (api.engine.loads, len(api.engine.bodies)) == ([], asked)
    assert api.client.get("/api/v1/adapters/smollm2").json()["versions"] == []
    assert files_below(api.settings.home_path, "adapters", "imports") == []


def test_the_refusals_are_told_apart() -> None:
    causes = [(cause, remedy) for _, cause, remedy in BROKEN.values()]

    assert len(BROKEN) >= 20
    assert len({cause for cause, _ in causes}) >= len(BROKEN) - 3


def test_a_good_one_becomes_an_unproven_version(fresh_api: Api) -> None:
    answer = fresh_api.client.post(
        PATH, files=parts(), data={"source": "ada/lora", "reason": "try"}
    )

    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert (version["name"], version["status"], version["origin"]) == (
        "smollm2@v1",
        "unproven",
        "import",
    )
    assert (version["run_id"], version["documents"], version["exam"]) == (None, [], None)
    assert [step["name"] for step in version["lineage"]] == ["smollm2@v1", "smollm2@base"]
    manifest = version["manifest"]
    assert (manifest["source"], manifest["run_id"], manifest["version"]) == ("ada/lora", None, 1)
    assert manifest["tokenizer_hash"]
    assert manifest["template_hash"]
    folder = fresh_api.settings.artifacts_path / "smollm2" / "v0001"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    assert (folder / "adapter_model.safetensors").read_bytes() == safetensors(lora())
    assert [path.name for path in folder.parent.iterdir()] == ["v0001"]
    event = fresh_api.client.get("/api/v1/audit").json()["data"][0]
    assert (event["action"], event["target"]) == ("version.import", "smollm2@v1")
    assert event["detail"]["reason"] == "try"


def test_it_serves_nobody_until_it_is_tried(fresh_api: Api) -> None:
    assert fresh_api.client.post(PATH, files=parts()).status_code == 201
    body = {"model": "smollm2@v1", "messages": [{"role": "user", "content": "Hi"}]}

    answer = fresh_api.client.post("/v1/chat/completions", json=body)
    moved = fresh_api.client.post("/api/v1/adapters/smollm2/promote", json={"version": "v1"})

    assert (answer.status_code, moved.status_code) == (409, 409)
    assert "imported" in answer.json()["error"]["message"]
    assert fresh_api.engine.loads == []


def test_what_peft_and_others_write_is_brought_into_our_form(fresh_api: Api) -> None:
    foreign = CONFIG | {
        "target_modules": ["v_proj", "q_proj"],
        "init_lora_weights": "gaussian",
        "unsloth_fixed": True,
        "auto_mapping": {"base_model_class": "LlamaForCausalLM"},
        "base_model_name_or_path": "/home/ada/model",
        "use_rslora": True,
    }
    for config in (foreign, foreign | {"target_modules": "all-linear"}):
        answer = fresh_api.client.post(PATH, files=parts(config))
        assert answer.status_code == 201, answer.text

    for number in (1, 2):
        folder = fresh_api.settings.artifacts_path / "smollm2" / f"v000{number}"
        written = json.loads((folder / "adapter_config.json").read_text())
        assert written["target_modules"] == ["q_proj", "v_proj"]
        assert "base_model_name_or_path" not in written
        assert written["use_rslora"] is True  # it says how to scale, and the engine can
        assert json.loads((folder / "manifest.json").read_text())["version"] == number


def test_one_that_is_too_long_is_refused_by_its_setting(fresh_api: Api) -> None:
    answer = fresh_api.client.post(PATH, files=parts(tensors=b"\0" * 300_000))

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (413, "payload_too_large")
    assert "EVERLEARN_SWAP__IMPORT_MAX_BYTES" in error["message"]
    assert files_below(fresh_api.settings.home_path, "adapters", "imports") == []


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        (lambda client: client.post(PATH, json={}), 400, "invalid_request"),
        (lambda client: client.post(PATH, files=parts(), data={"x": "y"}), 400, "unknown_field"),
        (
            lambda client: client.post(PATH, files=parts(), data={"reason": "x" * 2001}),
            400,
            "invalid_request",
        ),
        (
            lambda client: client.post(PATH.replace("smollm2", "no"), files=parts()),
            404,
            "not_found",
        ),
    ],
    ids=["JSON", "an unknown field", "a long reason", "an unknown line"],
)
def test_a_form_that_is_none_is_refused(
    api: Api, send: Callable[[httpx2.Client], httpx2.Response], status: int, code: str
) -> None:
    answer = send(api.client)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_files_changed_after_they_were_registered_are_not_exported(fresh_api: Api) -> None:
    fresh_api.client.post(PATH, files=parts())
    weights = fresh_api.settings.artifacts_path / "smollm2" / "v0001" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")

    answer = fresh_api.client.get(f"{PATH}/v1/export")

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "files_gone")


def test_a_tenant_imports_into_its_own_line_only(fresh_api: Api) -> None:
    own = {"name": "berlin", "owner": "berlin"}
    assert fresh_api.client.post("/api/v1/adapters", json=own).status_code == 201
    tenant = fresh_api.key("admin", owner="berlin")

    mine = fresh_api.client.post(PATH.replace("smollm2", "berlin"), files=parts(), headers=tenant)
    everybodys = fresh_api.client.post(PATH, files=parts(), headers=tenant)

    assert (mine.status_code, everybodys.status_code) == (201, 403)


def test_of_everybodys_line_a_tenant_sees_a_version_without_its_material(fresh_api: Api) -> None:
    fresh_api.client.post(PATH, files=parts(), data={"source": "secret"})
    tenant = fresh_api.key("read", owner="berlin")

    seen = fresh_api.client.get(f"{PATH}/v1", headers=tenant).json()

    assert (seen["name"], seen["manifest"], seen["documents"]) == ("smollm2@v1", None, [])
    assert "secret" not in json.dumps(seen)


def files_below(home: Path, *folders: str) -> list[str]:
    return [str(path) for name in folders for path in (home / name).rglob("*")]


def test_imports_at_the_same_moment_get_numbers_of_their_own(fresh_api: Api) -> None:
    with ThreadPoolExecutor(4) as senders:
        sent = [senders.submit(fresh_api.client.post, PATH, files=parts()) for _ in range(4)]
        names = sorted(answer.result().json()["name"] for answer in sent)

    assert names == [f"smollm2@v{number}" for number in range(1, 5)]
    line = fresh_api.settings.artifacts_path / "smollm2"
    assert sorted(path.name for path in line.iterdir()) == ["v0001", "v0002", "v0003", "v0004"]
    for number, folder in enumerate(sorted(line.iterdir()), start=1):
        assert json.loads((folder / "manifest.json").read_text())["version"] == number


def test_what_was_removed_on_purpose_says_so(fresh_api: Api) -> None:
    fresh_api.client.post(PATH, files=parts())
    with fresh_api.database.unit_of_work() as session:
        line = registry.get_adapter(session, "smollm2")
        version = registry.versions_of(session, line)[0]
        version.files_removed_at, version.retire_reason = utc_now(), "it saw what was deleted"

    answer = fresh_api.client.get(f"{PATH}/v1/export")

    assert answer.status_code == 409
    assert "it saw what was deleted" in answer.json()["error"]["message"]
