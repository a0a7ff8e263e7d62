"""Prompts sent for learning, policies that say what, when and how much, reasons of runs.

Only additions: the new columns have defaults or may be null, so rows of before stay valid.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "prompts",
        sa.Column("owner", sa.String(length=100), nullable=True),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("answers", sa.JSON(), nullable=False),
        sa.Column("tests", sa.Text(), nullable=True),
        sa.Column("tag", sa.String(length=100), nullable=True),
        sa.Column("split", sa.String(length=10), nullable=False),
        sa.Column("created_by", sa.String(length=48), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompts")),
    )
    with op.batch_alter_table("prompts", schema=None) as batch_op:
        batch_op.create_index(
            "ix_prompts_owner_created_at", ["owner", "created_at", "id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_prompts_tag"), ["tag"], unique=False)

    op.create_table(
        "run_prompts",
        sa.Column("run_id", sa.String(length=48), nullable=False),
        sa.Column("prompt_id", sa.String(length=48), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["adaptation_runs.id"],
            name=op.f("fk_run_prompts_run_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["prompt_id"],
            ["prompts.id"],
            name=op.f("fk_run_prompts_prompt_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "prompt_id", name=op.f("pk_run_prompts")),
    )
    with op.batch_alter_table("run_prompts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_run_prompts_prompt_id"), ["prompt_id"], unique=False)

    with op.batch_alter_table("run_interactions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("use", sa.String(length=10), nullable=True))

    with op.batch_alter_table("adaptation_runs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("material", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("reason", sa.JSON(), nullable=True))

    with op.batch_alter_table("adaptation_policies", schema=None) as batch_op:
        batch_op.add_column(sa.Column("method", sa.String(length=50), nullable=True))
        batch_op.add_column(sa.Column("material", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("conditions", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("budget", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(
            sa.Column("cooldown_hours", sa.Double(), nullable=False, server_default="0")
        )
        batch_op.add_column(sa.Column("checked_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("decision", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("changed_by", sa.String(length=200), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("adaptation_policies", schema=None) as batch_op:
        batch_op.drop_column("changed_by")
        batch_op.drop_column("decision")
        batch_op.drop_column("checked_at")
        batch_op.drop_column("cooldown_hours")
        batch_op.drop_column("budget")
        batch_op.drop_column("conditions")
        batch_op.drop_column("material")
        batch_op.drop_column("method")

    with op.batch_alter_table("adaptation_runs", schema=None) as batch_op:
        batch_op.drop_column("reason")
        batch_op.drop_column("material")

    with op.batch_alter_table("run_interactions", schema=None) as batch_op:
        batch_op.drop_column("use")

    with op.batch_alter_table("run_prompts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_run_prompts_prompt_id"))

    op.drop_table("run_prompts")
    with op.batch_alter_table("prompts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_prompts_tag"))
        batch_op.drop_index("ix_prompts_owner_created_at")

    op.drop_table("prompts")
