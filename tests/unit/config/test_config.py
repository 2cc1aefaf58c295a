from pathlib import Path

import pytest
import yaml

from chorus_cluster.config import AppConfig, ClusterConfig, ConfigError, load, parse, to_mapping


def test_defaults_serve_the_demo_model_on_the_usual_ports() -> None:
    config = load(None, {})
    assert config.model.served_name == "chorus-demo"
    assert (config.http.host, config.http.port, config.grpc.port) == ("127.0.0.1", 8000, 9000)
    assert config.data_plane.haproxy and config.data_plane.throughput_optimized


def test_the_file_is_read_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "chorus.yaml"
    file.write_text(
        "model: {path: /models/mine}\nhttp: {port: 8080}\nworkers:\n  replicas: 3\n  kv: {num_blocks: 64}\n"
    )
    config = load(file, {"http.port": 8081, "grpc.port": 9001})
    assert config.model.served_name == "mine"
    assert config.http.port == 8081
    assert config.grpc.port == 9001
    assert config.workers.replicas == 3
    assert config.workers.kv.num_blocks == 64


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "chorus.yaml"
    file.write_text("# nothing yet\n")
    assert load(file, {}) == ClusterConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers: {replica: 2}", "workers.replica: unknown key; did you mean 'replicas'?"),
        ("worker: {replicas: 2}", "worker: unknown key; did you mean 'workers'?"),
        ("workers: {kv: {blocksize: 8}}", "workers.kv.blocksize: unknown key; did you mean 'block_size'?"),
        ("http: {zzz: 1}", "http.zzz: unknown key; known here: host, port"),
        ("http: {port: '8000'}", "http.port: input should be a valid integer (found '8000')"),
        ("http: {port: 70000}", "http.port: input should be less than or equal to 65535 (found 70000)"),
        ("workers: {replicas: 0}", "workers.replicas: input should be greater than or equal to 1 (found 0)"),
        ("workers: {replicas: true}", "workers.replicas: input should be a valid integer (found True)"),
        ("workers: {merge_interval_s: .inf}", "workers.merge_interval_s: input should be a finite number"),
        ("- 1", "must be a mapping of sections, not list"),
        ("model: [", "is not valid YAML"),
        ("model: {name: 2026-13-01}", "is not valid YAML: month must be in 1..12"),
        ("http: {port: !!int ''}", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML: maximum recursion depth exceeded"),
        ("workers: {replicas: 2}\nhttp: {}\nworkers: {shards: 2}", "the key 'workers' stands here twice"),
        ("http: {port: 1, port: 2}", "the key 'port' stands here twice"),
        ("workers:", "workers: must be a section (found None)"),
        (
            "workers: {kv_cache_dtype: fp8}",
            "workers.kv_cache_dtype: input should be 'auto' or 'fp8_e4m3' (found 'fp8')",
        ),
        ("workers: {kv: 3}", "workers.kv: must be a section (found 3)"),
    ],
)
def test_a_bad_file_is_refused_by_the_key_s_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "chorus.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "chorus.yaml"
    file.write_text("gateway: &each {replicas: 2, num_cpus: 0.5}\nworkers: {<<: *each, replicas: 3}\n")
    config = load(file, {})
    assert (config.workers.replicas, config.workers.num_cpus, config.gateway.replicas) == (3, 0.5, 2)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "chorus.yaml"
    file.write_text("http: {prot: 1}\nworkers: {replicas: no}\n")
    with pytest.raises(ConfigError, match=r"(?s)http\.prot.*workers\.replicas|workers\.replicas.*http\.prot"):
        load(file, {})


def test_a_flag_under_something_that_is_no_section_is_an_error_not_a_crash(tmp_path: Path) -> None:
    file = tmp_path / "chorus.yaml"
    file.write_text("http: 8000\n")
    with pytest.raises(ConfigError, match="http: "):
        load(file, {"http.port": 8080})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read .*nowhere\.yaml: No such file"):
        load(tmp_path / "nowhere.yaml", {})


def test_a_serve_config_s_args_take_the_application_s_sections_only() -> None:
    assert parse({"workers": {"replicas": 2}}, AppConfig).workers.replicas == 2
    with pytest.raises(
        ConfigError, match="http: unknown key; known here: model, gateway, auth, store, workers, routing, logging"
    ):
        parse({"http": {"port": 1}}, AppConfig)


def test_a_configuration_survives_the_way_through_a_mapping() -> None:
    config = load(None, {"workers.kv.block_size": 8, "model.name": "mine"})
    assert parse(to_mapping(config), ClusterConfig) == config
    assert parse(to_mapping(config.app), AppConfig) == config.app


def test_the_documented_file_has_every_setting_with_its_default() -> None:
    file = Path(__file__).parents[3] / "docs" / "chorus.yaml"
    assert yaml.safe_load(file.read_text()) == to_mapping(ClusterConfig())
    assert load(file, {}) == ClusterConfig()
