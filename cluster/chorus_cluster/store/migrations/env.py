"""What Alembic runs, by a connection that `chorus_cluster.store.database.upgrade` gives it."""

from alembic import context

from chorus_cluster.store.models import Base

# SQLite can't change a column: in batches, tables are copied there.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
