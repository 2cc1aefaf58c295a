"""The command line: one file for each command."""

import importlib.metadata

import typer

from chorus_cluster.batch.command import batch
from chorus_cluster.cli.chat import chat
from chorus_cluster.cli.new_key import new_key
from chorus_cluster.cli.serve import serve

app = typer.Typer(
    help="A serving cluster for OpenAI's gpt-oss models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(chat)
app.command()(batch)
app.command()(new_key)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(importlib.metadata.version("chorus-serve"))


def main() -> None:
    app()
