"""An output knows how it stands with it: nobody listens, fine, or cannot be made."""

from __future__ import annotations

from typing import Any

import pytest

from anomaly_detector_ros.ros.output import PATIENCE, Output, OutputState


class Publisher:
    """A publisher with so many subscribers."""

    def __init__(self, listeners: int = 0) -> None:
        self.listeners, self.sent = listeners, []

    def get_subscription_count(self) -> int:
        return self.listeners

    def publish(self, message: Any) -> None:
        self.sent.append(message)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_three_states(clock: Clock):
    publisher = Publisher()
    output = Output(publisher, clock=clock)
    assert not output.wanted
    assert str(output.state()) == "nobody listens"
    assert str(output.state("paused")) == "nobody listens"
    publisher.listeners = 1
    assert output.wanted
    assert str(output.state()) == "fine"
    clock.now += 3.0
    output.cannot("no camera_info")
    assert output.state() == OutputState(True, "no camera_info", 3.0)
    assert str(output.state()) == "cannot be made for 3 s: no camera_info"
    output.send("a cloud")
    assert publisher.sent == ["a cloud"]
    assert str(output.state()) == "fine"


def test_it_is_late_once_somebody_has_listened_in_vain_for_long(clock: Clock):
    publisher = Publisher(1)
    output = Output(publisher, clock=clock)
    output.send("first")
    clock.now += PATIENCE - 0.1
    output.cannot("no depth")
    assert not output.state().late
    clock.now += 0.2
    assert output.state().late
    output.send("second")
    clock.now += 60.0
    assert not output.state().late  # a slow camera, and nothing that stops it
    assert output.state("no image for 60 s").late


def test_who_leaves_takes_the_problem_along(clock: Clock):
    publisher = Publisher(1)
    output = Output(publisher, clock=clock)
    assert output.wanted
    output.cannot("no camera_info")
    publisher.listeners = 0
    assert not output.wanted
    clock.now += 60.0
    publisher.listeners = 1
    assert output.state() == OutputState(True, "", 0.0)


def test_a_topic_that_is_not_published_says_why_to_who_waits_for_it(clock: Clock):
    waiting = 0
    output = Output(None, missing="vision_msgs is missing", count=lambda: waiting, clock=clock)
    assert str(output.state()) == "nobody listens"
    waiting = 1
    assert not output.wanted  # nothing is rendered for it
    assert output.state().problem == "vision_msgs is missing"
    clock.now += PATIENCE + 1.0
    assert output.state().late
    output.send("nowhere")


def test_twins_share_the_topic_and_nothing_else(clock: Clock):
    publisher = Publisher(1)
    output = Output(publisher, clock=clock)
    front, rear = output.twin(), output.twin()
    rear.cannot("no camera_info")
    front.send("grid")
    assert publisher.sent == ["grid"]
    assert (front.state().problem, rear.state().problem) == ("", "no camera_info")
    assert output.give_up() is publisher
    front.send("late")
    assert publisher.sent == ["grid"]
    assert not front.wanted
