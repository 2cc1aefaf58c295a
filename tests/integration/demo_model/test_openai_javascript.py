"""OpenAI's client for JavaScript, from npm, against `chorus serve`: javascript/client.test.mjs has the cases."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from tests.integration.cluster import Cluster, wait_until

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "javascript"


@pytest.fixture(scope="module")
def javascript() -> Path:
    """The folder with the client, installed as package-lock.json has it."""
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=120)
    assert installed.returncode == 0, installed.stderr
    return FOLDER


def test_the_client_gets_along(demo_cluster: Cluster, javascript: Path) -> None:
    aborted = demo_cluster.total("chorus_gateway_chats_total", outcome="client_left")
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap", "client.test.mjs"],
        cwd=javascript,
        env={"PATH": os.environ["PATH"], "OPENAI_BASE_URL": f"{demo_cluster.url}/v1", "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for name, count in re.findall(r"^# (pass|fail|skipped|todo) (\d+)$", done.stdout, re.M)}
    written = len(re.findall(r"^test\(", (javascript / "client.test.mjs").read_text(), re.M))
    assert counts == {"pass": written, "fail": 0, "skipped": 0, "todo": 0}
    # One case aborts a stream, one a request that waits.
    wait_until(
        lambda: demo_cluster.total("chorus_gateway_chats_total", outcome="client_left") == aborted + 2,
        10,
        "the aborted requests have ended",
    )
    wait_until(lambda: demo_cluster.total("chorus_requests_running") == 0, 10, "nothing runs")
