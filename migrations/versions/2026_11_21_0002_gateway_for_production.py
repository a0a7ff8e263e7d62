"""Owners, limits, audit, feedback, content-addressed messages, files.

Only additions: the new columns have defaults, so rows of before stay valid. Interactions of before keep
their messages inside ``request``; readers take both forms.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_PARTIAL = {
    "task_tag": "task_tag IS NOT NULL",
    "outcome": "outcome <> 'complete'",
    "endpoint": "endpoint <> 'chat'",
}
"""Columns of interactions with an index over their rare values alone, and which those are."""


def upgrade() -> None:
    op.create_table(
        "audit_events",
        sa.Column("owner", sa.String(length=100), nullable=True),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=60), nullable=False),
        sa.Column("target", sa.String(length=300), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("request_id", sa.String(length=100), nullable=True),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    with op.batch_alter_table("audit_events", schema=None) as batch_op:
        batch_op.create_index("ix_audit_events_created_at", ["created_at"], unique=False)
        batch_op.create_index(
            "ix_audit_events_owner_created_at", ["owner", "created_at"], unique=False
        )

    op.create_table(
        "messages",
        sa.Column("parent_id", sa.String(length=48), nullable=True),
        sa.Column("owner", sa.String(length=100), nullable=True),
        sa.Column("role", sa.String(length=30), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
    )
    with op.batch_alter_table("messages", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_messages_parent_id"), ["parent_id"], unique=False)

    op.create_table(
        "document_sources",
        sa.Column("document_id", sa.String(length=48), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_document_sources_document_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("document_id", name=op.f("pk_document_sources")),
    )
    op.create_table(
        "sketch_hashes",
        sa.Column("document_id", sa.String(length=48), nullable=False),
        sa.Column("hash", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name=op.f("fk_sketch_hashes_document_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("document_id", "hash", name=op.f("pk_sketch_hashes")),
    )
    with op.batch_alter_table("sketch_hashes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sketch_hashes_hash"), ["hash"], unique=False)

    op.create_table(
        "feedback",
        sa.Column("completion_id", sa.String(length=100), nullable=False),
        sa.Column("interaction_id", sa.String(length=48), nullable=True),
        sa.Column("owner", sa.String(length=100), nullable=True),
        sa.Column("key_id", sa.String(length=48), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("choice", sa.Integer(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("idempotency_hash", sa.String(length=80), nullable=False),
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["interaction_id"],
            ["interactions.id"],
            name=op.f("fk_feedback_interaction_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
        sa.UniqueConstraint("idempotency_hash", name=op.f("uq_feedback_idempotency_hash")),
    )
    with op.batch_alter_table("feedback", schema=None) as batch_op:
        batch_op.create_index("ix_feedback_created_at", ["created_at", "id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_feedback_completion_id"), ["completion_id"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_feedback_interaction_id"), ["interaction_id"], unique=False
        )
        batch_op.create_index(
            "ix_feedback_owner_created_at", ["owner", "created_at", "id"], unique=False
        )

    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.add_column(sa.Column("owner", sa.String(length=100), nullable=True))

    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("owner", sa.String(length=100), nullable=True))
        batch_op.add_column(
            sa.Column("allows_learning", sa.Boolean(), nullable=False, server_default=sa.true())
        )
        batch_op.add_column(sa.Column("requests_per_minute", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("tokens_per_minute", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("token_budget", sa.BigInteger(), nullable=True))
        batch_op.add_column(
            sa.Column("tokens_used", sa.BigInteger(), nullable=False, server_default="0")
        )

    with op.batch_alter_table("documents", schema=None) as batch_op:
        batch_op.add_column(sa.Column("owner", sa.String(length=100), nullable=True))
        batch_op.add_column(
            sa.Column(
                "media_type", sa.String(length=100), nullable=False, server_default="text/plain"
            )
        )
        batch_op.add_column(sa.Column("filename", sa.String(length=300), nullable=True))
        batch_op.add_column(sa.Column("error", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("near_duplicate_of", sa.String(length=48), nullable=True))
        batch_op.add_column(sa.Column("sketch", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.drop_constraint(batch_op.f("uq_documents_content_hash"), type_="unique")
        batch_op.create_index(
            batch_op.f("ix_documents_content_hash"), ["content_hash"], unique=False
        )
        batch_op.create_index(
            "ix_documents_owner_created_at", ["owner", "created_at", "id"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_documents_near_duplicate_of"), ["near_duplicate_of"], unique=False
        )

    with op.batch_alter_table("interactions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("owner", sa.String(length=100), nullable=True))
        batch_op.add_column(
            sa.Column("endpoint", sa.String(length=20), nullable=False, server_default="chat")
        )
        batch_op.add_column(
            sa.Column("adapter", sa.String(length=200), nullable=False, server_default="")
        )
        batch_op.add_column(sa.Column("conversation_id", sa.String(length=48), nullable=True))
        batch_op.add_column(sa.Column("last_message_id", sa.String(length=48), nullable=True))
        batch_op.add_column(sa.Column("choices", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("tokens", sa.JSON(), nullable=True))
        batch_op.add_column(
            sa.Column("may_learn", sa.Boolean(), nullable=False, server_default=sa.true())
        )
        batch_op.add_column(
            sa.Column("split", sa.String(length=10), nullable=False, server_default="train")
        )
        batch_op.add_column(sa.Column("task_tag", sa.String(length=100), nullable=True))
        batch_op.add_column(sa.Column("end_user", sa.String(length=200), nullable=True))
        batch_op.add_column(sa.Column("redacted_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.drop_index(batch_op.f("ix_interactions_created_at"))
        batch_op.create_index("ix_interactions_created_at", ["created_at", "id"], unique=False)
        batch_op.create_index(
            "ix_interactions_adapter_created_at", ["adapter", "created_at", "id"], unique=False
        )
        batch_op.create_index(
            "ix_interactions_version_created_at", ["version", "created_at", "id"], unique=False
        )
        batch_op.create_index(
            "ix_interactions_key_id_created_at", ["key_id", "created_at", "id"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_interactions_conversation_id"), ["conversation_id"], unique=False
        )
        batch_op.create_index(
            "ix_interactions_owner_created_at", ["owner", "created_at", "id"], unique=False
        )
        for column, condition in _PARTIAL.items():
            batch_op.create_index(
                f"ix_interactions_{column}_created_at",
                [column, "created_at", "id"],
                unique=False,
                sqlite_where=sa.text(condition),
                postgresql_where=sa.text(condition),
            )

    # The line is the part of the public version name before its "@".
    line = "split_part(version, '@', 1)"
    if op.get_bind().dialect.name == "sqlite":
        line = "substr(version, 1, instr(version, '@') - 1)"
    op.execute(f"UPDATE interactions SET adapter = {line}")


def downgrade() -> None:
    with op.batch_alter_table("interactions", schema=None) as batch_op:
        for column in _PARTIAL:
            batch_op.drop_index(f"ix_interactions_{column}_created_at")
        batch_op.drop_index("ix_interactions_key_id_created_at")
        batch_op.drop_index("ix_interactions_version_created_at")
        batch_op.drop_index("ix_interactions_owner_created_at")
        batch_op.drop_index(batch_op.f("ix_interactions_conversation_id"))
        batch_op.drop_index("ix_interactions_adapter_created_at")
        batch_op.drop_index("ix_interactions_created_at")
        batch_op.create_index(
            batch_op.f("ix_interactions_created_at"), ["created_at"], unique=False
        )
        batch_op.drop_column("redacted_at")
        batch_op.drop_column("end_user")
        batch_op.drop_column("task_tag")
        batch_op.drop_column("split")
        batch_op.drop_column("may_learn")
        batch_op.drop_column("tokens")
        batch_op.drop_column("choices")
        batch_op.drop_column("last_message_id")
        batch_op.drop_column("conversation_id")
        batch_op.drop_column("adapter")
        batch_op.drop_column("endpoint")
        batch_op.drop_column("owner")

    with op.batch_alter_table("documents", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_documents_near_duplicate_of"))
        batch_op.drop_index("ix_documents_owner_created_at")
        batch_op.drop_index(batch_op.f("ix_documents_content_hash"))
        batch_op.create_unique_constraint(batch_op.f("uq_documents_content_hash"), ["content_hash"])
        batch_op.drop_column("deleted_at")
        batch_op.drop_column("sketch")
        batch_op.drop_column("near_duplicate_of")
        batch_op.drop_column("error")
        batch_op.drop_column("filename")
        batch_op.drop_column("media_type")
        batch_op.drop_column("owner")

    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.drop_column("tokens_used")
        batch_op.drop_column("token_budget")
        batch_op.drop_column("tokens_per_minute")
        batch_op.drop_column("requests_per_minute")
        batch_op.drop_column("allows_learning")
        batch_op.drop_column("owner")

    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.drop_column("owner")

    with op.batch_alter_table("feedback", schema=None) as batch_op:
        batch_op.drop_index("ix_feedback_owner_created_at")
        batch_op.drop_index(batch_op.f("ix_feedback_interaction_id"))
        batch_op.drop_index(batch_op.f("ix_feedback_completion_id"))
        batch_op.drop_index("ix_feedback_created_at")

    op.drop_table("feedback")
    op.drop_table("sketch_hashes")
    op.drop_table("document_sources")
    with op.batch_alter_table("messages", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_messages_parent_id"))

    op.drop_table("messages")
    with op.batch_alter_table("audit_events", schema=None) as batch_op:
        batch_op.drop_index("ix_audit_events_owner_created_at")
        batch_op.drop_index("ix_audit_events_created_at")

    op.drop_table("audit_events")
