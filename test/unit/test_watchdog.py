"""The watchdog: threads that hang are given up, and their return is noticed."""

from __future__ import annotations

import threading

import pytest
from support.waiting import wait_until
from test_worker import frame, settled

from anomaly_detector_ros.ros.counters import CameraCounters, Processed
from anomaly_detector_ros.ros.worker import MAX_HANGS, Turn, Watchdog, Worker

NEVER = 1e-9
"""A timeout that everything has exceeded, and one that nothing does."""
LONG = 1e9


class Device:
    """A device that hangs from time to time: serves at once, or when `answer` is set."""

    def __init__(self) -> None:
        self.hangs = False
        self.answer = threading.Event()
        self.counters = CameraCounters()
        self.worker = Worker([self.counters], self.serve)
        self.renewed = 0
        self.watchdog = Watchdog(self.worker, self.renew)
        self.entered = threading.Event()
        self.worker.start()

    def renew(self) -> None:
        self.renewed += 1

    def serve(self, turns: list[Turn]) -> None:
        self.entered.set()
        if self.hangs:
            assert self.answer.wait(10)
        turns[0].settle(Processed(0.0, 0.0, {}))

    def put(self) -> None:
        self.entered.clear()
        self.worker.put(0, frame("image"))
        assert self.entered.wait(5)


@pytest.fixture
def device() -> Device:
    made = Device()
    yield made
    made.answer.set()
    assert made.worker.stop(5)


def test_a_thread_that_works_or_waits_is_left_alone(device: Device):
    assert device.watchdog.check(NEVER) == ""
    device.hangs = True
    device.put()
    assert device.watchdog.check(LONG) == device.watchdog.check(0) == ""
    assert (device.watchdog.restarts, device.renewed) == (0, 0)


def test_a_hung_thread_is_replaced(device: Device):
    device.hangs = True
    device.put()
    done = device.watchdog.check(NEVER)
    assert "given up" in done
    assert "watchdog_timeout" in device.counters.snapshot().problem
    assert device.watchdog.problem == ""
    device.hangs = False
    device.put()
    wait_until(lambda: settled(device.counters))
    snapshot = device.counters.snapshot()
    assert (snapshot.received, snapshot.processed, snapshot.dropped["hung"]) == (2, 1, 1)
    assert (device.watchdog.restarts, device.renewed) == (1, 1)
    assert device.watchdog.check(NEVER) == ""


def test_repeated_hangs_are_an_error_until_one_comes_back(device: Device):
    device.hangs = True
    for number in range(MAX_HANGS):
        device.put()
        assert device.watchdog.check(NEVER)
        assert bool(device.watchdog.problem) == (number == MAX_HANGS - 1)
    assert "restart the node" in device.watchdog.problem
    assert device.watchdog.check(NEVER) == ""
    device.worker.put(0, frame("waits"))
    assert device.counters.snapshot().pending == 1
    device.hangs = False
    device.answer.set()
    wait_until(lambda: "came back" in device.watchdog.check(NEVER))
    assert device.watchdog.problem == ""
    wait_until(lambda: settled(device.counters))
    assert device.counters.snapshot().processed == 1


def test_a_worker_that_stops_is_not_watched(device: Device):
    device.hangs = True
    device.put()
    assert not device.worker.stop(0.01)
    assert device.watchdog.check(NEVER) == ""
    assert device.watchdog.restarts == 0
