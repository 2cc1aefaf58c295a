"""`chorus batch`: a batch job on the command line."""

import asyncio
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from chorus_cluster.batch.errors import BatchError, InputUnusable
from chorus_cluster.batch.http_sender import HttpSender
from chorus_cluster.batch.journal import Journal
from chorus_cluster.batch.runner import Counts, RetryPolicy, Runner, RunnerLimits
from chorus_cluster.batch.survey import Survey, survey_input

# As shells have it: 130 after Ctrl-C.
_EXIT_SIGNALLED = 128
_EXIT_FAILED = 1
_REFRESH_S = 0.2
# Where no bar can be drawn (a log file), a line in its place.
_REPORT_INTERVAL_S = 30.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What the command line says, checked."""

    input_path: Path
    output_path: Path
    url: str
    api_key: str | None
    limits: RunnerLimits
    policy: RetryPolicy
    timeout_s: float


def batch(
    input_path: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, in OpenAI's batch format.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the answers go; also the job's journal.")],
    url: Annotated[str, typer.Option(envvar="CHORUS_URL", help="Where the server is.")] = "http://127.0.0.1:8000",
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Requests under way at once.")] = 32,
    max_attempts: Annotated[int, typer.Option(min=1, help="Attempts for a row that the server can't take.")] = 12,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to wait for a server that is gone.")] = 300.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one request may take.")] = 600.0,
    api_key: Annotated[str | None, typer.Option(envvar="CHORUS_API_KEY", help="Sent as a bearer token.")] = None,
) -> None:
    """Answer every request of a file. Stopped or killed, the same command goes on where it was.

    Answers are written in the order in which they are ready; custom_id says whose they are. A line that is no valid
    request becomes an error record. Exits with 0 when every row has its record, with 130 after Ctrl-C, and with 1
    when the job can't go on.
    """
    options = BatchOptions(
        input_path,
        output,
        url,
        api_key,
        RunnerLimits(concurrency=concurrency),
        RetryPolicy(max_attempts=max_attempts, patience_s=patience),
        timeout,
    )
    console = Console(stderr=True)
    try:
        with console.status(f"Reading {escape(str(input_path))}"):
            survey = survey_input(input_path, options.limits.max_line_bytes)
        stopped_by = asyncio.run(_run(options, survey, console))
    except BatchError as error:
        _print(console, f"chorus batch: {error}.")
        raise typer.Exit(_EXIT_FAILED) from None
    except KeyboardInterrupt:
        stopped_by = signal.SIGINT
    raise typer.Exit(0 if stopped_by is None else _EXIT_SIGNALLED + stopped_by)


async def _run(options: BatchOptions, survey: Survey, console: Console) -> signal.Signals | None:
    """The signal that stopped the job, or None where every row is done."""
    if _is_same_file(options.input_path, options.output_path):
        raise InputUnusable("input and output are the same file")
    sender = HttpSender(
        options.url, api_key=options.api_key, concurrency=options.limits.concurrency, timeout_s=options.timeout_s
    )
    async with sender:
        with Journal(options.output_path, survey.fingerprint, survey.num_lines) as journal:
            runner = Runner(options.input_path, survey, journal, sender, limits=options.limits, policy=options.policy)
            try:
                if runner.counts.is_complete:
                    return None
                await sender.check_server()
                return await _run_until_signal(runner, console)
            finally:
                _summarize(runner.counts, options.output_path, console)


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one is not there, or can't be looked at: opening it says why
        return False


async def _run_until_signal(runner: Runner, console: Console) -> signal.Signals | None:
    """The first Ctrl-C (or SIGTERM) lets the rows under way finish, a second one drops them."""
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(_run_with_progress(runner, console))
    received: list[signal.Signals] = []

    def handle(number: signal.Signals) -> None:
        if received:
            running.cancel()
        else:
            console.print("Finishing the requests under way; once more to drop them.")
            runner.stop()
        received.append(number)

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, handle, number)
    try:
        await asyncio.wait([running])
        is_complete = not running.cancelled() and running.result()
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
    return None if is_complete else received[0]


async def _run_with_progress(runner: Runner, console: Console) -> bool:
    """Whether every row is done."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=runner.counts.num_rows, completed=runner.counts.num_done, rate="")

        async def refresh() -> None:
            reported_at = time.monotonic()
            while True:
                counts = runner.counts
                speed = progress.tasks[0].speed
                rate = f"{speed:.1f} rows/s" if speed else ""
                progress.update(bar, completed=counts.num_done, rate=rate, description=_remarks(counts))
                if not console.is_terminal and time.monotonic() - reported_at >= _REPORT_INTERVAL_S:
                    reported_at = time.monotonic()
                    _print(console, f"{counts.num_done} of {counts.num_rows} rows. {_remarks(counts)}")
                await asyncio.sleep(_REFRESH_S)

        refreshing = asyncio.create_task(refresh())
        try:
            return await runner.run()
        finally:
            refreshing.cancel()


def _remarks(counts: Counts) -> str:
    remarks = [f"{counts.num_failed} failed"] if counts.num_failed else []
    remarks += [f"waiting: {counts.trouble}"] if counts.trouble else []
    return ", ".join(remarks)


def _summarize(counts: Counts, path: Path, console: Console) -> None:
    done = f"{counts.num_done} of {counts.num_rows} rows are in {path}, {counts.num_failed} of them failed."
    rest = "" if counts.is_complete else " The same command goes on from here."
    _print(console, done + rest)


def _print(console: Console, text: str) -> None:
    """Paths and messages as they are: no markup, no emoji, no colors, no wrapping."""
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
