"""Quality of service of the node's topics, and what to tell the user where two sides differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    HistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
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


def overridable() -> QoSOverridingOptions:
    """History, depth, reliability and durability may be set by ``qos_overrides`` parameters."""
    kinds = (
        QoSPolicyKind.HISTORY,
        QoSPolicyKind.DEPTH,
        QoSPolicyKind.RELIABILITY,
        QoSPolicyKind.DURABILITY,
    )
    return QoSOverridingOptions(kinds)


def subscribe(
    node: Node,
    message_type: type,
    topic: str,
    callback: Callable[[bytes], None],
    group: Any,
    warn: Callable[[str], None],
) -> Any:
    """A subscription to serialised messages; ``warn`` hears of publishers that do not match."""
    name = node.resolve_topic_name(topic)

    def incompatible(event: Any) -> None:
        warn(_advice(name, "publisher", "subscription", event))

    options = {"callback_group": group, "qos_overriding_options": overridable(), "raw": True}
    try:
        events = SubscriptionEventCallbacks(incompatible_qos=incompatible)
        return node.create_subscription(
            message_type, topic, callback, input_qos(), event_callbacks=events, **options
        )
    except UnsupportedEventTypeError:  # the middleware tells nothing of it
        return node.create_subscription(message_type, topic, callback, input_qos(), **options)


def advertise(node: Any, message_type: type, topic: str, warn: Callable[[str], None]) -> Any:
    """A lifecycle publisher; ``warn`` hears of subscribers that do not match."""
    name = node.resolve_topic_name(topic)

    def incompatible(event: Any) -> None:
        warn(_advice(name, "subscriber", "publisher", event))

    options = {"qos_overriding_options": overridable()}
    try:
        events = PublisherEventCallbacks(incompatible_qos=incompatible)
        return node.create_lifecycle_publisher(
            message_type, topic, output_qos(), event_callbacks=events, **options
        )
    except UnsupportedEventTypeError:
        return node.create_lifecycle_publisher(message_type, topic, output_qos(), **options)


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
