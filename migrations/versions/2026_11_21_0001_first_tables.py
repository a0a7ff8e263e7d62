"""The first tables: keys, documents, adapters, policies, runs, exams, interactions."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("base_model", sa.String(length=500), nullable=False),
        sa.Column("base_path", sa.Text(), nullable=False),
        sa.Column("base_hash", sa.String(length=80), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapters")),
        sa.UniqueConstraint("name", name=op.f("uq_adapters_name")),
    )
    op.create_table(
        "api_keys",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("hint", sa.String(length=16), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
    )
    op.create_table(
        "documents",
        sa.Column("content_hash", sa.String(length=80), nullable=False),
        sa.Column("title", sa.String(length=500), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("created_by", sa.String(length=48), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_documents")),
        sa.UniqueConstraint("content_hash", name=op.f("uq_documents_content_hash")),
    )
    op.create_table(
        "interactions",
        sa.Column("completion_id", sa.String(length=100), nullable=True),
        sa.Column("key_id", sa.String(length=48), nullable=False),
        sa.Column("requested_model", sa.String(length=300), nullable=False),
        sa.Column("version", sa.String(length=300), nullable=False),
        sa.Column("engine_name", sa.String(length=300), nullable=False),
        sa.Column("is_stream", sa.Boolean(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("reply", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.String(length=50), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.Column("first_byte_ms", sa.Double(), nullable=True),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_interactions")),
    )
    with op.batch_alter_table("interactions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_interactions_completion_id"), ["completion_id"], unique=False
        )
        batch_op.create_index("ix_interactions_created_at", ["created_at"], unique=False)

    op.create_table(
        "adaptation_policies",
        sa.Column("adapter_id", sa.String(length=48), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("trigger", sa.String(length=50), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_adaptation_policies_adapter_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adaptation_policies")),
        sa.UniqueConstraint(
            "adapter_id", "name", name=op.f("uq_adaptation_policies_adapter_id_name")
        ),
    )
    op.create_table(
        "chunks",
        sa.Column("document_id", sa.String(length=48), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_chunks_document_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("document_id", "position", name=op.f("pk_chunks")),
    )
    op.create_table(
        "exam_questions",
        sa.Column("item_id", sa.String(length=64), nullable=False),
        sa.Column("document_id", sa.String(length=48), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("split", sa.String(length=10), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("answers", sa.JSON(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_exam_questions_document_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exam_questions")),
        sa.UniqueConstraint(
            "document_id", "item_id", name=op.f("uq_exam_questions_document_id_item_id")
        ),
    )
    with op.batch_alter_table("exam_questions", schema=None) as batch_op:
        batch_op.create_index(
            "ix_exam_questions_document_id_split", ["document_id", "split"], unique=False
        )

    op.create_table(
        "adaptation_runs",
        sa.Column("adapter_id", sa.String(length=48), nullable=False),
        sa.Column("policy_id", sa.String(length=48), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("method", sa.String(length=50), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("requested_by", sa.String(length=200), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stage", sa.String(length=30), nullable=True),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(length=20), nullable=True),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_adaptation_runs_adapter_id")
        ),
        sa.ForeignKeyConstraint(
            ["policy_id"], ["adaptation_policies.id"], name=op.f("fk_adaptation_runs_policy_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adaptation_runs")),
    )
    with op.batch_alter_table("adaptation_runs", schema=None) as batch_op:
        batch_op.create_index(
            "ix_adaptation_runs_adapter_id_status", ["adapter_id", "status"], unique=False
        )

    op.create_table(
        "adapter_versions",
        sa.Column("adapter_id", sa.String(length=48), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=48), nullable=True),
        sa.Column("run_id", sa.String(length=48), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_adapter_versions_adapter_id")
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["adapter_versions.id"], name=op.f("fk_adapter_versions_parent_id")
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["adaptation_runs.id"], name=op.f("fk_adapter_versions_run_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_versions")),
        sa.UniqueConstraint(
            "adapter_id", "number", name=op.f("uq_adapter_versions_adapter_id_number")
        ),
        sa.UniqueConstraint("run_id", name=op.f("uq_adapter_versions_run_id")),
    )
    op.create_table(
        "run_documents",
        sa.Column("run_id", sa.String(length=48), nullable=False),
        sa.Column("document_id", sa.String(length=48), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_run_documents_document_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["adaptation_runs.id"],
            name=op.f("fk_run_documents_run_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "document_id", name=op.f("pk_run_documents")),
    )
    op.create_table(
        "run_events",
        sa.Column("run_id", sa.String(length=48), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["adaptation_runs.id"],
            name=op.f("fk_run_events_run_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_events")),
    )
    with op.batch_alter_table("run_events", schema=None) as batch_op:
        batch_op.create_index("ix_run_events_run_id", ["run_id"], unique=False)

    op.create_table(
        "alias_events",
        sa.Column("adapter_id", sa.String(length=48), nullable=False),
        sa.Column("alias", sa.String(length=50), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("from_version_id", sa.String(length=48), nullable=True),
        sa.Column("to_version_id", sa.String(length=48), nullable=True),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_alias_events_adapter_id")
        ),
        sa.ForeignKeyConstraint(
            ["from_version_id"],
            ["adapter_versions.id"],
            name=op.f("fk_alias_events_from_version_id"),
        ),
        sa.ForeignKeyConstraint(
            ["to_version_id"], ["adapter_versions.id"], name=op.f("fk_alias_events_to_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_events")),
    )
    with op.batch_alter_table("alias_events", schema=None) as batch_op:
        batch_op.create_index(
            "ix_alias_events_adapter_id_alias", ["adapter_id", "alias"], unique=False
        )

    op.create_table(
        "aliases",
        sa.Column("adapter_id", sa.String(length=48), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("version_id", sa.String(length=48), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_aliases_adapter_id")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name=op.f("fk_aliases_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_aliases")),
        sa.UniqueConstraint("adapter_id", "name", name=op.f("uq_aliases_adapter_id_name")),
    )
    op.create_table(
        "evaluations",
        sa.Column("run_id", sa.String(length=48), nullable=False),
        sa.Column("version_id", sa.String(length=48), nullable=False),
        sa.Column("champion_version_id", sa.String(length=48), nullable=True),
        sa.Column("verdict", sa.String(length=20), nullable=False),
        sa.Column("decision", sa.JSON(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["champion_version_id"],
            ["adapter_versions.id"],
            name=op.f("fk_evaluations_champion_version_id"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["adaptation_runs.id"], name=op.f("fk_evaluations_run_id")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name=op.f("fk_evaluations_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("run_id", name=op.f("uq_evaluations_run_id")),
    )
    op.create_table(
        "evaluation_results",
        sa.Column("evaluation_id", sa.String(length=48), nullable=False),
        sa.Column("item_id", sa.String(length=64), nullable=False),
        sa.Column("document_id", sa.String(length=48), nullable=True),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("expected", sa.JSON(), nullable=False),
        sa.Column("champion_reply", sa.Text(), nullable=False),
        sa.Column("champion_is_correct", sa.Boolean(), nullable=False),
        sa.Column("challenger_reply", sa.Text(), nullable=False),
        sa.Column("challenger_is_correct", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluations.id"],
            name=op.f("fk_evaluation_results_evaluation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "item_id", name=op.f("pk_evaluation_results")),
    )


def downgrade() -> None:
    op.drop_table("evaluation_results")
    op.drop_table("evaluations")
    op.drop_table("aliases")
    with op.batch_alter_table("alias_events", schema=None) as batch_op:
        batch_op.drop_index("ix_alias_events_adapter_id_alias")

    op.drop_table("alias_events")
    with op.batch_alter_table("run_events", schema=None) as batch_op:
        batch_op.drop_index("ix_run_events_run_id")

    op.drop_table("run_events")
    op.drop_table("run_documents")
    op.drop_table("adapter_versions")
    with op.batch_alter_table("adaptation_runs", schema=None) as batch_op:
        batch_op.drop_index("ix_adaptation_runs_adapter_id_status")

    op.drop_table("adaptation_runs")
    with op.batch_alter_table("exam_questions", schema=None) as batch_op:
        batch_op.drop_index("ix_exam_questions_document_id_split")

    op.drop_table("exam_questions")
    op.drop_table("chunks")
    op.drop_table("adaptation_policies")
    with op.batch_alter_table("interactions", schema=None) as batch_op:
        batch_op.drop_index("ix_interactions_created_at")
        batch_op.drop_index(batch_op.f("ix_interactions_completion_id"))

    op.drop_table("interactions")
    op.drop_table("documents")
    op.drop_table("api_keys")
    op.drop_table("adapters")
