"""Tasks, accepted self-edits, calibrations of the judge; suspicious documents, graders, editor lines.

Only additions: the new columns have defaults or may be null, so rows of before stay valid.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "judge_calibrations",
        sa.Column("judge", sa.String(length=200), nullable=False),
        sa.Column("cases", sa.Integer(), nullable=False),
        sa.Column("agreed", sa.Integer(), nullable=False),
        sa.Column("false_right", sa.Integer(), nullable=False),
        sa.Column("false_wrong", sa.Integer(), nullable=False),
        sa.Column("is_trusted", sa.Boolean(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judge_calibrations")),
    )
    with op.batch_alter_table("judge_calibrations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_judge_calibrations_judge"), ["judge"], unique=False)

    op.create_table(
        "tasks",
        sa.Column("owner", sa.String(length=100), nullable=True),
        sa.Column("title", sa.String(length=500), nullable=False),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.Column("form", sa.String(length=20), nullable=False),
        sa.Column("examples", sa.JSON(), nullable=False),
        sa.Column("tests", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("created_by", sa.String(length=48), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.create_index(
            "ix_tasks_owner_created_at", ["owner", "created_at", "id"], unique=False
        )

    op.create_table(
        "accepted_edits",
        sa.Column("adapter_id", sa.String(length=48), nullable=False),
        sa.Column("run_id", sa.String(length=48), nullable=False),
        sa.Column("document_id", sa.String(length=48), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("base_score", sa.Double(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_accepted_edits_adapter_id")
        ),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_accepted_edits_document_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accepted_edits")),
    )
    with op.batch_alter_table("accepted_edits", schema=None) as batch_op:
        batch_op.create_index(
            "ix_accepted_edits_adapter_id_created_at", ["adapter_id", "created_at"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_accepted_edits_document_id"), ["document_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_accepted_edits_run_id"), ["run_id"], unique=False)

    op.create_table(
        "document_facts",
        sa.Column("document_id", sa.String(length=48), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("subject", sa.String(length=120), nullable=False),
        sa.Column("slot", sa.String(length=60), nullable=False),
        sa.Column("frame", sa.Text(), nullable=False),
        sa.Column("value", sa.String(length=120), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("end", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_document_facts_document_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("document_id", "position", name=op.f("pk_document_facts")),
    )
    with op.batch_alter_table("document_facts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_document_facts_subject"), ["subject"], unique=False)

    op.create_table(
        "run_tasks",
        sa.Column("run_id", sa.String(length=48), nullable=False),
        sa.Column("task_id", sa.String(length=48), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["adaptation_runs.id"], name=op.f("fk_run_tasks_run_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("fk_run_tasks_task_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "task_id", name=op.f("pk_run_tasks")),
    )
    with op.batch_alter_table("run_tasks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_run_tasks_task_id"), ["task_id"], unique=False)

    with op.batch_alter_table("adapter_versions", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("generation", sa.Integer(), nullable=False, server_default="0")
        )

    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("role", sa.String(length=20), nullable=False, server_default="serve")
        )
        batch_op.add_column(sa.Column("edits_for", sa.String(length=48), nullable=True))
        batch_op.create_unique_constraint(batch_op.f("uq_adapters_edits_for"), ["edits_for"])

    with op.batch_alter_table("documents", schema=None) as batch_op:
        batch_op.add_column(sa.Column("language", sa.String(length=10), nullable=True))
        batch_op.add_column(sa.Column("findings", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("topic", sa.String(length=120), nullable=True))
        batch_op.add_column(sa.Column("released_at", sa.DateTime(timezone=True), nullable=True))

    with op.batch_alter_table("evaluation_results", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("grader", sa.String(length=20), nullable=False, server_default="match")
        )

    with op.batch_alter_table("exam_questions", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("grader", sa.String(length=20), nullable=False, server_default="match")
        )
        batch_op.add_column(sa.Column("interaction_id", sa.String(length=48), nullable=True))
        batch_op.create_index(
            batch_op.f("ix_exam_questions_interaction_id"), ["interaction_id"], unique=False
        )


def downgrade() -> None:
    with op.batch_alter_table("exam_questions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_exam_questions_interaction_id"))
        batch_op.drop_column("interaction_id")
        batch_op.drop_column("grader")

    with op.batch_alter_table("evaluation_results", schema=None) as batch_op:
        batch_op.drop_column("grader")

    with op.batch_alter_table("documents", schema=None) as batch_op:
        batch_op.drop_column("released_at")
        batch_op.drop_column("topic")
        batch_op.drop_column("findings")
        batch_op.drop_column("language")

    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_adapters_edits_for"), type_="unique")
        batch_op.drop_column("edits_for")
        batch_op.drop_column("role")

    with op.batch_alter_table("adapter_versions", schema=None) as batch_op:
        batch_op.drop_column("generation")

    with op.batch_alter_table("run_tasks", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_run_tasks_task_id"))

    op.drop_table("run_tasks")
    with op.batch_alter_table("document_facts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_document_facts_subject"))

    op.drop_table("document_facts")
    with op.batch_alter_table("accepted_edits", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_accepted_edits_run_id"))
        batch_op.drop_index(batch_op.f("ix_accepted_edits_document_id"))
        batch_op.drop_index("ix_accepted_edits_adapter_id_created_at")

    op.drop_table("accepted_edits")
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.drop_index("ix_tasks_owner_created_at")

    op.drop_table("tasks")
    with op.batch_alter_table("judge_calibrations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_judge_calibrations_judge"))

    op.drop_table("judge_calibrations")
