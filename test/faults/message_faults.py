"""Faults in messages: images, compressed images, camera_info, stamps and clocks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from bench import MAX_INPUT_AGE
from fault import Act, Fault, expect
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage
from support.node_client import CAMERA, image, picture
from support.waiting import wait_until

if TYPE_CHECKING:
    from bench import Bench

SECOND = 1_000_000_000
INFO_TOPIC = f"{CAMERA}/camera_info"


def dropped(make: Callable[[], Any], words: str, reason: str = "bad", ago: float = 0.0) -> Act:
    """Sends the message until it is counted as dropped for the reason, with the words said."""

    def act(bench: Bench) -> str:
        key = f"dropped: {reason}"
        before, said = bench.count(key), ""

        def counted() -> bool:
            nonlocal said
            stamp = bench.client.send(make(), time.time_ns() - int(ago * SECOND))
            status = bench.client.diagnostics(CAMERA, lambda s: key in s, key)
            expect(not bench.await_outputs(stamp, 0.0), "an output was published for it")
            said = status.get("last problem", "")
            return int(status[key]) > before

        wait_until(counted, f"the count '{key}'")
        expect(words in said, f"the diagnostics say '{said}', without '{words}'")
        return f'counted as {reason.replace("_", " ")}; diagnostics: "{said[:110]}"'

    return act


def processed(ago: float, said: str = "") -> Act:
    """Sends good images stamped so many seconds ago: each gives outputs of the right size."""

    def act(bench: Bench) -> str:
        def arrives() -> bool:
            stamp = bench.client.send(image(), time.time_ns() - int(ago * SECOND))
            return bench.await_outputs(stamp, 2.0)

        wait_until(arrives, "outputs for that stamp")
        bench.client.diagnostics(CAMERA, lambda s: said in s["input age by"], f"age by {said}")
        return f"processed under their own stamp; diagnostics: age by {said}"

    return act


def zero_stamp(bench: Bench) -> str:
    wait_until(lambda: bench.await_outputs(bench.client.send(image(), 0), 2.0), "outputs")
    return "processed; aged by arrival"


def changes(bench: Bench) -> str:
    """Sizes and encodings follow each other."""
    grey = np.ascontiguousarray(picture(30, 41)[..., 0])
    mono = {"encoding": "mono8", "step": 41, "data": bytes_of(grey)}
    steps: list[tuple[tuple[int, int], dict[str, Any]]] = [
        ((30, 41), {}), ((96, 33), {"encoding": "bgr8"}), ((30, 41), mono), ((1, 1), {}),
        ((48, 64), {}),
    ]  # fmt: skip
    for size, fields in steps:

        def arrives(size: tuple[int, int] = size, fields: dict[str, Any] = fields) -> bool:
            return bench.await_outputs(
                bench.client.send(image(picture(*size), **fields)), 2.0, size
            )

        wait_until(arrives, f"outputs of size {size}")
    return "outputs of each size in turn: " + ", ".join(f"{w}x{h}" for (h, w), _ in steps)


def garbage_bytes(bench: Bench) -> str:
    publisher = bench.client.publisher(f"{CAMERA}/image_raw", type(image()))
    before = bench.count("dropped: bad")
    junk = np.random.default_rng(0).integers(0, 256, 200, np.uint8).tobytes()

    def counted() -> bool:
        for data in (b"\x00\x01\x00\x00", b"\x00\x01\x00\x00" + junk, junk):
            publisher.publish(data)
            time.sleep(0.2)
        return bench.count("dropped: bad") > before

    wait_until(counted, "'dropped: bad'")
    return f"{bench.count('dropped: bad') - before} counted as bad"


def camera_info(what: str, **fields: Any) -> Act:
    """Sends a camera_info beside good images; these are processed all the same."""

    def act(bench: Bench) -> str:
        infos = bench.client.listen(bench.client.output("camera_info"), CameraInfo)
        info = CameraInfo(**{"height": 48, "width": 64, **fields})
        bench.client.publisher(INFO_TOPIC, CameraInfo).publish(info)
        time.sleep(0.3)
        bench.good_frame()
        bench.good_frame()
        found = [(each.width, each.height) for each in infos]
        bench.client.forget(infos)
        expect(set(found) <= {(64, 48)}, f"camera_info of sizes {found} published")
        return f"images processed; {len(found)} camera_info published ({what})"

    return act


def compressed(data: Callable[[], bytes], words: str) -> Act:
    """The node reconfigured to compressed images, then this one sent."""

    def act(bench: Bench) -> str:
        expect(bench.reconfigure(image_transport="compressed"), "configure failed")
        expect(bench.client.transition("activate"), "activate failed")
        message = CompressedImage(format="rgb8; jpeg compressed bgr8", data=bytes_of(data()))
        happened = dropped(lambda: message, words)(bench)
        good = CompressedImage(format="jpeg", data=bytes_of(jpeg()))
        wait_until(
            lambda: bench.await_outputs(bench.client.send(good), 2.0), "outputs of a good JPEG"
        )
        return happened

    return act


def back_to_raw(bench: Bench) -> None:
    bench.back_to_normal(image_transport="raw")


def clock_jump(bench: Bench) -> str:
    """Simulated time from 1000 s on, then back to 10 s as where a bag loops."""
    clock = bench.client.client.create_publisher(Clock, "/clock", 10)
    try:
        expect(bench.client.set_parameters(use_sim_time=True).successful, "use_sim_time refused")
        for start in (1000, 10):

            def arrives(start: int = start) -> bool:
                tick = Clock()
                tick.clock.sec = start
                for _ in range(5):
                    clock.publish(tick)
                    time.sleep(0.02)
                return bench.await_outputs(bench.client.send(image(), start * SECOND), 2.0)

            wait_until(arrives, f"outputs at simulated time {start} s")
    finally:
        bench.client.set_parameters(use_sim_time=False)
        bench.client.client.destroy_publisher(clock)
    return "images before and after the jump processed"


def stamps_jump_back(bench: Bench) -> str:
    for ago in (0.0, 3600.0, 3601.0, 0.0):

        def arrives(ago: float = ago) -> bool:
            stamp = bench.client.send(image(), time.time_ns() - int(ago * SECOND))
            return bench.await_outputs(stamp, 2.0)

        wait_until(arrives, f"outputs of a stamp {ago:g} s back")
    return "images before, after and back again processed"


def bytes_of(data: Any) -> Any:
    """The kind of array that rclpy takes without copying byte by byte."""
    import array

    return array.array("B", data if isinstance(data, bytes) else data.tobytes())


def jpeg() -> bytes:
    return cv2.imencode(".jpg", picture())[1].tobytes()


def bomb() -> bytes:
    """A PNG of some kilobytes that decodes to 400 million pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + chunk(b"IEND", b"")
    )  # fmt: skip


BAD = "dropped as bad, said in log and diagnostics, no output"
NAN = [math.nan] * 9


def _message(name: str, injected: str, expected: str, act: Act, **more: Any) -> Fault:
    return Fault("messages", name, injected, expected, act, **more)


def _compressed(name: str, injected: str, data: Callable[[], bytes], words: str) -> Fault:
    return _message(name, injected, BAD, compressed(data, words), recover=back_to_raw)


FAULTS = [
    _message("wrong_encoding", "image with encoding rgb565", BAD,
             dropped(lambda: image(encoding="rgb565"), "rgb565")),
    _message("short_data", "image with 100 bytes of data", BAD,
             dropped(lambda: image(data=bytes_of(bytes(100))), "truncated")),
    _message("zero_size", "image of 0x0", BAD,
             dropped(lambda: image(height=0, width=0, step=0), "without pixels")),
    _message("huge_size", "image that claims 4 billion x 4 billion pixels", BAD,
             dropped(lambda: image(height=2**32 - 1, width=2**32 - 1, step=2**32 - 1), "image")),
    _message("wrong_step", "image with a step shorter than a row", BAD,
             dropped(lambda: image(step=10), "step")),
    _message("garbage_bytes", "random bytes in place of a serialised image", BAD, garbage_bytes),
    _message("nan_camera_info", "camera_info with NaN in K, D and P",
             "images go on, no output of wrong size",
             camera_info("NaN", k=NAN, d=[math.nan] * 5, p=[math.nan] * 12)),
    _message("wrong_camera_info", "camera_info of another size",
             "images go on, that camera_info is not published",
             camera_info("another size", height=1080, width=1920)),
    _message("zero_camera_info", "camera_info with focal length 0",
             "images go on", camera_info("focal length 0", k=[0.0] * 9)),
    _compressed("broken_jpeg", "truncated JPEG", lambda: jpeg()[:300], "image"),
    _compressed("no_jpeg", "text in place of a JPEG", lambda: b"not a picture at all", "image"),
    _compressed("bomb", "PNG that decodes to 400 million pixels", bomb, "pixels"),
    _message("size_change", "images of other sizes and encodings mid-stream",
             "outputs follow the size of each", changes),
    _message("future_stamps", "stamps one hour ahead", "processed, aged by arrival",
             processed(-3600.0, "arrival")),
    _message("old_stamps", f"stamps {2 * MAX_INPUT_AGE:g} s old with max_input_age "
             f"{MAX_INPUT_AGE:g} s", "dropped as too old, counted",
             dropped(image, "max_input_age", "too_old", ago=2 * MAX_INPUT_AGE)),
    _message("other_clock", "stamps one year old", "taken for another clock: aged by arrival",
             processed(365 * 86400.0, "arrival")),
    _message("zero_stamps", "stamps of zero", "processed, aged by arrival", zero_stamp),
    _message("stamps_jump_back", "stamps that jump back an hour and forward again",
             "processed throughout", stamps_jump_back),
    _message("clock_jump", "simulated time that jumps back 990 s, as where a bag loops",
             "processed before and after", clock_jump),
]  # fmt: skip
