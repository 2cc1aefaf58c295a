"""The store that a configuration names."""

import logging

from prometheus_client import CollectorRegistry

from chorus_cluster.config import StoreConfig
from chorus_cluster.store.database import Database
from chorus_cluster.store.metrics import StoreMetrics
from chorus_cluster.store.responses import ResponseStore
from chorus_cluster.store.url import store_url

logger = logging.getLogger(__name__)

_SECONDS_PER_DAY = 86400.0


async def open_store(config: StoreConfig, registry: CollectorRegistry | None = None) -> ResponseStore | None:
    """Connects, and brings the tables up to date. registry: where its operations are counted.

    Errors: StoreError.
    """
    url = store_url(config)
    if url is None:
        logger.warning("There is no store (store.url): no response is kept")
        return None
    database = Database(url)
    await database.migrate()
    logger.info("Responses are kept in %s", database)
    return ResponseStore(database, config.ttl_days * _SECONDS_PER_DAY, metrics=StoreMetrics(registry))
