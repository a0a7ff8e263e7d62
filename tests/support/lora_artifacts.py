"""Versions with real files and no training: random PEFT LoRA for the tiny model.

vLLM loads them, and each answers in its own way. What they say is nonsense.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sqlalchemy.orm import Session

from adapters.artifact import (
    DocumentRef,
    ManifestFields,
    digest,
    verify_artifact,
    write_artifact,
)
from adapters.spec import LINEAR_MODULES
from server.core.clock import utc_now
from server.db import AdaptationRun, Adapter, AdapterVersion, Document, RunDocument, VersionStatus
from server.services import registry

RANK = 8
LAYERS, HIDDEN = 4, 128
"""Of the tiny model; its queries and values are as wide as its hidden state."""
MODULES = ("q_proj", "v_proj")
SCALE = 0.3
"""Standard deviation of the random values: enough that every version says something else."""


def write_random_lora(folder: Path, seed: int) -> Path:
    """What training leaves: ``adapter_config.json`` and ``adapter_model.safetensors``, nothing else.

    The same seed gives the same bytes.
    """
    random = np.random.default_rng(seed)
    shapes = {"lora_A": (RANK, HIDDEN), "lora_B": (HIDDEN, RANK)}
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.{part}.weight": (
            random.normal(0, SCALE, shape).astype(np.float32)
        )
        for layer in range(LAYERS)
        for module in MODULES
        for part, shape in shapes.items()
    }
    config = {
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": sorted(MODULES),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
    }
    folder.mkdir(parents=True)
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    return folder


def add_random_version(
    session: Session,
    adapter: Adapter,
    artifacts: Path,
    *,
    seed: int,
    status: VersionStatus = VersionStatus.SERVABLE,
    documents: Sequence[Document] = (),
) -> AdapterVersion:
    """The line's next version, written, verified and registered as a run would, in ``status``.

    Args:
        artifacts: the settings' ``artifacts_path``.
        documents: what its run is said to have learnt.
    """
    number = registry.next_number(session, adapter)
    run = AdaptationRun(
        id=f"run_of_{adapter.name}_v{number}",
        adapter_id=adapter.id,
        status="succeeded",
        method="seal",
        config={},
        requested_by="test",
    )
    session.add(run)
    session.flush()
    for document in documents:
        session.add(RunDocument(run_id=run.id, document_id=document.id))
    fields = ManifestFields(
        adapter=adapter.name,
        version=number,
        base_model=adapter.base_model,
        base_hash=adapter.base_hash,
        run_id=run.id,
        method="seal",
        config={},
        documents=tuple(DocumentRef(id=one.id, sha256=one.content_hash) for one in documents),
        seed=seed,
        created_at=utc_now(),
        libraries={},
    )
    folder = artifacts / adapter.name / f"v{number:04d}"
    with tempfile.TemporaryDirectory() as scratch:
        write_artifact(write_random_lora(Path(scratch) / "trained", seed), folder, fields)
    manifest = verify_artifact(
        folder, base_hash=adapter.base_hash, max_rank=RANK, allowed_modules=LINEAR_MODULES
    )
    version = registry.register_version(
        session,
        adapter,
        number=number,
        run_id=run.id,
        path=folder,
        digest=digest(folder),
        manifest=manifest.model_dump(mode="json"),
    )
    registry.set_status(session, version, status)
    return version
