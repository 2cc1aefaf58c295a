"""`chorus new-key`: an API key, and what stands for it in the key file."""

from typing import Annotated

import typer

from chorus_cluster.auth import keys
from chorus_cluster.auth.keys import Scope


def new_key(
    id: Annotated[str, typer.Argument(help="What logs call it.")],
    owner: Annotated[str | None, typer.Option(help="Whose data it reaches; its id, if not given.")] = None,
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may do; inference, if not given.")] = None,
) -> None:
    """Draw an API key. Nobody has it but who reads this: the entry for the key file holds its hash."""
    try:
        key, entry = keys.new_key(id, owner, scope or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(f"The key, which is shown once:\n\n  {key}\n\nIts entry below `keys:` in the file of auth.keys_file:\n")
    typer.echo(entry, nl=False)
