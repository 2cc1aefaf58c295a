"""Makes the runner that a configuration asks for."""

import logging
import os
import time
from dataclasses import replace

import psutil
import torch

from chorus_workers.config import WorkerConfig, check_batch_invariant, check_kv_cache_dtype
from chorus_workers.model.checkpoint import load_model, load_model_as
from chorus_workers.model.config import read_config
from chorus_workers.model.weights import ReferenceModel, Shard
from chorus_workers.runner.base import Runner
from chorus_workers.runner.config import (
    RunnerConfig,
    host_page_bytes,
    kv_dtype,
    resolve,
    resolve_threads,
)
from chorus_workers.runner.reference import ReferenceRunner
from chorus_workers.runner.shard_group import ShardLeader, ShardLinks, follow

__all__ = ["RunnerConfig", "create_runner", "run_follower", "runner_config"]

logger = logging.getLogger(__name__)


def runner_config(config: WorkerConfig) -> RunnerConfig:
    """The runner's part of a worker's configuration."""
    return RunnerConfig(
        model=config.model,
        max_model_len=config.max_model_len,
        block_size=config.block_size,
        num_blocks=config.num_kv_blocks,
        num_slots=config.max_num_seqs,
        max_batched_tokens=config.max_batched_tokens,
        num_shards=config.num_shards,
        num_threads=config.num_threads,
        shard_address=config.shard_address,
        prefix_cache=config.prefix_cache,
        runner=config.runner,
        kv_cache_dtype=config.kv_cache_dtype,
        batch_invariant=config.batch_invariant,
    )


def create_runner(config: RunnerConfig) -> Runner:
    """Loads the model and reserves its memory. With several shards, this process is the first of them, and waits for
    the others at `config.shard_address`.

    Errors: CheckpointError naming file and tensor; ValueError naming the setting that can't be met; RunnerError when
    another shard doesn't come up.
    """
    check_kv_cache_dtype(config.runner, config.kv_cache_dtype)
    check_batch_invariant(config.runner, config.batch_invariant)
    if config.runner == "triton":
        return _create_triton_runner(config)
    if config.num_shards == 1:
        model = _load(config, Shard())
        return ReferenceRunner(model, resolve(config, model.config, host_page_bytes(psutil.virtual_memory().available)))
    if config.shard_address is None:
        raise ValueError(f"num_shards is {config.num_shards}: shard_address must say where the shards meet")
    shard = Shard(0, config.num_shards)
    shard.check(read_config(config.folder))
    with ShardLinks.join(0, config.num_shards, config.shard_address) as links:
        model = _load(config, shard)
        available = psutil.virtual_memory().available // config.num_shards
        info = resolve(config, model.config, host_page_bytes(available))
        return ShardLeader(model, info, links)


def _create_triton_runner(config: RunnerConfig) -> Runner:
    # Here, so that other runners start without Triton.
    from chorus_workers.runner.triton.device import choose_device
    from chorus_workers.runner.triton.form import DeviceForm, product_tiles_within
    from chorus_workers.runner.triton.memory import (
        MemoryNeeds,
        check_weights,
        explain_out_of_memory,
        weights_do_not_fit,
    )
    from chorus_workers.runner.triton.progress import LoadProgress
    from chorus_workers.runner.triton.runner import TritonRunner

    if config.num_shards > 1:
        raise ValueError(f"num_shards is {config.num_shards}: runner 'triton' has one GPU; 'reference' can be spread")
    begin = time.monotonic()
    device = choose_device(config.kv_cache_dtype)
    weight_bytes = sum(file.stat().st_size for file in config.folder.glob("*.safetensors"))
    free_bytes = _free_bytes(device)
    check_weights(weight_bytes, free_bytes)
    with explain_out_of_memory(weights_do_not_fit(weight_bytes, free_bytes)), LoadProgress(weight_bytes) as progress:
        model = load_model_as(DeviceForm(device, on_copied=progress.add), config.folder)
        torch.cuda.synchronize(device)
    loaded_at = time.monotonic()
    needs = MemoryNeeds(
        config, model.config, _free_bytes(device), kv_dtype(config.kv_cache_dtype, model.embedding.dtype)
    )
    info = needs.resolve()
    tiles = None if config.batch_invariant else product_tiles_within(needs.free_bytes, model)
    if tiles is not None:
        try:
            beside = replace(needs, free_bytes=_free_bytes(device))
            needs, info = beside, beside.resolve()
        except ValueError:
            logger.warning("no tiles of dense weights are kept: the KV memory asked for doesn't fit beside them")
            tiles = None
    with explain_out_of_memory(needs.step_does_not_fit(info)):
        runner = TritonRunner(model, info, needs.kv_dtype, tiles, batch_invariant=config.batch_invariant)
        runner.warm_up()
    took = (time.monotonic() - begin, loaded_at - begin, time.monotonic() - loaded_at)
    logger.info("ready in %.1f s: %.1f s for the weights, %.1f s for KV memory, graphs and kernels", *took)
    return runner


def _free_bytes(device: torch.device) -> int:
    # What loading left in the allocator would count as taken.
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def run_follower(rank: int, world_size: int, init_address: str, runner_config: RunnerConfig) -> None:
    """The life of shard `rank` >= 1: joins the group, loads its share, and follows shard 0 until that closes.

    Errors: as `create_runner`'s; RunnerError when another shard is lost.
    """
    shard = Shard(rank, world_size)
    shard.check(read_config(runner_config.folder))
    with ShardLinks.join(rank, world_size, init_address) as links:
        follow(_load(runner_config, shard), links)


def _load(config: RunnerConfig, shard: Shard) -> ReferenceModel:
    model = load_model(config.folder, shard)
    torch.set_num_threads(resolve_threads(config, model.config, os.cpu_count() or 1))
    return model
