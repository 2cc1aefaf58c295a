"""Puts the application on a running Ray cluster, waits until it serves, and takes it away again."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace

from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from chorus_cluster import app, metrics
from chorus_cluster.cli.local_ray import StartError, usable_cpus
from chorus_cluster.config import ClusterConfig
from chorus_cluster.resolve import check_room, gateway_replicas

_POLL_S = 0.25
# What Serve says of a replica whose constructor raised. It would try again; a bad checkpoint stays bad.
_REPLICA_FAILED = re.compile(r"failed to start", re.IGNORECASE)
_ENGINE_START_ERROR = "EngineStartError: "


def deploy(config: ClusterConfig, report: Callable[[str], None]) -> None:
    """Returns when every replica is up. `report` is told how far it is, in a few words.

    Errors: ConfigError, if a cluster of our own has too few GPUs; StartError with the first failure, in the words of
    what failed.
    """
    application = config.app
    if config.ray.address is None:
        settings = app.engine_settings(application)
        check_room(config.workers, settings, app.cluster_resources().get("GPU", 0.0))
        gateways = gateway_replicas(application, settings.runner, usable_cpus())
        application = replace(application, gateway=replace(application.gateway, replicas=gateways))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    report("Starting Ray Serve")
    serve.start(
        http_options=HTTPOptions(host=config.http.host, port=config.http.port),
        grpc_options=gRPCOptions(port=config.grpc.port, grpc_servicer_functions=app.GRPC_SERVICER_FUNCTIONS),
    )
    target = serve.RunTarget(app.build_from(application), name=app.APP_NAME, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    while True:
        status = serve.status().applications[app.APP_NAME]
        if status.status == ApplicationStatus.RUNNING:
            return
        failure = _failure(status)
        if failure is not None:
            raise StartError(failure)
        report(_progress(status))
        time.sleep(_POLL_S)


def shut_down(*, is_ours: bool) -> None:
    """Drains and removes the application: what runs may finish, within the configured drain timeouts.

    Where the cluster `is_ours`, Serve goes with it.
    """
    serve.delete(app.APP_NAME)
    metrics.end_hub()
    if is_ours:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _failure(status: ApplicationStatusOverview) -> str | None:
    for name, deployment in status.deployments.items():
        if _REPLICA_FAILED.search(deployment.message):
            return f"{name.lower()}: {reason_of(deployment.message)}"
    if status.status == ApplicationStatus.DEPLOY_FAILED:
        return reason_of(status.message)
    return None


def reason_of(message: str) -> str:
    """The exception at the end of Serve's message, without the traceback before it."""
    message = message.strip()
    _, found, reason = message.rpartition(_ENGINE_START_ERROR)
    if found:
        return reason.strip()
    return message.splitlines()[-1].strip() if message else "it failed, and Serve does not say why"


def _progress(status: ApplicationStatusOverview) -> str:
    parts = [_progress_of(name, deployment) for name, deployment in sorted(status.deployments.items())]
    return "Starting " + ("; ".join(parts) or "the deployments")


def _progress_of(name: str, deployment: DeploymentStatusOverview) -> str:
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(deployment.replica_states.items()))
    # Serve says here what it waits for, such as resources that the cluster doesn't have.
    message = deployment.message.strip().splitlines()
    return f"{name.lower()}: {states or 'waiting'}" + (f" ({message[0]})" if message else "")
