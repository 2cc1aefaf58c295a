"""serveConfigV2: what Ray Serve and the application will be given, checked against both."""

from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter
from ray.serve.schema import ServeDeploySchema
from tests.k8s.helm_cli import Helm, Rendered, environment

from chorus_cluster.config import AppConfig, parse


def unknown_fields(schema: type[BaseModel], values: dict[str, Any], path: str = "") -> list[str]:
    """Keys that a (lenient) pydantic model would ignore, with those of the models inside it; mappings are free."""
    unknown = []
    for key, value in values.items():
        field = schema.model_fields.get(key)
        if field is None:
            unknown.append(path + key)
            continue
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if is_model(kind)]
        for item in value if isinstance(value, list) else [value]:
            if inner and isinstance(item, dict):
                unknown += unknown_fields(inner[0], item, f"{path}{key}.")
    return unknown


def is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def replicas(rendered: Rendered) -> dict[str, int]:
    return {deployment["name"]: deployment["num_replicas"] for deployment in rendered.application["deployments"]}


def test_serve_accepts_it_and_knows_every_field(rendered: Rendered) -> None:
    config = rendered.serve_config
    assert unknown_fields(ServeDeploySchema, config) == []
    ServeDeploySchema.model_validate(config)


def test_the_check_for_unknown_fields_sees_all_levels(defaults: Rendered) -> None:
    config = defaults.serve_config
    config["http_option"] = {}
    config["grpc_options"]["prot"] = 1
    config["applications"][0]["deployments"][0]["num_replica"] = 1
    assert sorted(unknown_fields(ServeDeploySchema, config)) == [
        "applications.deployments.num_replica",
        "grpc_options.prot",
        "http_option",
    ]


def test_the_application_accepts_its_args(rendered: Rendered) -> None:
    parse(rendered.application["args"], AppConfig)


def test_config_reaches_the_application(helm: Helm) -> None:
    config = {
        "model": {"path": "/opt/gpt-oss-20b", "name": "house"},
        "gateway": {
            "replicas": 3,
            "max_ongoing_requests": 77,
            "num_cpus": 0.5,
            "client_timeout_s": 7.5,
            "drain_timeout_s": 9.5,
        },
        "workers": {
            "replicas": 2,
            "shards": 2,
            "num_gpus": 0.5,
            "merge_interval_s": 0,
            "kv": {"num_blocks": 123456789},
        },
        "routing": {"stats_period_s": 0.25},
        "logging": {"level": "WARNING", "format": "text", "access": True},
    }
    rendered = helm.template({"config": config, "workerGroups.engine.replicas": 2})
    args = rendered.application["args"]
    for section, name in (("gateway", "Gateway"), ("workers", "Worker")):
        args[section]["replicas"] = replicas(rendered)[name]
    assert parse(args, AppConfig) == parse(config, AppConfig)


def test_haproxy_waits_for_clients_somewhat_longer_than_gateways_do(helm: Helm, defaults: Rendered) -> None:
    for rendered, seconds in ((defaults, "70"), (helm.template({"config.gateway.client_timeout_s": 7.5}), "18")):
        environments = [environment(template) for template in rendered.pod_templates.values()]
        assert {env["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] for env in environments} == {seconds}


def test_scaling_leaves_the_arguments_alone(helm: Helm, defaults: Rendered) -> None:
    """Serve restarts all replicas of an application whose arguments change."""
    scaled = helm.template(
        {"config.gateway.replicas": 5, "config.workers.replicas": 4}
        | {"workerGroups.gateway.replicas": 4, "workerGroups.engine.replicas": 4}
    )
    assert replicas(scaled) == {"Gateway": 5, "Worker": 4}
    assert replicas(defaults) == {"Gateway": 2, "Worker": 1}
    assert scaled.application["args"] == defaults.application["args"]


def test_values_schema_mirrors_the_configuration(values_schema: dict[str, Any]) -> None:
    """Key by key, with types and bounds: the chart takes what the application takes, but for the key file and the
    store, which follow from `apiKeys` and `store`."""
    generated = TypeAdapter(AppConfig).json_schema()
    application = flattened(generated, generated["$defs"])
    for section, keys in (("config.auth", ["keys_file"]), ("config.store", ["url", "url_file", "ttl_days"])):
        assert all([application.pop(name) for name in (section, *(f"{section}.{key}" for key in keys))])
    ours = values_schema["properties"]["config"]
    assert flattened(ours, values_schema["$defs"]) == application


_BOUNDS = ("type", "minimum", "exclusiveMinimum", "maximum", "enum")


def flattened(schema: dict[str, Any], definitions: dict[str, Any], path: str = "config") -> dict[str, Any]:
    """The keys of a JSON schema's sections, by path, with what they may hold."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        choice, null = schema["anyOf"]
        assert null == {"type": "null"}
        schema = choice | {"type": [choice["type"], "null"]}
    if schema["type"] != "object":
        return {path: {bound: schema[bound] for bound in _BOUNDS if bound in schema}}
    assert schema["additionalProperties"] is False
    found: dict[str, Any] = {path: "section"}
    for name, value in schema["properties"].items():
        found |= flattened(value, definitions, f"{path}.{name}")
    return found


def test_null_switches_off_what_it_can(helm: Helm) -> None:
    rendered = helm.template({"config.workers.grpc_port": None})
    assert parse(rendered.application["args"], AppConfig).workers.grpc_port is None


def test_gateways_stay_out_of_the_engines_pods(helm: Helm, defaults: Rendered) -> None:
    (gateway,) = (found for found in defaults.application["deployments"] if found["name"] == "Gateway")
    selector = gateway["ray_actor_options"]["label_selector"]
    assert selector == defaults.group("gateway")["labels"]
    assert "labels" not in defaults.group("engine")
    shared = helm.template({"workerGroups.engine.roles": ["gateway", "engine"]})
    assert shared.group("engine")["labels"] == selector
