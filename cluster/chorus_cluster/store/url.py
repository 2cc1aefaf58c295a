"""Which database a configuration names. (Without SQLAlchemy, for commands that only start others.)"""

from pathlib import Path

from chorus_cluster.config import StoreConfig


class StoreError(ValueError):
    """The store can't be used; the message says why, and quotes no password."""


def store_url(config: StoreConfig) -> str | None:
    """None: there is no store. Errors: StoreError."""
    if config.url is not None and config.url_file is not None:
        raise StoreError("store: url and url_file are both set; choose one")
    if config.url_file is None:
        return config.url
    try:
        return Path(config.url_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise StoreError(f"store.url_file: can't read {config.url_file}: {reason}") from None
