"""Responses and the events of those made in the background."""

import sqlalchemy as sa
from alembic import op

revision = "001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("previous_id", sa.String(64)),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("input_items", sa.Text, nullable=False),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("has_events", sa.Boolean, nullable=False),
        sa.Column("lease_expires", sa.Float),
    )
    op.create_index("ix_responses_expires", "responses", ["expires"])
    op.create_index("ix_responses_lease", "responses", ["status", "lease_expires"])
    op.create_table(
        "response_events",
        sa.Column("response_id", sa.String(64), sa.ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("sequence_number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("text", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("response_events")
    op.drop_table("responses")
