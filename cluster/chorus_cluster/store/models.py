"""The tables of the store. A change here needs a migration in `migrations/versions`; a test compares the two."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# What is still being made. Anything else has ended.
ACTIVE_STATUSES = ("queued", "in_progress")
_ID = String(64)


class Base(DeclarativeBase):
    pass


class ResponseRow(Base):
    """A stored response, whole or still being made in the background. Times are seconds since the epoch."""

    __tablename__ = "responses"
    __table_args__ = (Index("ix_responses_expires", "expires"), Index("ix_responses_lease", "status", "lease_expires"))

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    # Whose key asked for it; empty where there are no keys.
    owner: Mapped[str] = mapped_column(_ID)
    created: Mapped[float]
    expires: Mapped[float]
    # The response that this one goes on from; it may be gone.
    previous_id: Mapped[str | None] = mapped_column(_ID)
    # Also in `body`; here it can be asked for, and changed only by one.
    status: Mapped[str] = mapped_column(String(16))
    # The API's response object, without its output.
    body: Mapped[dict[str, Any]] = mapped_column(JSON)
    # Lists of items, as JSON: those that were new with this response, and its output. What goes on from a response
    # reads these alone.
    input_items: Mapped[str] = mapped_column(Text)
    output: Mapped[str] = mapped_column(Text)
    # Whether its events are kept, to be streamed again.
    has_events: Mapped[bool]
    # In the background: until when its gateway has promised to look after it.
    lease_expires: Mapped[float | None]


class ResponseEventRow(Base):
    """Server-sent events of a response that is made in the background, as many as were written at once."""

    __tablename__ = "response_events"

    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True)
    # Of the last of them.
    sequence_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    # As they are sent.
    text: Mapped[str] = mapped_column(Text)
