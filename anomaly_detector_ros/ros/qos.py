"""Topics of the node: their quality of service, and what to tell where two sides differ."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSCompatibility,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

try:
    from rclpy.event_handler import (
        PublisherEventCallbacks,
        SubscriptionEventCallbacks,
        UnsupportedEventTypeError,
    )
except ImportError:  # Humble
    from rclpy.qos_event import (
        PublisherEventCallbacks,
        SubscriptionEventCallbacks,
        UnsupportedEventTypeError,
    )

from anomaly_detector_ros.ros.output import Output

if TYPE_CHECKING:
    from rclpy.callback_groups import CallbackGroup
    from rclpy.lifecycle import LifecycleNode

SETTLING = 3.0
"""Seconds until the graph surely shows whoever an event told of."""
_OVERRIDABLE = ("history", "depth", "reliability", "durability")


def newest(**policies: Any) -> QoSProfile:
    """The newest message only, with these policies."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, **policies)


INPUT = newest(reliability=ReliabilityPolicy.BEST_EFFORT)
"""Matches any publisher."""
OUTPUT = newest(reliability=ReliabilityPolicy.RELIABLE)
"""Matches any volatile subscriber."""
EVENTS = QoSProfile(depth=10)
"""For messages each of which counts."""
LATCHED = newest(
    reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
"""As maps are published: who comes later gets the newest message."""


class Topics:
    """Topics of a node that are made and given up together, as those of one camera.

    Args:
        node: owns publishers and subscriptions.
        warn: is told in one line of somebody whose QoS does not match.
    """

    def __init__(self, node: LifecycleNode, warn: Callable[[str], None]) -> None:
        self._node, self._warn = node, warn
        self._subscriptions: list[Any] = []
        self._outputs: list[Output] = []
        self._conflicts: dict[str, _Conflict] = {}

    def name(self, topic: str) -> str:
        """A topic's full name."""
        resolved: str = self._node.resolve_topic_name(topic)
        return resolved

    def publisher_count(self, topic: str) -> int:
        """Publishers that exist on a topic."""
        count: int = self._node.count_publishers(self.name(topic))
        return count

    def subscribe(
        self,
        message_type: type,
        topic: str,
        callback: Callable[[bytes], None],
        group: CallbackGroup,
        qos: QoSProfile = INPUT,
    ) -> None:
        """Subscribes to the serialised messages of a topic."""

        def make(events: Any) -> Any:
            return self._node.create_subscription(
                message_type,
                topic,
                callback,
                copy(qos),  # overrides are written into it
                callback_group=group,
                event_callbacks=events,
                qos_overriding_options=_overridable(),
                raw=True,
            )

        self._subscriptions.append(
            self._make(make, SubscriptionEventCallbacks, topic, "publisher", "subscription")
        )

    def subscribe_latched(
        self,
        message_type: type,
        topic: str,
        callback: Callable[[bytes], None],
        group: CallbackGroup,
    ) -> None:
        """Subscribes to what was sent before, too, beside `subscribe`, which only hears what comes.

        A publisher that does not latch is heard there, so of it nothing is said here.
        """
        self._subscriptions.append(
            self._node.create_subscription(
                message_type,
                topic,
                callback,
                copy(LATCHED),
                callback_group=group,
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
                raw=True,
            )
        )

    def advertise(self, message_type: type, topic: str, qos: QoSProfile = OUTPUT) -> Output:
        """Publishes on a topic while the node is active."""

        def make(events: Any) -> Any:
            return self._node.create_lifecycle_publisher(
                message_type,
                topic,
                copy(qos),
                event_callbacks=events,
                qos_overriding_options=_overridable(),
            )

        publisher = self._make(make, PublisherEventCallbacks, topic, "subscriber", "publisher")
        output = Output(publisher)
        self._outputs.append(output)
        return output

    def missing(self, topic: str, why: str) -> Output:
        """In place of a topic that cannot be published here, for those who wait for it."""
        name = self.name(topic)
        return Output(None, missing=why, count=lambda: self._listeners(name))

    def _make(
        self, make: Callable[[Any], Any], callbacks: type, topic: str, other: str, entity: str
    ) -> Any:
        name = self.name(topic)

        def incompatible(event: Any) -> None:
            conflict = _Conflict(_advice(name, other, entity, event))
            self._conflicts[name] = conflict
            self._warn(conflict.text)

        try:
            return make(callbacks(incompatible_qos=incompatible))
        except UnsupportedEventTypeError:  # the middleware tells nothing of it
            return make(None)

    def _listeners(self, name: str) -> int:
        count: int = self._node.count_subscribers(name)
        return count

    def unsubscribe(self) -> None:
        """Gives the subscriptions up."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._conflicts.clear()

    def close(self) -> None:
        """Gives subscriptions and publishers up."""
        self.unsubscribe()
        for output in self._outputs:
            self._node.destroy_lifecycle_publisher(output.give_up())
        self._outputs.clear()

    def problem(self) -> str:
        """Whose QoS does not match on one of the topics, in one line; else empty."""
        for topic, conflict in list(self._conflicts.items()):
            if time.monotonic() - conflict.since > SETTLING and not self._in_conflict(topic):
                self._conflicts.pop(topic, None)
        return next((conflict.text for conflict in list(self._conflicts.values())), "")

    def _in_conflict(self, topic: str) -> bool:
        # As the graph has them: profiles that publishers were made with leave open what is default.
        return any(
            qos_check_compatible(one.qos_profile, other.qos_profile)[0] == QoSCompatibility.ERROR
            for one in self._node.get_publishers_info_by_topic(topic)
            for other in self._node.get_subscriptions_info_by_topic(topic)
            if self._own(one) or self._own(other)
        )

    def _own(self, endpoint: Any) -> bool:
        own = (self._node.get_name(), self._node.get_namespace())
        return (endpoint.node_name, endpoint.node_namespace) == own


@dataclass(frozen=True)
class _Conflict:
    """What was said of somebody whose QoS does not match, and when by the monotonic clock."""

    text: str
    since: float = field(default_factory=time.monotonic)


def _overridable() -> QoSOverridingOptions:
    """``qos_overrides`` parameters may set the policies that `_OVERRIDABLE` names."""
    return QoSOverridingOptions([QoSPolicyKind[name.upper()] for name in _OVERRIDABLE])


def _advice(topic: str, other: str, entity: str, event: Any) -> str:
    """One line: which policy differs, what follows and what to do."""
    try:
        policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
    except ValueError:
        policy = "unknown"
    remedy = (
        f"set the parameter qos_overrides.{topic}.{entity}.{policy} or change the {other}"
        if policy in _OVERRIDABLE
        else f"change the {other}"
    )
    flow = "no message comes from it" if other == "publisher" else "it gets no message"
    return f"a {other} on '{topic}' has an incompatible {policy} QoS policy, {flow}: {remedy}"
