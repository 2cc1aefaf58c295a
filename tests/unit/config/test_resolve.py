"""What is left open comes from the cluster's GPUs; what is said is taken as it is."""

from typing import Any, Literal

import pytest
import ray

from chorus_cluster import app
from chorus_cluster.config import AppConfig, ConfigError, parse
from chorus_cluster.resolve import EngineSettings, check_room, gateway_replicas, resolve, supported_gpus

ON_CPUS = EngineSettings("reference", num_gpus=0.0, max_num_seqs=32, max_batched_tokens=512)
ON_A_GPU = EngineSettings("triton", num_gpus=1.0, max_num_seqs=256, max_batched_tokens=8192)
HOST = {"CPU": 16.0, "GPU": 1.0, "accelerator_type:H100": 1.0, "node:__internal_head__": 1.0}


def config(path: str = "/models/gpt-oss-20b", **workers: object) -> AppConfig:
    return parse({"model": {"path": path}, "workers": workers}, AppConfig)


def test_a_checkpoint_runs_on_a_gpu_where_there_is_one() -> None:
    assert resolve(config(), 0.0) == ON_CPUS
    assert resolve(config(), 1.0) == ON_A_GPU
    assert resolve(config(runner="reference"), 1.0) == ON_CPUS
    assert resolve(config(runner="triton"), 0.0) == ON_A_GPU


@pytest.mark.parametrize("path", ["demo", "fake:{}"])
def test_other_models_run_on_cpus(path: str) -> None:
    assert resolve(config(path), 8.0) == ON_CPUS


def test_gpus_that_are_asked_for_are_used_though_the_cluster_has_none_yet() -> None:
    assert resolve(config(num_gpus=1.0), 0.0) == ON_A_GPU
    assert resolve(config(num_gpus=0.5), 0.0).num_gpus == 0.5
    assert resolve(config(num_gpus=0.0), 8.0) == ON_CPUS
    assert resolve(config("demo", num_gpus=1.0), 8.0).runner == "reference"


def test_sizes_that_are_said_are_taken() -> None:
    assert resolve(config(max_num_seqs=7, max_batched_tokens=9), 1.0) == EngineSettings("triton", 1.0, 7, 9)
    # A step has room for all that run.
    assert resolve(config(max_num_seqs=600), 0.0).max_batched_tokens == 600


@pytest.mark.parametrize(
    ("runner", "workers", "num_cpus", "gateways"),
    [
        ("triton", 1, 16, 4),
        ("triton", 1, 128, 4),
        ("triton", 8, 128, 32),
        ("triton", 8, 64, 16),
        ("triton", 1, 7, 1),
        ("triton", 1, 2, 1),
        ("reference", 3, 128, 1),
    ],
)
def test_gateways_keep_up_with_gpus_as_far_as_there_are_cpus(
    runner: Literal["reference", "triton"], workers: int, num_cpus: int, gateways: int
) -> None:
    assert gateway_replicas(config(replicas=workers), runner, num_cpus) == gateways
    said = parse({"gateway": {"replicas": 3}}, AppConfig)
    assert gateway_replicas(said, runner, num_cpus) == 3


@pytest.mark.parametrize(
    ("resources", "num_gpus"),
    [
        (HOST, 1.0),
        ({"CPU": 2.0}, 0.0),
        ({"GPU": 8.0, "accelerator_type:A100": 1.0}, 8.0),
        ({"GPU": 1.0, "accelerator_type:T4": 1.0}, 0.0),
        ({"GPU": 1.0, "accelerator_type:AMD-Instinct-MI300A": 1.0}, 0.0),
        ({"GPU": 2.0, "accelerator_type:V100": 1.0, "accelerator_type:H100": 1.0}, 0.0),
    ],
)
def test_gpus_count_that_the_kernels_run_on(resources: dict[str, float], num_gpus: float) -> None:
    assert supported_gpus(resources) == num_gpus


def test_workers_that_would_wait_for_gpus_for_ever_are_refused() -> None:
    two = config(replicas=2)
    check_room(two.workers, ON_A_GPU, 2.0)
    check_room(two.workers, ON_CPUS, 0.0)
    with pytest.raises(ConfigError, match=r"replicas x shards x num_gpus is 2, and GPUs here are 1;"):
        check_room(two.workers, ON_A_GPU, 1.0)


@pytest.mark.parametrize(("resources", "num_gpus"), [(HOST, 1.0), ({"CPU": 2.0}, 0.0)])
def test_ray_reserves_the_gpu_for_the_worker(
    resources: dict[str, float], num_gpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    deployments = worker_options(config())
    assert deployments["ray_actor_options"]["num_gpus"] == num_gpus
    assert deployments["max_ongoing_requests"] == (256 if num_gpus else 32) + 128 + 32
    shards = worker_options(config(shards=2, runner="triton"))
    assert shards["placement_group_bundles"] == [{"CPU": 1.0, "GPU": 1.0}] * 2


def worker_options(settings: AppConfig) -> dict[str, Any]:
    deployment = app._workers(settings)._bound_deployment
    names = ("ray_actor_options", "placement_group_bundles")
    return {name: getattr(deployment._replica_config, name) for name in names} | {
        "max_ongoing_requests": deployment.max_ongoing_requests
    }
