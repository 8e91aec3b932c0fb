"""The demo's child processes."""

from __future__ import annotations

import signal
from pathlib import Path

from anomaly_detector_ros.demo.processes import ProcessGroup, graph_environment, wait_until


def test_children_hear_sigint_although_their_parent_ignores_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessGroup(graph_environment(tmp_path, domain=1), tmp_path) as processes:
            processes.start("server", "http.server", "--bind", "127.0.0.1", "0")
            assert wait_until(lambda: "Serving" in processes.output("server"), 30)
            assert processes.stop("server") == 0
    finally:
        signal.signal(signal.SIGINT, before)
