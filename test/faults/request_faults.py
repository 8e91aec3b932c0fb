"""Faults in what is asked of the node: parameters, services, transitions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fault import Act, Fault, SkipError, expect
from lifecycle_msgs.srv import ChangeState
from std_srvs.srv import SetBool, Trigger
from support.node_client import TRANSITIONS, image
from support.waiting import wait_until

if TYPE_CHECKING:
    from bench import Bench


def refused(name: str, value: Any, words: str) -> Act:
    """The parameter is refused with the words, and the node goes on as before."""

    def act(bench: Bench) -> str:
        result = bench.client.set_parameters(**{name: value})
        expect(not result.successful, "accepted")
        expect(words in result.reason, f"refused, but the reason is '{result.reason}'")
        return f'refused: "{result.reason[:140]}"'

    return act


def impossible_transition(bench: Bench) -> str:
    for label in ("activate", "configure", "cleanup"):
        expect(not bench.client.transition(label), f"{label} of an active node succeeded")
    expect(bench.client.state() == "active", f"the node is {bench.client.state()}")
    return "activate, configure and cleanup of an active node answered with success = false"


def enable_off_on(bench: Bench) -> str:
    def switch(on: bool) -> None:
        answer = bench.client.call(SetBool, "enable", SetBool.Request(data=on))
        expect(answer.success, answer.message)

    switch(False)
    before = bench.count("dropped: paused")
    try:

        def counted() -> bool:
            stamp = bench.client.send(image())
            expect(not bench.await_outputs(stamp, 0.2), "an output while switched off")
            return bench.count("dropped: paused") > before

        wait_until(counted, "'dropped: paused'")
    finally:
        switch(True)
    return "images counted as paused meanwhile, no output"


def two_transitions(bench: Bench) -> str:
    expect(bench.client.transition("deactivate"), "deactivate failed")
    expect(bench.client.transition("cleanup"), "cleanup failed")
    request = ChangeState.Request()
    request.transition.id = TRANSITIONS["configure"]
    answers = [bench.client.call_async(ChangeState, "change_state", request) for _ in range(2)]
    succeeded = [answer(120.0).success for answer in answers]
    expect(sorted(succeeded) == [False, True], f"answers {succeeded}")
    expect(bench.client.transition("activate"), "activate failed")
    return "one configured, the other answered with success = false"


def cycles(bench: Bench) -> str:
    threads, memory = _threads(bench), _rss(bench)
    for _ in range(10):
        bench.back_to_normal()
    grown = _rss(bench) - memory
    expect(_threads(bench) <= threads + 1, f"threads {threads} -> {_threads(bench)}")
    return f"10 cycles, threads {threads} -> {_threads(bench)}, memory {grown:+.0f} MB"


def _threads(bench: Bench) -> int:
    return int(_status(bench, "Threads"))


def _rss(bench: Bench) -> float:
    return int(_status(bench, "VmRSS").split()[0]) / 1024


def _status(bench: Bench, key: str) -> str:
    with open(f"/proc/{bench.node.pid}/status") as status:
        return next(line.split(":", 1)[1].strip() for line in status if line.startswith(key + ":"))


def during_load(bench: Bench) -> str:
    """Everything at once while images come."""
    stop = time.monotonic() + 3.0
    asked = 0
    while time.monotonic() < stop:
        bench.client.send(image())
        expect(bench.client.set_parameters(threshold=0.2 + asked % 5 / 10).successful, "refused")
        asked += 1
    expect(bench.client.set_parameters(threshold=-1.0).successful, "refused")
    return f"{asked} changes accepted between images"


def calibrate_twice(bench: Bench) -> str:
    if not bench.client.has_service("calibrate"):
        raise SkipError("the node has no service ~/calibrate")
    ask: Callable[[], Any] = lambda: bench.client.call(Trigger, "calibrate", Trigger.Request())  # noqa: E731
    first, second = ask(), ask()
    expect(first.success, f"the first was refused: {first.message}")
    expect(not second.success, f"the second was accepted: {second.message}")
    return f'the second refused: "{second.message[:140]}"'


FAULTS = [
    Fault("parameters", "out_of_range", "threshold 2.5", "refused with the reason",
          refused("threshold", 2.5, "threshold")),
    Fault("parameters", "not_a_number", "max_input_age NaN", "refused with the reason",
          refused("max_input_age", math.nan, "max_input_age")),
    Fault("parameters", "wrong_type", "threshold 'high'", "refused with the reason",
          refused("threshold", "high", "type")),
    Fault("parameters", "model_change", "another profile while active",
          "refused: only while unconfigured", refused("profile", "light", "unconfigured")),
    Fault("parameters", "read_only", "autostart changed at run time", "refused",
          refused("autostart", False, "read-only")),
    Fault("parameters", "unknown", "a parameter that does not exist", "refused",
          refused("no_such_parameter", 1, "declared")),
    Fault("parameters", "many_changes", "the threshold changed between all images for 3 s",
          "accepted, images go on", during_load),
    Fault("services", "bad_transitions", "activate, configure, cleanup while active",
          "refused, the node stays active", impossible_transition),
    Fault("services", "enable_off_on", "~/enable false, images, ~/enable true",
          "images counted as paused, then processed", enable_off_on),
    Fault("services", "two_transitions", "configure asked twice at once",
          "one succeeds, one is refused", two_transitions),
    Fault("services", "cycles", "deactivate, cleanup, configure, activate ten times",
          "works each time, no more threads", cycles),
    Fault("services", "calibrate_twice", "~/calibrate asked while calibrating",
          "the second is refused", calibrate_twice),
]  # fmt: skip
