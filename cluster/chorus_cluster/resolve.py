"""What a configuration that leaves things open comes to, on the GPUs that a Ray cluster has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from chorus_cluster.config import AppConfig, ConfigError, ModelConfig, WorkersConfig

_TYPE_PREFIX: Final = "accelerator_type:"
# By Ray's names. Triton's kernels need an NVIDIA GPU of compute capability 8.0 or more.
_UNSUPPORTED_TYPES: Final = frozenset({"K80", "P4", "P100", "V100", "T4"})
_OTHER_MAKERS: Final = ("AMD-", "Intel-", "MXC")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Of `workers`, what may be left open."""

    runner: Literal["reference", "triton"]
    num_gpus: float
    max_num_seqs: int
    max_batched_tokens: int


# A gateway is one process, and full with some 11,500 tokens/s; an H100 gives 13,700 (docs/performance.md). With four,
# none is near its limit.
_GATEWAYS_PER_GPU_WORKER: Final = 4
_CPUS_PER_GATEWAY: Final = 4
# A CPU is busy with few requests; a GPU reads its weights once for all of them.
_DEFAULTS: Final = (EngineSettings("reference", 0.0, 32, 512), EngineSettings("triton", 1.0, 256, 8192))


def resolve(config: AppConfig, num_gpus: float) -> EngineSettings:
    """num_gpus: how many of those we support the cluster has."""
    workers = config.workers
    runner = workers.runner
    if runner == "auto":
        offered = num_gpus if workers.num_gpus is None else workers.num_gpus
        runner = "triton" if offered and _is_checkpoint(config.model) else "reference"
    defaults = _DEFAULTS[runner == "triton"]
    max_num_seqs = workers.max_num_seqs or defaults.max_num_seqs
    return EngineSettings(
        runner=runner,
        num_gpus=defaults.num_gpus if workers.num_gpus is None else workers.num_gpus,
        max_num_seqs=max_num_seqs,
        # So that every running request can decode in every step.
        max_batched_tokens=workers.max_batched_tokens or max(defaults.max_batched_tokens, max_num_seqs),
    )


def supported_gpus(resources: Mapping[str, float]) -> float:
    """How many GPUs a cluster has that we support, by what `ray.cluster_resources` says.

    It doesn't say how many of the GPUs are of which type: where one type is not supported, none is.
    """
    types = [name.removeprefix(_TYPE_PREFIX) for name in resources if name.startswith(_TYPE_PREFIX)]
    if any(name in _UNSUPPORTED_TYPES or name.startswith(_OTHER_MAKERS) for name in types):
        return 0.0
    return resources.get("GPU", 0.0)


def gateway_replicas(config: AppConfig, runner: Literal["reference", "triton"], num_cpus: int) -> int:
    """How many gateways a machine of so many CPUs has that nobody else uses."""
    if config.gateway.replicas is not None:
        return config.gateway.replicas
    wanted = _GATEWAYS_PER_GPU_WORKER * config.workers.replicas if runner == "triton" else 1
    return max(1, min(wanted, num_cpus // _CPUS_PER_GATEWAY))


def check_room(workers: WorkersConfig, settings: EngineSettings, num_gpus: float) -> None:
    """Errors: ConfigError, if the workers ask for more GPUs than a cluster has that won't grow: Ray would wait."""
    wanted = workers.replicas * workers.shards * settings.num_gpus
    if wanted > num_gpus:
        raise ConfigError(
            f"workers: replicas x shards x num_gpus is {wanted:g}, and GPUs here are {num_gpus:g}; ask for fewer, or "
            "take runner 'reference' with num_gpus 0, on CPUs"
        )


def _is_checkpoint(model: ModelConfig) -> bool:
    """The demo model and fake ones are for CPUs."""
    return model.path != "demo" and not model.path.startswith("fake:")
