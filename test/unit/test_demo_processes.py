"""Processes of a graph of their own."""

from __future__ import annotations

import os
import subprocess
import sys

from anomaly_detector_ros.demo.processes import own_domain

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
