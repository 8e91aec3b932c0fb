"""Signals to the node, at any moment."""

from __future__ import annotations

import signal
import time

from bench import Bench
from fault import Act, Fault, expect
from support.node_client import image

EXIT_LIMIT = 3.0


def ends(number: signal.Signals, moment: str) -> Act:
    """The signal while loading or inferring ends the process in time, with code 0."""

    def act(bench: Bench) -> str:
        if moment == "loading":
            bench.launch().wait_for("loading the models")
        else:
            bench.live()
            for _ in range(20):
                bench.client.send(image())
        code, seconds = bench.node.end(number)
        expect(code == 0, f"exit code {code}")
        expect("Traceback" not in bench.node.output, "a traceback in the log")
        expect(seconds < EXIT_LIMIT, f"took {seconds:.2f} s")
        return f"exit code 0 after {seconds:.2f} s"

    return act


def killed(bench: Bench) -> str:
    bench.client.send(image())
    code, _ = bench.node.end(signal.SIGKILL)
    return f"exit code {code}, nothing to clean up"


def stopped(bench: Bench) -> str:
    bench.node.send_signal(signal.SIGSTOP)
    for _ in range(20):
        bench.client.send(image())
        time.sleep(0.2)
    bench.node.send_signal(signal.SIGCONT)
    bench.good_frame()
    return "stood still for 4 s, went on by itself"


FAULTS = [
    *(
        Fault("signals", f"{number.name}_{moment}", f"{number.name} while {moment}",
              f"exit code 0 within {EXIT_LIMIT:g} s; started again it works",
              ends(number, moment), Bench.restart, needs_node=moment == "inferring")
        for moment in ("inferring", "loading") for number in (signal.SIGINT, signal.SIGTERM)
    ),
    Fault("signals", "SIGSTOP", "SIGSTOP for 4 s while images come, then SIGCONT",
          "goes on; what is too old is dropped", stopped),
    Fault("signals", "SIGKILL", "SIGKILL while inferring", "started again it works", killed,
          Bench.restart),
]  # fmt: skip
