"""The counts that commands end with, and the lines that long ones write without a terminal."""

from __future__ import annotations

import re
import time

import pytest

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.progress import PlainProgress
from anomaly_detector_ros.sources.tally import Tally


def failing(text: str) -> None:
    raise RuntimeError(text)


def test_frames_are_counted_by_what_became_of_them() -> None:
    tally = Tally()
    tally.processed = 3
    for number in range(5):
        tally.skip("unreadable", f"'{number}.png'", ValueError("cut off"))
    assert tally.tried("'a.png'", failing, "too odd") is None
    assert tally.tried("'b.png'", lambda: 7) == 7
    tally.skip("blurred", "'c.mp4' frame 2")
    assert tally.lines() == [
        "10 read, 3 processed, 7 skipped (5 unreadable, 1 failed in the models, 1 blurred)",
        "unreadable: '0.png': cut off; '1.png': cut off; '2.png': cut off; and 2 more",
        "failed in the models: 'a.png': too odd",
        "blurred: 'c.mp4' frame 2",
    ]
    reasons = {"unreadable": 5, "failed in the models": 1, "blurred": 1}
    assert tally.to_dict() == {"read": 10, "processed": 3, "skipped": reasons}
    tally.check()


def test_it_stops_where_asked_to() -> None:
    tally = Tally(stop=True)
    with pytest.raises(UserError, match=r"'a\.png': too odd"):
        tally.tried("'a.png'", failing, "too odd")
    with pytest.raises(UserError, match="not whole"):
        tally.fail("drive", ValueError("not whole"))
    tally.skip("blurred", "'c.mp4' frame 2")  # chosen, not bad
    assert tally.read == 1


def test_what_is_not_whole_is_an_error_and_so_is_nothing_at_all() -> None:
    tally = Tally()
    with pytest.raises(UserError, match="there was none"):
        tally.check()
    tally.skip("unreadable", "'a.png'", ValueError("cut off"))
    with pytest.raises(UserError, match=r"no frame could be processed: 'a\.png': cut off"):
        tally.check()
    tally.processed = 1
    tally.check()
    tally.fail("drive", ValueError("declares 9 messages, 7 are there"))
    with pytest.raises(UserError, match="declares 9 messages"):
        tally.check()


def test_a_plain_line_every_so_often() -> None:
    lines: list[str] = []
    with PlainProgress("pictures", 40, lines.append, every=0.05) as progress:
        progress(4)
        time.sleep(0.3)  # in one step
        progress(8, 50)
        time.sleep(0.3)
    assert len(lines) >= 4
    assert re.fullmatch(r"pictures: 4 of 40, [\d.]+ a second, 0:00:\d\d left", lines[0])
    assert lines[-1].startswith("pictures: 8 of 50, ")
    progress(1, None, "masks")
    assert progress.line().startswith("masks: 1 of 50, ")


def test_time_left_leaves_out_what_went_before() -> None:
    progress = PlainProgress("starting", 8, print)
    progress(0, None, "models load")
    time.sleep(0.3)
    progress(0, None, "pictures")
    time.sleep(0.01)
    progress(1, None, "pictures")
    rate = float(re.search(r"([\d.]+) a second", progress.line())[1])
    assert rate > 1 / 0.3
