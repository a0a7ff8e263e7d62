"""Versions without training: random low-rank changes, strong enough that each says other things."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from sqlalchemy.orm import Session

from adapters.artifact import ManifestFields, digest, write_artifact
from server.core.clock import new_id
from server.core.settings import Settings
from server.db import AdaptationRun, Adapter, RunStatus, VersionStatus
from server.services import promotion, registry

RANK = 8
STRENGTH = 0.5
"""Standard deviation of lora_B. The tiny model's replies are others from about 0.1 on."""

MODULES = ("q_proj", "v_proj")


def write_lora(folder: Path, model: Path, seed: int) -> Path:
    """PEFT's two files, of random values, for the query and value layers of a Llama.

    Args:
        model: folder of the base model, for its shapes.
    """
    shape = json.loads((model / "config.json").read_text())
    hidden, head = shape["hidden_size"], shape["head_dim"]
    rows = {
        "q_proj": head * shape["num_attention_heads"],
        "v_proj": head * shape["num_key_value_heads"],
    }
    random = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for layer in range(shape["num_hidden_layers"]):
        for module in MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            first = random.normal(0, hidden**-0.5, (RANK, hidden))
            second = random.normal(0, STRENGTH, (rows[module], RANK))
            tensors[f"{name}.lora_A.weight"] = first.astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = second.astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": sorted(MODULES),
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def register(session: Session, settings: Settings, adapter: Adapter, trained: Path) -> str:
    """An artifact of the trained files and its servable version; the engine's name for it."""
    number = registry.next_number(session, adapter)
    run = AdaptationRun(
        id=new_id("run"),
        adapter_id=adapter.id,
        status=RunStatus.SUCCEEDED,
        method="random",
        config={},
        requested_by="benchmark",
    )
    session.add(run)
    session.flush()
    path = settings.artifacts_path / adapter.name / f"v{number:04d}"
    fields = ManifestFields(
        adapter=adapter.name,
        version=number,
        base_model=adapter.base_model,
        base_hash=adapter.base_hash,
        run_id=run.id,
        method=run.method,
        config={},
        documents=(),
        seed=number,
        created_at=datetime.now(UTC),
        libraries={},
    )
    manifest = write_artifact(trained, path, fields)
    version = registry.register_version(
        session,
        adapter,
        number=number,
        run_id=run.id,
        path=path,
        digest=digest(path),
        manifest=manifest.model_dump(mode="json"),
    )
    registry.set_status(session, version, VersionStatus.SERVABLE)
    return registry.engine_name(adapter.name, version)


def serve(session: Session, adapter: Adapter, number: int) -> None:
    """Make a version champion, before anything is started."""
    move = promotion.plan_promotion(session, adapter, number)
    promotion.apply_move(session, adapter, move, actor="benchmark", reason="")
