"""The `chorus` command."""

from chorus_cluster.cli.main import main

__all__ = ["main"]
