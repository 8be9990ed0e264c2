"""Run by alembic for each upgrade, on the connection that `schema.upgrade` gives."""

from alembic import context

from tinkergate.store.tables import Row

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Row.metadata,
    # SQLite cannot alter most things in place; alembic copies the table there.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
