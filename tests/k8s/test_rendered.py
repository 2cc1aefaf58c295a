"""What the rendered RayService says, for the promises that the chart makes."""

import json
import pkgutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml
from tests.k8s.helm_cli import CHART, Helm, Rendered, container, environment

ON_CLAIM = {"modelVolume.existingClaim": "checkpoints", "config.model.path": "/models/gpt-oss-20b"}


def volumes(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {volume["name"]: volume for volume in template["spec"]["volumes"]}


def mounts(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["name"]: mount for mount in container(template)["volumeMounts"]}


def test_ports_of_service_pods_and_serve_agree(rendered: Rendered) -> None:
    """KubeRay finds the service's ports by their names in the head's container."""
    serve = rendered.serve_config
    expected = {"serve": serve["http_options"]["port"], "serve-grpc": serve["grpc_options"]["port"]}
    assert serve["http_options"]["host"] == "0.0.0.0"
    for template in rendered.pod_templates.values():
        ports = {port["name"]: port["containerPort"] for port in container(template)["ports"]}
        assert expected.items() <= ports.items()
        assert len(set(ports.values())) == len(ports)
    service = rendered.spec["serveService"]["spec"]
    assert {port["name"]: port["port"] for port in service["ports"]} == expected
    assert {port["targetPort"] for port in service["ports"]} == expected.keys()
    protocols = {port["name"]: port["appProtocol"] for port in service["ports"]}
    assert protocols == {"serve": "http", "serve-grpc": "kubernetes.io/h2c"}


def test_grpc_servicers_can_be_imported(defaults: Rendered) -> None:
    functions = defaults.serve_config["grpc_options"]["grpc_servicer_functions"]
    names = [pkgutil.resolve_name(path).__name__ for path in functions]
    assert names == [
        "add_chat_service",
        "add_completion_service",
        "add_responses_service",
        "add_HealthServicer_to_server",
    ]


def test_shared_memory(rendered: Rendered) -> None:
    for template in rendered.pod_templates.values():
        assert mounts(template)["shm"]["mountPath"] == "/dev/shm"
        assert volumes(template)["shm"]["emptyDir"]["medium"] == "Memory"
        assert volumes(template)["shm"]["emptyDir"]["sizeLimit"]


def test_pods_are_restricted(rendered: Rendered) -> None:
    """As the Pod Security Standard `restricted` wants it, but for host paths."""
    for template in rendered.pod_templates.values():
        pod, settings = template["spec"]["securityContext"], container(template)["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert settings["allowPrivilegeEscalation"] is False
        assert settings["capabilities"] == {"drop": ["ALL"]}
        assert template["spec"]["automountServiceAccountToken"] is False


def test_probes(rendered: Rendered) -> None:
    for name, template in rendered.pod_templates.items():
        ray = {"path": "/api/healthz", "port": 52365}
        proxy = {"path": "/-/healthz", "port": "serve"}
        assert container(template)["livenessProbe"]["httpGet"] == ray
        assert container(template)["readinessProbe"]["httpGet"] == (ray if name == "head" else proxy)


def test_pods_outlive_their_drain(rendered: Rendered) -> None:
    for name, template in rendered.pod_templates.items():
        sleep = container(template).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert template["spec"]["terminationGracePeriodSeconds"] > sleep
        assert sleep == 0 or name != "head"


def test_streams_outlive_what_carries_them(rendered: Rendered) -> None:
    delay = rendered.spec["rayClusterDeletionDelaySeconds"]
    for template in rendered.pod_templates.values():
        assert environment(template)["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == str(delay)


def test_without_volume_the_demo_model_comes_from_the_image(defaults: Rendered) -> None:
    for template in defaults.pod_templates.values():
        assert volumes(template).keys() == {"shm"}
    assert defaults.application["args"]["model"] == {"path": "demo"}


def test_claim_is_mounted_read_only_where_engines_run(helm: Helm) -> None:
    rendered = helm.template({**ON_CLAIM, "modelVolume.subPath": "openai"})
    templates = rendered.pod_templates
    assert {name for name, template in templates.items() if "model" in volumes(template)} == {"engine"}
    claim = volumes(templates["engine"])["model"]["persistentVolumeClaim"]
    assert claim == {"claimName": "checkpoints", "readOnly": True}
    expected = {"name": "model", "mountPath": "/models", "readOnly": True, "subPath": "openai"}
    assert mounts(templates["engine"])["model"] == expected


def test_host_path(helm: Helm) -> None:
    rendered = helm.template({"modelVolume": {"hostPath": "/srv"}, "config.model.path": "/models/20b"})
    engine = rendered.pod_templates["engine"]
    assert volumes(engine)["model"]["hostPath"] == {"path": "/srv", "type": "Directory"}
    assert mounts(engine)["model"]["readOnly"] is True


def test_api_keys_reach_the_gateways_alone(helm: Helm, defaults: Rendered) -> None:
    rendered = helm.template({"apiKeys.existingSecret": "chorus-keys", "apiKeys.key": "k.yaml"})
    templates = rendered.pod_templates
    assert {name for name, template in templates.items() if "api-keys" in volumes(template)} == {"gateway"}
    secret = volumes(templates["gateway"])["api-keys"]["secret"]
    assert secret == {"secretName": "chorus-keys", "items": [{"key": "k.yaml", "path": "k.yaml"}]}
    mount = mounts(templates["gateway"])["api-keys"]
    assert mount == {"name": "api-keys", "mountPath": "/etc/chorus/api-keys", "readOnly": True}
    assert rendered.application["args"]["auth"] == {"keys_file": "/etc/chorus/api-keys/k.yaml"}
    assert "auth" not in defaults.application["args"]


def test_the_stores_url_reaches_the_gateways_alone(helm: Helm, defaults: Rendered) -> None:
    rendered = helm.template({"store.existingSecret": "chorus-store", "store.key": "dsn", "store.ttlDays": 7})
    templates = rendered.pod_templates
    assert {name for name, template in templates.items() if "store" in volumes(template)} == {"gateway"}
    secret = volumes(templates["gateway"])["store"]["secret"]
    assert secret == {"secretName": "chorus-store", "items": [{"key": "dsn", "path": "dsn"}]}
    mount = mounts(templates["gateway"])["store"]
    assert mount == {"name": "store", "mountPath": "/etc/chorus/store", "readOnly": True}
    assert rendered.application["args"]["store"] == {"url_file": "/etc/chorus/store/dsn", "ttl_days": 7}
    assert "store" not in defaults.application["args"]


def test_gpus_are_requested_and_limited(helm: Helm) -> None:
    rendered = helm.template({"config.workers.shards": 8, "workerGroups.engine.gpus": 8})
    resources = container(rendered.pod_templates["engine"])["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == 8
    assert resources["limits"]["memory"] == "32Gi"
    assert "nvidia.com/gpu" not in container(rendered.pod_templates["gateway"])["resources"]["limits"]


def test_cpu_values_want_no_gpu(helm: Helm) -> None:
    rendered = helm.template(files=[CHART / "values-cpu.yaml"])
    assert rendered.pod_templates.keys() == {"head", "engine"}
    assert "gpu" not in yaml.safe_dump(rendered.spec["rayClusterConfig"]["workerGroupSpecs"])
    assert rendered.application["args"]["workers"]["num_gpus"] == 0


def test_head_gives_no_resources_away(rendered: Rendered) -> None:
    params = rendered.head["rayStartParams"]
    assert params["num-cpus"] == params["num-gpus"] == "0"


def test_group_sizes_are_fixed(rendered: Rendered) -> None:
    """KubeRay wants both bounds where no autoscaler runs."""
    for group in rendered.spec["rayClusterConfig"]["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_image_by_tag_and_by_digest(helm: Helm, defaults: Rendered) -> None:
    digest = "sha256:" + "0" * 64
    pinned = helm.template({"image": {"repository": "r.example.com/c", "tag": "1", "digest": digest}})
    tagged = helm.template({"image": {"repository": "r.example.com/c", "tag": "1"}})
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
    expected = {id(pinned): f"r.example.com/c@{digest}", id(tagged): "r.example.com/c:1"}
    expected[id(defaults)] = f"chorus-serve:{version}"
    for rendered in (pinned, tagged, defaults):
        images = {container(template)["image"] for template in rendered.pod_templates.values()}
        assert images == {expected[id(rendered)]}


def test_pull_secrets_and_service_account(helm: Helm) -> None:
    rendered = helm.template({"image.pullSecrets": ["one", "two"], "serviceAccount": {"create": False, "name": "x"}})
    assert rendered.of_kind("ServiceAccount") == []
    for template in rendered.pod_templates.values():
        assert template["spec"]["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
        assert template["spec"]["serviceAccountName"] == "x"


def test_scheduling_of_a_group_stays_in_it(helm: Helm) -> None:
    scheduling = {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
        ],
    }
    rendered = helm.template({f"workerGroups.engine.{key}": value for key, value in scheduling.items()})
    engine, gateway = rendered.pod_templates["engine"], rendered.pod_templates["gateway"]
    (spread,) = engine["spec"].pop("topologySpreadConstraints")
    selector = spread.pop("labelSelector")["matchLabels"]
    assert [spread] == scheduling.pop("topologySpreadConstraints")
    assert selector.items() <= engine["metadata"]["labels"].items()
    assert not selector.items() <= gateway["metadata"]["labels"].items()
    for key, value in scheduling.items():
        assert engine["spec"][key] == value
        assert key not in gateway["spec"]


def test_own_environment_comes_after_the_charts(helm: Helm) -> None:
    rendered = helm.template({"workerGroups.engine.env": [{"name": "NCCL_DEBUG", "value": "WARN"}]})
    assert environment(rendered.pod_templates["engine"])["NCCL_DEBUG"] == "WARN"
    assert "NCCL_DEBUG" not in environment(rendered.pod_templates["gateway"])


@pytest.mark.parametrize(("policy", "new_cluster"), [("Rolling", False), ("NewCluster", True)])
def test_a_change_of_config_starts_a_new_cluster_only_if_asked(helm: Helm, policy: str, new_cluster: bool) -> None:
    """KubeRay starts a cluster when rayClusterConfig changes, replica counts of groups aside."""

    def cluster_of(config: dict[str, Any]) -> Any:
        values = {"upgrade.onConfigChange": policy, "workerGroups.gateway.replicas": 3, **config}
        return helm.template(values).spec["rayClusterConfig"]

    before = cluster_of({})
    assert (cluster_of({"config.workers.max_num_seqs": 64}) != before) is new_cluster
    assert cluster_of({"config.gateway.replicas": 4}) == before


def test_a_new_chart_version_alone_changes_no_pod(rendered: Rendered) -> None:
    for template in rendered.pod_templates.values():
        assert "helm.sh/chart" not in template["metadata"]["labels"]


def test_disruption_budgets_follow_group_sizes(helm: Helm) -> None:
    rendered = helm.template({"workerGroups.gateway.replicas": 5})
    budgets = {budget["metadata"]["name"]: budget["spec"] for budget in rendered.of_kind("PodDisruptionBudget")}
    assert budgets.keys() == {"test-chorus-gateway"}
    assert budgets["test-chorus-gateway"]["minAvailable"] == 4


def test_names_fit_kuberay(helm: Helm) -> None:
    long = helm.template(release="a-release-with-a-name-of-exactly-fifty-three-characte")
    assert len(long.ray_service["metadata"]["name"]) <= 47
    same = helm.template(release="chorus")
    assert same.ray_service["metadata"]["name"] == "chorus"
    assert same.spec["serveService"]["metadata"]["name"] == "chorus-serve-svc"


class _Models(BaseHTTPRequestHandler):
    """Answers /v1/models with the server's `models`, and /health, as a server with API keys does whom none is shown."""

    server: "_ModelsServer"

    def do_GET(self) -> None:
        is_open = self.path == "/health" or (self.path == "/v1/models" and not self.server.has_keys)
        self.send_response(200 if is_open else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": name} for name in self.server.models]}).encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silence."""


class _ModelsServer(HTTPServer):
    models: list[str]
    has_keys = False


@pytest.mark.parametrize("models", [["chorus-demo"], []])
def test_helms_own_test_asks_for_models(defaults: Rendered, models: list[str]) -> None:
    done = run_helms_test(defaults, models, has_keys=False)
    assert done.returncode == (0 if models else 1)
    assert done.stdout.split() == models


def test_helms_own_test_has_no_api_key(helm: Helm, defaults: Rendered) -> None:
    closed = helm.template({"apiKeys.existingSecret": "chorus-keys"})
    assert run_helms_test(closed, [], has_keys=True).returncode == 0
    assert run_helms_test(defaults, ["chorus-demo"], has_keys=True).returncode == 1


def run_helms_test(rendered: Rendered, models: list[str], *, has_keys: bool) -> subprocess.CompletedProcess[str]:
    (pod,) = rendered.of_kind("Pod")
    (checker,) = pod["spec"]["containers"]
    assert checker["command"] == ["python", "-c"]
    with _ModelsServer(("127.0.0.1", 0), _Models) as server:
        server.models, server.has_keys = models, has_keys
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        script = checker["args"][0].replace("test-chorus-serve-svc:8000", f"127.0.0.1:{server.server_port}")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
        thread.join()
    return done
