"""The configuration of a cluster: a strict YAML file, checked once, frozen from there on.

Every class is a section of the file; a field's comment is its documentation. Unknown keys, keys that stand twice,
wrong types and values out of range raise `ConfigError`, which names the key and, for an unknown one, the nearest that
exists.
Nothing here looks at the process's environment.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

# Strict leaf by leaf: strict as a whole would refuse mappings where sections are meant.
Count = Annotated[int, Field(strict=True, ge=1)]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Period = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, min_length=1)]
_STRICT = ConfigDict(extra="forbid")


class ConfigError(ValueError):
    """The configuration can't be used; the message names the key and what would be right."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    # A checkpoint's folder, or "demo": the model inside the package. ("fake:{...}", for tests and benchmarks, is an
    # engine without a model.)
    path: Text = "demo"
    # What clients call it. Unset: the folder's name; chorus-demo for the demo model.
    name: Text | None = None

    @property
    def served_name(self) -> str:
        if self.name is not None:
            return self.name
        if self.path == "demo":
            return "chorus-demo"
        return "fake" if self.path.startswith("fake:") else Path(self.path).resolve().name


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    # Unset: 1; for GPUs on a machine that is all ours (`chorus serve` without an address), up to four for each worker.
    replicas: Count | None = None
    # Open HTTP and gRPC requests of one replica. As many again may wait; more are answered 429.
    max_ongoing_requests: Count = 4096
    # CPUs that Ray reserves for a replica; it may use more or less.
    num_cpus: Amount = 0.1
    # Whether the model can write those headers of messages alone that harmony has, to the tools that there are.
    header_guard: Switch = True
    # Seconds that a client may take to send a request, and may leave an answer unread; its request ends then.
    client_timeout_s: Period = 60.0
    # Seconds that open requests get to finish when a gateway is stopped.
    drain_timeout_s: Amount = 30.0


@dataclass(frozen=True, slots=True)
class AuthConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    # A file of API keys, at this path wherever a gateway runs (docs/security.md); it is read again when it changes.
    # Unset: there are no keys, and whoever reaches the server may use it.
    keys_file: Text | None = None


@dataclass(frozen=True, slots=True)
class StoreConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    # Where responses are kept (docs/serving.md): sqlite:////FOLDER/FILE, for gateways on one machine, or
    # postgresql://USER:PASSWORD@HOST/DATABASE. Unset: for a cluster of our own (`chorus serve` without an address) a
    # file that goes with it; else nothing is kept.
    url: Text | None = None
    # A file that holds the URL, at this path wherever a gateway runs, instead of the URL itself.
    url_file: Text | None = None
    # Days after which a response is deleted that none has gone on from.
    ttl_days: Period = 30.0


@dataclass(frozen=True, slots=True)
class KvConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    # Tokens of a page of full-attention KV.
    block_size: Count = 16
    # Pages of an engine. Unset: what the memory holds.
    num_blocks: Count | None = None
    # Requests that begin alike use the same KV, as long as the memory still holds it.
    prefix_cache: Switch = True


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    # Answer tokens that a request is taken to cost, where its own limit is not lower.
    expected_output_tokens: Count = 512
    # Seconds between the load reports of a worker.
    stats_period_s: Period = 0.5
    # Workers that one request may be sent to, one after the other, when they refuse it or die.
    max_attempts: Count = 4
    # Requests that one gateway may have waiting for a worker; more are answered 429.
    max_waiting: Count = 1024


@dataclass(frozen=True, slots=True)
class WorkersConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    replicas: Count = 1
    # Devices (or processes, on CPUs) that one engine is spread over.
    shards: Count = 1
    # Most tokens of prompt and answer. Unset: what the checkpoint says.
    max_model_len: Count | None = None
    # Requests that an engine runs at once. Unset: 32 on CPUs, 256 on a GPU.
    max_num_seqs: Count | None = None
    # Tokens of one engine step. Unset: 512 on CPUs, 8192 on a GPU.
    max_batched_tokens: Count | None = None
    # Seconds that a step should take while answers are being written: prompts get fewer of its tokens then, which
    # bounds the time between two tokens of an answer. Unset: no limit.
    step_budget_s: Amount | None = None
    # Seconds that compiling a request's schema or grammar may take; then the request is answered 400.
    grammar_timeout_s: Period = 2.0
    # Requests that may wait in an engine; more are answered 429.
    max_queued_requests: Count = 128
    # Tokens after the first are sent at most this often.
    merge_interval_s: Amount = 0.02
    # Port of the worker's own EngineService and VllmEngine. 0: any free one. null: off.
    grpc_port: Annotated[int, Field(strict=True, ge=0, le=65535)] | None = 0
    # The address it listens on. Nothing authenticates its callers: only for networks that are trusted.
    grpc_host: Text = "127.0.0.1"
    # "reference": PyTorch on CPUs. "triton": our kernels on a GPU. "auto": triton for a checkpoint where there are GPUs
    # (A100, H100, ...), else reference.
    runner: Literal["auto", "reference", "triton"] = "auto"
    # How keys and values are kept. "auto": in the model's dtype. "fp8_e4m3": in half the memory, at some loss of
    # accuracy; runner triton only, on an L40S, H100 or newer.
    kv_cache_dtype: Literal["auto", "fp8_e4m3"] = "auto"
    # Whether a request's logits are the same bits alone and among others, at some loss of speed (docs/kernels.md);
    # runner triton only.
    batch_invariant: bool = False
    # Threads of the CPU runner. Unset: it decides.
    num_threads: Count | None = None
    # CPUs and GPUs that Ray reserves for a worker (for each shard, if it has several). num_gpus unset: 1 with runner
    # triton, else 0.
    num_cpus: Amount = 1.0
    num_gpus: Amount | None = None
    # Seconds that running requests get to finish when a worker is stopped.
    drain_timeout_s: Amount = 30.0
    kv: KvConfig = field(default_factory=KvConfig)


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"
    # A line for each request of a gateway.
    access: Switch = False


@dataclass(frozen=True, slots=True)
class AppConfig:
    """What the Serve application is made of; also the `args` of a Serve config file."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    model: ModelConfig = field(default_factory=ModelConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass(frozen=True, slots=True)
class HttpConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    # The address to listen on, for HTTP and gRPC. 0.0.0.0: every interface.
    host: Text = "127.0.0.1"
    port: Port = 8000


@dataclass(frozen=True, slots=True)
class GrpcConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    port: Port = 9000


@dataclass(frozen=True, slots=True)
class DataPlaneConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    # HAProxy in front of the gateways, instead of Serve's own proxy.
    haproxy: Switch = True
    # Serve's throughput flags: handlers on the replica's event loop, gRPC between replicas.
    throughput_optimized: Switch = True


@dataclass(frozen=True, slots=True)
class RayConfig:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    # A running cluster to join. Unset: one of our own, on this machine, that ends with the command.
    address: Text | None = None
    # CPUs that our own cluster claims to have. Unset: what the deployments ask for.
    num_cpus: Count | None = None
    # Where Ray and Serve show metrics of their own, beside Chorus's at /metrics of the HTTP port. Unset: nowhere.
    metrics_port: Port | None = None


@dataclass(frozen=True, slots=True)
class ClusterConfig(AppConfig):
    """The file that `chorus serve --config` reads."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    http: HttpConfig = field(default_factory=HttpConfig)
    grpc: GrpcConfig = field(default_factory=GrpcConfig)
    data_plane: DataPlaneConfig = field(default_factory=DataPlaneConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    @property
    def app(self) -> AppConfig:
        return AppConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(AppConfig)})


ConfigT = TypeVar("ConfigT", bound=AppConfig)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML forbids a key to stand twice in one mapping; PyYAML would take the last and say nothing."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} stands here twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


def parse(values: object, schema: type[ConfigT]) -> ConfigT:
    """Checks a mapping (of YAML or of a Serve config's args) against a schema.

    Errors: ConfigError naming every key at fault.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"the configuration must be a mapping of sections, not {type(values).__name__}")
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        problems = [_describe(schema, details) for details in error.errors(include_url=False)]
        raise ConfigError("\n".join(problems)) from None


def load(path: Path | None, overrides: Mapping[str, object]) -> ClusterConfig:
    """The file's configuration (defaults without one), with dotted overrides such as `{"http.port": 8080}` on top.

    Errors: ConfigError if the file can't be read, is not YAML or doesn't fit the schema.
    """
    values: object = {}
    if path is not None:
        try:
            # A SafeLoader, all the same.
            values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
        except OSError as error:
            raise ConfigError(f"can't read {path}: {error.strerror}") from None
        # PyYAML lets the others through, for dates and integers that look like some and are none, and for deep nesting.
        except (yaml.YAMLError, ValueError, IndexError, RecursionError) as error:
            raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        values = {} if values is None else values
    try:
        if not isinstance(values, dict):
            return parse(values, ClusterConfig)
        for dotted, value in overrides.items():
            _put(values, dotted.split("."), value)
        return parse(values, ClusterConfig)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path is not None else str(error)) from None


def to_mapping(config: AppConfig) -> dict[str, Any]:
    """The mapping that `parse` makes an equal configuration from: plain values, fit for a Serve config's args."""
    return dataclasses.asdict(config)


def _put(values: dict[Any, Any], path: list[str], value: object) -> None:
    *sections, key = path
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            return  # Not a section: the schema says so with the right path.
        values = inner
    values[key] = value


def _describe(schema: type, details: Any) -> str:
    location = [str(part) for part in details["loc"]]
    path = ".".join(location)
    if details["type"] == "dataclass_type":
        return f"{path}: must be a section (found {details['input']!r})"
    if details["type"] != "unexpected_keyword_argument":
        return f"{path}: {_lower_first(details['msg'])} (found {details['input']!r})"
    known = _keys_at(schema, location[:-1])
    nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
    return f"{path}: unknown key; {hint}"


def _keys_at(schema: type, path: list[str]) -> list[str]:
    """The keys of the section at a path of section names."""
    for name in path:
        schema = typing.get_type_hints(schema)[name]
    return [f.name for f in dataclasses.fields(schema)]


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
