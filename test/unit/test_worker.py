"""The worker: newest image first, cameras in turn, every image counted once."""

from __future__ import annotations

import threading
import time

import pytest
from support.waiting import wait_until

from anomaly_detector_ros.ros.counters import CameraCounters, Dropped, Processed
from anomaly_detector_ros.ros.worker import Frame, Turn, Worker


class Served:
    """Serves frames by noting them; `gate` holds the thread back while it is closed."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, object]] = []
        self.times: list[float] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, turns: list[Turn]) -> None:
        self.times.append(time.monotonic())
        self.entered.set()
        assert self.gate.wait(5)
        for turn in turns:
            if turn.frame.data == "raise":
                raise ValueError("no good")
            if turn.settle(Processed(0.0, 0.0, {})):
                self.frames.append((turn.index, turn.frame.data))


def frame(data: object) -> Frame:
    return Frame(data, time.monotonic())


def settled(counters: CameraCounters) -> bool:
    return counters.snapshot().pending == 0


def test_newest_frame_wins_and_all_are_counted():
    counters = [CameraCounters()]
    served = Served()
    worker = Worker(counters, served)
    worker.start()
    served.gate.clear()
    worker.put(0, frame(0))
    assert served.entered.wait(5)
    for number in range(1, 10):
        worker.put(0, frame(number))
    served.gate.set()
    wait_until(lambda: settled(counters[0]))
    assert worker.stop(5)
    assert [data for _, data in served.frames] == [0, 9]
    snapshot = counters[0].snapshot()
    assert (snapshot.received, snapshot.processed, snapshot.dropped["replaced"]) == (10, 2, 8)


def test_cameras_take_turns():
    counters = [CameraCounters() for _ in range(3)]
    served = Served()
    worker = Worker(counters, served)
    worker.start()
    served.gate.clear()
    worker.put(0, frame("first"))
    assert served.entered.wait(5)
    # Camera 0 floods, the others leave one image each: they come before camera 0's next.
    for number in range(20):
        worker.put(0, frame(number))
    worker.put(2, frame("two"))
    worker.put(1, frame("one"))
    served.gate.set()
    wait_until(lambda: all(map(settled, counters)))
    assert worker.stop(5)
    assert served.frames == [(0, "first"), (1, "one"), (2, "two"), (0, 19)]


def test_an_exception_is_counted_reported_and_survived():
    counters = [CameraCounters()]
    served = Served()
    reported: list[tuple[int, Exception]] = []
    worker = Worker(counters, served, report=lambda index, error: reported.append((index, error)))
    worker.start()
    worker.put(0, frame("raise"))
    wait_until(lambda: settled(counters[0]))
    worker.put(0, frame("good"))
    wait_until(lambda: settled(counters[0]))
    assert worker.stop(5)
    assert served.frames == [(0, "good")]
    assert [(index, str(error)) for index, error in reported] == [(0, "no good")]
    snapshot = counters[0].snapshot()
    assert (snapshot.processed, snapshot.dropped["failed"]) == (1, 1)
    assert snapshot.problem == "ValueError: no good"


def test_rate_limit_spaces_the_starts_and_can_be_lifted():
    counters = [CameraCounters()]
    served = Served()
    interval = [0.1]
    worker = Worker(counters, served, min_interval=lambda index: interval[0])
    begun = time.monotonic()
    worker.start()
    for number in range(30):
        worker.put(0, frame(number))
        time.sleep(0.01)
    wait_until(lambda: settled(counters[0]))
    assert len(served.times) >= 3
    # Each time is noted some moment after the start that it stands for, never before.
    assert all(at - begun >= 0.0999 * number for number, at in enumerate(served.times))
    interval[0] = 60.0
    worker.put(0, frame("late"))
    time.sleep(0.05)
    assert counters[0].snapshot().pending == 1
    interval[0] = 0.0
    wait_until(lambda: settled(counters[0]))
    assert worker.stop(5)
    assert served.frames[-1] == (0, "late")


def test_a_fast_camera_starves_no_slow_one():
    """30 Hz and 1 Hz, ten times as fast, with models that manage a fifth of the fast one's."""
    counters = [CameraCounters(), CameraCounters()]
    served: list[tuple[int, float, float]] = []

    def serve(turns: list[Turn]) -> None:
        (turn,) = turns
        served.append((turn.index, turn.frame.arrived, time.monotonic()))
        time.sleep(0.015)
        turn.settle(Processed(0.0, 0.0, {}))

    worker = Worker(counters, serve)
    worker.start()
    for number in range(300):
        worker.put(0, frame(number))
        if number % 30 == 0:
            worker.put(1, frame(number))
        time.sleep(0.0033)
    wait_until(lambda: all(map(settled, counters)))
    assert worker.stop(5)
    fast, slow = (each.snapshot() for each in counters)
    assert (slow.received, slow.processed) == (10, 10)
    assert fast.processed > 30
    assert fast.received == fast.processed + fast.dropped["replaced"] == 300
    # Behind one image in work at most.
    waits = sorted(start - arrived for index, arrived, start in served if index == 1)
    assert waits[len(waits) // 2] < 0.03


def test_each_camera_has_its_own_rate_limit():
    counters = [CameraCounters(), CameraCounters()]
    served = Served()
    worker = Worker(counters, served, min_interval=lambda index: (0.0, 0.2)[index])
    worker.start()
    for number in range(40):
        worker.put(0, frame(number))
        worker.put(1, frame(number))
        time.sleep(0.01)
    assert worker.stop(5)
    counts = [sum(index == each for index, _ in served.frames) for each in (0, 1)]
    assert counts[0] > 20
    assert 2 <= counts[1] <= 4


def test_images_of_several_cameras_make_a_batch():
    counters = [CameraCounters() for _ in range(3)]
    batches: list[list[tuple[int, object]]] = []
    gate, entered = threading.Event(), threading.Event()

    def serve(turns: list[Turn]) -> None:
        entered.set()
        assert gate.wait(5)
        batches.append([(turn.index, turn.frame.data) for turn in turns])
        if len(turns) == 1:
            return
        turns[0].settle(Processed(0.0, 0.0, {}))
        raise ValueError("the rest fails")

    worker = Worker(counters, serve, batch=lambda: True)
    worker.start()
    worker.put(1, frame("first"))
    assert entered.wait(5)
    for index, data in ((0, "a"), (2, "old"), (2, "c")):
        worker.put(index, frame(data))
    gate.set()
    wait_until(lambda: all(map(settled, counters)))
    assert worker.stop(5)
    assert batches == [[(1, "first")], [(2, "c"), (0, "a")]]
    snapshots = [each.snapshot() for each in counters]
    assert snapshots[2].processed == snapshots[2].dropped["replaced"] == 1
    assert snapshots[0].dropped["failed"] == snapshots[1].dropped["failed"] == 1


def test_a_thread_given_up_counts_once_and_ends():
    counters = [CameraCounters()]
    served = Served()
    worker = Worker(counters, served)
    worker.start()
    served.gate.clear()
    worker.put(0, frame("hangs"))
    assert served.entered.wait(5)
    assert worker.busy_for() > 0
    worker.put(0, frame("next"))
    hung = worker.give_up("no answer")
    assert worker.busy_for() == 0
    assert (counters[0].snapshot().dropped["hung"], counters[0].snapshot().pending) == (1, 1)
    worker.start()
    served.gate.set()  # both threads go on
    wait_until(lambda: settled(counters[0]))
    hung.join(5)
    assert not hung.is_alive()
    assert served.frames == [(0, "next")]
    snapshot = counters[0].snapshot()
    assert (snapshot.received, snapshot.processed, snapshot.dropped["hung"]) == (2, 1, 1)
    assert snapshot.problem == "no answer"
    assert worker.stop(5)


def test_a_beat_shows_that_work_goes_on():
    now = [0.0]
    busy: list[float] = []

    def serve(turns: list[Turn]) -> None:
        now[0] += 10.0
        busy.append(worker.busy_for())
        worker.beat()
        busy.append(worker.busy_for())

    counters = [CameraCounters()]
    worker = Worker(counters, serve, clock=lambda: now[0])
    worker.start()
    worker.put(0, frame("image"))
    wait_until(lambda: settled(counters[0]))
    assert worker.stop(5)
    assert busy == [10.0, 0.0]
    worker.beat()  # of a thread that is none of its own: nothing
    assert worker.busy_for() == 0


def test_stop_does_not_hang_on_a_frame_in_work():
    counters = [CameraCounters()]
    served = Served()
    worker = Worker(counters, served)
    worker.start()
    served.gate.clear()
    worker.put(0, frame("in work"))
    assert served.entered.wait(5)
    worker.put(0, frame("waits"))
    begun = time.monotonic()
    assert not worker.stop(0.1)
    assert time.monotonic() - begun < 1.0
    worker.put(0, frame("too late"))
    served.gate.set()
    assert worker.stop(5)
    assert served.frames == [(0, "in work")]
    snapshot = counters[0].snapshot()
    assert snapshot.dropped["discarded"] == 2
    assert snapshot.received == snapshot.processed + sum(snapshot.dropped.values()) == 3


def test_counters_average_over_a_window():
    now = [100.0]
    counters = CameraCounters(clock=lambda: now[0])
    for _ in range(5):
        counters.received()
        counters.settle(Processed(0.1, 0.3, {"synthesis": 0.2, "total": 0.25}))
        now[0] += 1.0
    counters.received()
    counters.settle(Dropped("bad", "no pixels"))
    snapshot = counters.snapshot()
    assert snapshot.rate == pytest.approx(1.0)
    assert snapshot.input_rate == pytest.approx(6 / 5)
    assert snapshot.age == pytest.approx(0.1)
    assert snapshot.latency == pytest.approx(0.3)
    assert snapshot.stages == pytest.approx({"synthesis": 0.2, "total": 0.25})
    assert snapshot.problem == "no pixels"
    now[0] += 60.0
    later = counters.snapshot()
    assert (later.rate, later.age, later.problem, later.recent) == (0.0, None, "", {})
    assert (later.received, later.processed, later.dropped["bad"]) == (6, 5, 1)
    assert later.silence == pytest.approx(60.0)


def test_unknown_drop_reason_is_refused():
    with pytest.raises(ValueError, match="drop reason"):
        Dropped("whim")


def test_images_and_other_work_take_turns():
    counters = [CameraCounters()]
    done: list[str] = []
    errors: list[Exception] = []
    worker = Worker(
        counters,
        lambda turns: [done.append("image"), turns[0].settle(Processed(0.0, 0.0, {}))],
        report=lambda index, error: errors.append(error),
    )
    worker.submit(lambda: done.append("first"))
    worker.submit(lambda: done.append(str(1 / 0)))
    worker.submit(lambda: done.append("last"))
    worker.put(0, frame(0))
    worker.start()
    wait_until(lambda: "last" in done)
    assert worker.stop(5)
    assert done == ["first", "image", "last"]
    assert [type(error) for error in errors] == [ZeroDivisionError]
    worker.submit(lambda: done.append("never"))
    assert len(done) == 3
