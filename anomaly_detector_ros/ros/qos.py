"""Quality of service of the node's topics, and what to tell the user where two sides differ."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rclpy.node import Node
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

SETTLING = 3.0
"""Seconds until the graph surely shows whoever an event told of."""
_OVERRIDABLE = ("history", "depth", "reliability", "durability")


def input_qos() -> QoSProfile:
    """BEST_EFFORT, the newest message only: matches any publisher."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
    )


def output_qos() -> QoSProfile:
    """RELIABLE, the newest message only: matches any volatile subscriber."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE
    )


def latched_qos() -> QoSProfile:
    """RELIABLE and TRANSIENT_LOCAL, as maps are: who comes later gets the newest message."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def overridable() -> QoSOverridingOptions:
    """History, depth, reliability and durability may be set by ``qos_overrides`` parameters."""
    kinds = (
        QoSPolicyKind.HISTORY,
        QoSPolicyKind.DEPTH,
        QoSPolicyKind.RELIABILITY,
        QoSPolicyKind.DURABILITY,
    )
    return QoSOverridingOptions(kinds)


@dataclass(frozen=True)
class Conflict:
    """Somebody on a topic whose QoS does not match the node's.

    Attributes:
        node: the node.
        topic: the topic's full name.
        text: one line: what differs, what follows and what to do.
        since: monotonic clock, seconds.
    """

    node: Node
    topic: str
    text: str
    since: float = field(default_factory=time.monotonic)

    def over(self) -> bool:
        """Whether those who did not match are gone."""
        return time.monotonic() - self.since > SETTLING and not self._present()

    def _present(self) -> bool:
        # As the graph has them: profiles that publishers were made with leave open what is default.
        publishers = self.node.get_publishers_info_by_topic(self.topic)
        subscriptions = self.node.get_subscriptions_info_by_topic(self.topic)
        return any(
            qos_check_compatible(one.qos_profile, other.qos_profile)[0] == QoSCompatibility.ERROR
            for one in publishers
            for other in subscriptions
            if self._own(one) or self._own(other)
        )

    def _own(self, endpoint: Any) -> bool:
        own = (self.node.get_name(), self.node.get_namespace())
        return (endpoint.node_name, endpoint.node_namespace) == own


Warn = Callable[[Conflict], None]


def subscribe(
    node: Node,
    message_type: type,
    topic: str,
    callback: Callable[[bytes], None],
    group: Any,
    warn: Warn,
) -> Any:
    """A subscription to serialised messages; ``warn`` hears of publishers that do not match."""
    name = node.resolve_topic_name(topic)

    def incompatible(event: Any) -> None:
        text = _advice(name, "publisher", "subscription", event)
        warn(Conflict(node, name, text))

    options = {"callback_group": group, "qos_overriding_options": overridable(), "raw": True}
    try:
        events = SubscriptionEventCallbacks(incompatible_qos=incompatible)
        return node.create_subscription(
            message_type, topic, callback, input_qos(), event_callbacks=events, **options
        )
    except UnsupportedEventTypeError:  # the middleware tells nothing of it
        return node.create_subscription(message_type, topic, callback, input_qos(), **options)


def advertise(
    node: Any, message_type: type, topic: str, warn: Warn, qos: QoSProfile | None = None
) -> Any:
    """A lifecycle publisher, of `output_qos` unless told otherwise.

    ``warn`` hears of subscribers that do not match.
    """
    name, qos = node.resolve_topic_name(topic), qos or output_qos()

    def incompatible(event: Any) -> None:
        text = _advice(name, "subscriber", "publisher", event)
        warn(Conflict(node, name, text))

    options = {"qos_overriding_options": overridable()}
    try:
        events = PublisherEventCallbacks(incompatible_qos=incompatible)
        return node.create_lifecycle_publisher(
            message_type, topic, qos, event_callbacks=events, **options
        )
    except UnsupportedEventTypeError:
        return node.create_lifecycle_publisher(message_type, topic, qos, **options)


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
