"""The rendered Serve config against the application that it deploys."""

from pathlib import Path

import pytest
from ray.serve._private.build_app import build_app
from tests.k8s.helm_cli import Helm, Rendered, environment

from chorus_cluster.app import GRPC_SERVICER_FUNCTIONS, build
from chorus_cluster.cli.local_ray import ray_environment
from chorus_cluster.config import ClusterConfig, DataPlaneConfig


def test_grpc_servicers_are_the_applications(rendered: Rendered) -> None:
    assert rendered.serve_config["grpc_options"]["grpc_servicer_functions"] == GRPC_SERVICER_FUNCTIONS


def test_deployments_are_the_applications(rendered: Rendered) -> None:
    """Serve refuses a name that the application lacks, and takes ray_actor_options whole."""
    application = rendered.application
    built = build_app(build(application["args"]), name="chorus", default_runtime_env={})
    deployments = {deployment.name: deployment for deployment in built.deployments}
    assert deployments.keys() == {ours["name"] for ours in application["deployments"]}
    for ours in application["deployments"]:
        theirs = deployments[ours["name"]].ray_actor_options or {}
        assert theirs.items() <= ours.get("ray_actor_options", theirs).items()


@pytest.mark.parametrize(("haproxy", "throughput"), [(True, False), (False, True)])
def test_data_plane_is_that_of_chorus_serve(
    helm: Helm, haproxy: bool, throughput: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    rendered = helm.template({"dataPlane": {"haproxy": haproxy, "throughputOptimized": throughput}})
    config = ClusterConfig(data_plane=DataPlaneConfig(haproxy=haproxy, throughput_optimized=throughput))
    theirs = ray_environment(config, tmp_path)
    shared = (
        "RAY_SERVE_ENABLE_HA_PROXY",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
        "RAY_USAGE_STATS_ENABLED",
        "GRPC_EXPERIMENTS",
    )
    assert rendered.pod_templates.keys() == {"head", "gateway", "engine"}
    for template in rendered.pod_templates.values():
        ours = environment(template)
        assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
