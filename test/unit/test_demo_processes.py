"""Processes of a graph of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from anomaly_detector_ros.demo.processes import (
    ProcessGroup,
    graph_environment,
    own_domain,
    wait_until,
)

ASK = "from anomaly_detector_ros.demo.processes import own_domain; print(own_domain()); input()"


def test_domains_are_handed_out_and_come_back() -> None:
    ours = own_domain()
    assert own_domain() == ours
    found = []
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", ASK],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ,
        ) as asker:  # fmt: skip
            assert asker.stdout is not None
            found.append(int(asker.stdout.readline()))
            asker.communicate("\n")
    assert ours not in found
    assert all(10 <= domain <= 100 for domain in (ours, *found))


def test_children_hear_sigint_although_their_parent_ignores_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessGroup(graph_environment(tmp_path, domain=1), tmp_path) as processes:
            processes.start("server", "http.server", "--bind", "127.0.0.1", "0")
            assert wait_until(lambda: "Serving" in processes.output("server"), 30)
            assert processes.stop("server") == 0
    finally:
        signal.signal(signal.SIGINT, before)
