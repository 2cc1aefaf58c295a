"""`chorus serve`: the whole cluster on this machine, or the application on a cluster that is there."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Self

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from chorus_cluster.auth.key_file import KeyFile
from chorus_cluster.auth.keys import KeyFileError
from chorus_cluster.cli.local_ray import JoinedRay, LocalRay, StartError
from chorus_cluster.config import ClusterConfig, ConfigError, load
from chorus_cluster.store.url import StoreError, store_url

_QUESTION = "What is Chorus?"
_ANSWER_TIMEOUT_S = 120.0
_MAX_ANSWER_TOKENS = 256
_KEY_VARIABLE = "CHORUS_API_KEY"
_STORE_FILE = "store.sqlite3"

_OVERRIDES = {
    "model": "model.path",
    "name": "model.name",
    "shards": "workers.shards",
    "workers": "workers.replicas",
    "gateways": "gateway.replicas",
    "host": "http.host",
    "http_port": "http.port",
    "grpc_port": "grpc.port",
    "address": "ray.address",
}


def serve(
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings, in YAML; options here win.")] = None,
    model: Annotated[str | None, typer.Option(metavar="PATH", help="A checkpoint's folder, or demo.")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker replicas.")] = None,
    shards: Annotated[int | None, typer.Option(help="Shards of each worker's engine.")] = None,
    gateways: Annotated[int | None, typer.Option(help="Gateway replicas.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    http_port: Annotated[int | None, typer.Option("--http-port", "--port", help="Port of the HTTP API.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of the gRPC API.")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster to join.")] = None,
) -> None:
    """Serve a model until Ctrl-C. Without options: the built-in demo model, on ports 8000 and 9000."""
    given = locals()
    overrides = {key: given[option] for option, key in _OVERRIDES.items() if given[option] is not None}
    console = Console(highlight=False, soft_wrap=True)
    try:
        _serve(load(config, overrides), console)
    except (ConfigError, KeyFileError, StoreError, StartError) as error:
        console.print(f"chorus serve: {error}", style="red", markup=False)
        raise typer.Exit(1) from None


def _serve(config: ClusterConfig, console: Console) -> None:
    if config.auth.keys_file is not None and config.ray.address is None:
        # Else the gateways would say so, a while later. On a cluster of others the file is on its nodes.
        KeyFile(Path(config.auth.keys_file))
    if config.ray.address is None and (url := store_url(config.store)) is not None:
        # As the keys. Other commands, and a start without it, need no SQLAlchemy.
        from chorus_cluster.store.database import Database

        Database(url)
    _raise_on_signals()
    try:
        with Progress(console) as progress:
            address = config.ray.address
            progress("Starting Ray" if address is None else f"Joining the Ray cluster at {address}")
            with LocalRay(config) if address is None else JoinedRay(address) as ray_cluster:
                # Ray has installed handlers of its own.
                _raise_on_signals()
                try:
                    _run(_with_store(config, ray_cluster), console, progress)
                except StartError:
                    progress.end()
                    console.print(f"Ray's logs: {ray_cluster.logs}", markup=False)
                    raise
    except KeyboardInterrupt:
        console.print("Ended.")


def _with_store(config: ClusterConfig, ray_cluster: LocalRay | JoinedRay) -> ClusterConfig:
    """A cluster of our own keeps responses in its own folder, unless it was told where."""
    if not isinstance(ray_cluster, LocalRay) or store_url(config.store) is not None:
        return config
    return replace(config, store=replace(config.store, url=f"sqlite:///{ray_cluster.folder / _STORE_FILE}"))


def _run(config: ClusterConfig, console: Console, progress: "Progress") -> None:
    # Imports Ray, which reads its environment then: not before the cluster has set it.
    from chorus_cluster.cli.deploy import deploy, shut_down

    try:
        deploy(config, progress)
        key = os.environ.get(_KEY_VARIABLE)
        if config.auth.keys_file is None or key:
            progress("Asking the model a question")
            answer = ask(_local_url(config), config.model.served_name, _QUESTION, key)
        else:
            answer = None
        progress.end()
        _announce(config, answer, console)
        while True:
            signal.pause()
    except StartError:
        if config.ray.address is not None:
            shut_down(is_ours=False)
        raise
    except KeyboardInterrupt:
        # A second one gets out of here, and what still runs is cut off.
        progress("Draining; Ctrl-C once more ends it at once")
        shut_down(is_ours=config.ray.address is None)
        progress("Ending Ray")


def ask(url: str, model: str, question: str, api_key: str | None = None) -> str:
    """The answer's text, by way of the HTTP API. Errors: StartError."""
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_completion_tokens": _MAX_ANSWER_TOKENS,
    }
    transport = httpx.HTTPTransport(retries=3)
    try:
        with httpx.Client(base_url=url, transport=transport, timeout=_ANSWER_TIMEOUT_S, trust_env=False) as client:
            response = client.post("/v1/chat/completions", json=body, headers=headers)
    except httpx.HTTPError as error:
        raise StartError(f"the server at {url} does not answer: {str(error) or type(error).__name__}") from None
    if response.status_code != httpx.codes.OK:
        raise StartError(f"the first question failed with HTTP {response.status_code}: {response.text}")
    return str(response.json()["choices"][0]["message"]["content"] or "").strip()


class Progress:
    """Shows what is going on: in place on a terminal, else a line whenever it changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("")
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def __call__(self, text: str) -> None:
        if text == self._last:
            return
        self._last = text
        if self._console.is_terminal:
            self._status.update(escape(text))
            self._status.start()
        else:
            self._console.print(text, markup=False)

    def end(self) -> None:
        self._status.stop()


def _announce(config: ClusterConfig, answer: str | None, console: Console) -> None:
    url = _local_url(config)
    console.print(f"Chorus serves [bold]{escape(config.model.served_name)}[/bold].")
    console.print(f"  HTTP  {url}  (OpenAI API under /v1, its documentation at /docs, metrics at /metrics)")
    console.print(f"  gRPC  {_connect_host(config)}:{config.grpc.port}  (chorus.v1, with reflection and health)")
    file = config.auth.keys_file
    console.print(f"  Keys  {file or 'none: whoever reaches it may use it (auth.keys_file)'}", markup=False)
    if answer is None:
        console.print(f"  It was not asked anything: {_KEY_VARIABLE} has no API key to ask with.")
    else:
        console.print(f"  It was asked: {_QUESTION}")
        console.print(f"  and answered: {answer or '(nothing)'}", markup=False)
    console.print("Ctrl-C stops it.")


def _connect_host(config: ClusterConfig) -> str:
    return "127.0.0.1" if config.http.host in ("0.0.0.0", "::", "") else config.http.host


def _local_url(config: ClusterConfig) -> str:
    return f"http://{_connect_host(config)}:{config.http.port}"


def _raise_on_signals() -> None:
    """SIGTERM does what Ctrl-C does. Ray installs handlers of its own while it starts: called after that."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
