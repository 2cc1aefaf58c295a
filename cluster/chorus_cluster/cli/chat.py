"""`chorus chat`: a question or a conversation in the terminal, over the HTTP API."""

import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 600.0
_REASONING_STYLE = Style(dim=True, italic=True)


class EffortOption(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class ChatFailed(Exception):
    """The server refused or could not be reached; the message is for the user."""


def chat(
    question: Annotated[str | None, typer.Argument(help="Without one, a conversation from standard input.")] = None,
    url: Annotated[str, typer.Option(envvar="CHORUS_URL", help="Where the server is.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Which model; the first one served, if not given.")] = None,
    effort: Annotated[EffortOption, typer.Option(help="How long the model may reason.")] = EffortOption.MEDIUM,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; the server's default if not given.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="CHORUS_API_KEY", help="Sent as a bearer token.")] = None,
) -> None:
    """Ask a question. The answer streams, and the model's reasoning is set apart before it."""
    console = Console(highlight=False, soft_wrap=True)
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    options: dict[str, object] = {"reasoning_effort": effort.value}
    if temperature is not None:
        options["temperature"] = temperature
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=timeout) as client:
            options["model"] = model if model is not None else first_model(client)
            if question is not None:
                answer_one(client, options, [{"role": "user", "content": question}], console)
            else:
                converse(client, options, console)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _fail(f"can't reach {url}: {str(error) or type(error).__name__}")
    except ChatFailed as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def first_model(client: httpx.Client) -> str:
    """The first model that the server lists. Errors: ChatFailed."""
    response = client.get("/v1/models")
    if response.status_code != httpx.codes.OK:
        raise ChatFailed(_reason(response))
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise ChatFailed(f"{client.base_url} lists no model: is it a server of this API?") from None


def converse(client: httpx.Client, options: dict[str, object], console: Console) -> None:
    """Answers line by line, remembering what was said, until the input ends."""
    messages: list[dict[str, str]] = []
    is_terminal = sys.stdin.isatty()
    while True:
        try:
            line = console.input("[bold]> [/bold]" if is_terminal else "").strip()
        except EOFError:
            return
        if line:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": answer_one(client, options, messages, console)})


def answer_one(
    client: httpx.Client, options: dict[str, object], messages: list[dict[str, str]], console: Console
) -> str:
    """Prints the answer as it comes, and returns its text. Errors: ChatFailed, httpx.HTTPError."""
    body = {**options, "messages": messages, "stream": True}
    answer: list[str] = []
    is_reasoning = False
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            response.read()
            raise ChatFailed(_reason(response))
        for delta in deltas(response.iter_lines()):
            if reasoning := delta.get("reasoning"):
                is_reasoning = True
                _print_as_it_is(console, reasoning, _REASONING_STYLE)
            if content := delta.get("content"):
                if is_reasoning:
                    console.print("\n")
                    is_reasoning = False
                _print_as_it_is(console, content)
                answer.append(content)
    console.print()
    return "".join(answer)


def _print_as_it_is(console: Console, text: str, style: Style | None = None) -> None:
    """Of a plain string, rich would make emoji of `:x:` and spaces of tabs."""
    console.print(Segments([Segment(text, style)]), end="")


def deltas(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The deltas of a server-sent event stream of chat completion chunks. Errors: ChatFailed on an error event."""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise ChatFailed(event["error"]["message"])
        for choice in event.get("choices", ()):
            yield choice["delta"]


def _reason(response: httpx.Response) -> str:
    """The message of OpenAI's error body, or whatever the server said instead."""
    try:
        return f"{response.json()['error']['message']} (HTTP {response.status_code})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text.strip()}"


def _fail(message: str) -> NoReturn:
    # Standard output is the answer's.
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    console.print(f"chorus chat: {message}", style="red", markup=False)
    raise typer.Exit(1)
