"""Trials, replicas, gateways, deletions; forced moves, retired versions, rebuilds, shadow copies.

Only additions: the new columns have defaults or may be null, so rows of before stay valid.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "deletions",
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("target", sa.String(length=100), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=True),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("version_ids", sa.JSON(), nullable=False),
        sa.Column("run_ids", sa.JSON(), nullable=False),
        sa.Column("is_rebuild", sa.Boolean(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deletions")),
    )
    with op.batch_alter_table("deletions", schema=None) as batch_op:
        batch_op.create_index(
            "ix_deletions_owner_created_at", ["owner", "created_at", "id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_deletions_state"), ["state"], unique=False)

    op.create_table(
        "gateways",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("in_flight", sa.JSON(), nullable=False),
        sa.Column("replicas", sa.JSON(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateways")),
    )
    with op.batch_alter_table("gateways", schema=None) as batch_op:
        batch_op.create_index("ix_gateways_seen_at", ["seen_at"], unique=False)

    op.create_table(
        "replicas",
        sa.Column("url", sa.String(length=500), nullable=False),
        sa.Column("origin", sa.String(length=20), nullable=False),
        sa.Column("is_draining", sa.Boolean(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replicas")),
        sa.UniqueConstraint("url", name=op.f("uq_replicas_url")),
    )
    op.create_table(
        "run_interactions",
        sa.Column("run_id", sa.String(length=48), nullable=False),
        sa.Column("interaction_id", sa.String(length=48), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["adaptation_runs.id"],
            name=op.f("fk_run_interactions_run_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "interaction_id", name=op.f("pk_run_interactions")),
    )
    with op.batch_alter_table("run_interactions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_run_interactions_interaction_id"), ["interaction_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_run_interactions_owner"), ["owner"], unique=False)

    op.create_table(
        "trials",
        sa.Column("adapter_id", sa.String(length=48), nullable=False),
        sa.Column("version_id", sa.String(length=48), nullable=False),
        sa.Column("champion_version_id", sa.String(length=48), nullable=True),
        sa.Column("mode", sa.String(length=20), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("salt", sa.String(length=48), nullable=False),
        sa.Column("started_by", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("judged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_by", sa.String(length=200), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_trials_adapter_id")),
        sa.ForeignKeyConstraint(
            ["champion_version_id"],
            ["adapter_versions.id"],
            name=op.f("fk_trials_champion_version_id"),
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name=op.f("fk_trials_version_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trials")),
    )
    with op.batch_alter_table("trials", schema=None) as batch_op:
        batch_op.create_index(
            "ix_trials_adapter_id_created_at", ["adapter_id", "created_at"], unique=False
        )
        batch_op.create_index(
            "ix_trials_open",
            ["adapter_id"],
            unique=True,
            sqlite_where=sa.text("state IN ('running', 'waiting')"),
            postgresql_where=sa.text("state IN ('running', 'waiting')"),
        )

    with op.batch_alter_table("adaptation_runs", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("kind", sa.String(length=20), nullable=False, server_default="learn")
        )
        batch_op.add_column(sa.Column("rebuilds", sa.String(length=48), nullable=True))

    with op.batch_alter_table("adapter_versions", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("origin", sa.String(length=20), nullable=False, server_default="run")
        )
        batch_op.add_column(sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("retire_reason", sa.Text(), nullable=True))
        batch_op.add_column(
            sa.Column("files_removed_at", sa.DateTime(timezone=True), nullable=True)
        )

    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.add_column(sa.Column("rollout", sa.JSON(), nullable=True))

    with op.batch_alter_table("alias_events", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("is_forced", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch_op.add_column(sa.Column("revision", sa.Integer(), nullable=False, server_default="0"))

    with op.batch_alter_table("interactions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("arm", sa.String(length=20), nullable=True))
        batch_op.add_column(sa.Column("shadow_of", sa.String(length=48), nullable=True))
        batch_op.create_index(
            "ix_interactions_shadow_of_created_at",
            ["shadow_of", "created_at", "id"],
            unique=False,
            sqlite_where=sa.text("shadow_of IS NOT NULL"),
            postgresql_where=sa.text("shadow_of IS NOT NULL"),
        )


def downgrade() -> None:
    with op.batch_alter_table("interactions", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_interactions_shadow_of_created_at",
            sqlite_where=sa.text("shadow_of IS NOT NULL"),
            postgresql_where=sa.text("shadow_of IS NOT NULL"),
        )
        batch_op.drop_column("shadow_of")
        batch_op.drop_column("arm")

    with op.batch_alter_table("alias_events", schema=None) as batch_op:
        batch_op.drop_column("revision")
        batch_op.drop_column("is_forced")

    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.drop_column("rollout")

    with op.batch_alter_table("adapter_versions", schema=None) as batch_op:
        batch_op.drop_column("files_removed_at")
        batch_op.drop_column("retire_reason")
        batch_op.drop_column("retired_at")
        batch_op.drop_column("origin")

    with op.batch_alter_table("adaptation_runs", schema=None) as batch_op:
        batch_op.drop_column("rebuilds")
        batch_op.drop_column("kind")

    with op.batch_alter_table("trials", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_trials_open",
            sqlite_where=sa.text("state IN ('running', 'waiting')"),
            postgresql_where=sa.text("state IN ('running', 'waiting')"),
        )
        batch_op.drop_index("ix_trials_adapter_id_created_at")

    op.drop_table("trials")
    with op.batch_alter_table("run_interactions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_run_interactions_owner"))
        batch_op.drop_index(batch_op.f("ix_run_interactions_interaction_id"))

    op.drop_table("run_interactions")
    op.drop_table("replicas")
    with op.batch_alter_table("gateways", schema=None) as batch_op:
        batch_op.drop_index("ix_gateways_seen_at")

    op.drop_table("gateways")
    with op.batch_alter_table("deletions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_deletions_state"))
        batch_op.drop_index("ix_deletions_owner_created_at")

    op.drop_table("deletions")
