"""A live run of a click: node, player and client are three processes.

The player shows crops of one picture that move by a few pixels from frame to frame. The client
takes the largest false alarm of the first frame, clicks on it, and watches these very pixels in the
frames that follow; then it undoes the lesson. Example:

    python scripts/click_run.py PICTURE --profile light --label LABEL.png --anomaly 8
"""

from __future__ import annotations

import argparse
import array
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

MARGIN, STEP, FRAMES = 40, 4, 20
NODE = "/anomaly_detector"


def offset(index: int) -> tuple[int, int]:
    """Left and top of a frame's crop: to the right and back, slowly downwards."""
    place = index % (2 * MARGIN // STEP)
    across = STEP * min(place, 2 * MARGIN // STEP - place)
    return across, min(index, MARGIN // 2)


def play(picture: Path) -> None:
    """Shows one crop after the other, each once the mask of the one before has come."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import Image

    pixels = cv2.imread(str(picture))[..., ::-1]
    height, width = pixels.shape[0] - MARGIN, pixels.shape[1] - MARGIN
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # a signal ends it at once
    node = rclpy.create_node("player")
    done: list[int] = []
    node.create_subscription(
        Image, f"{NODE}/camera/mask", lambda m: done.append(m.header.stamp.sec), 10
    )
    publisher = node.create_publisher(Image, "camera/image_raw", 10)
    index, sent = 1, 0.0
    while rclpy.ok():
        rclpy.spin_once(node, timeout_sec=0.05)
        if index in done:
            index, sent = index + 1, 0.0
        if time.monotonic() - sent > 10 and publisher.get_subscription_count():
            left, top = offset(index - 1)
            crop = np.ascontiguousarray(pixels[top : top + height, left : left + width])
            message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
            message.header.frame_id, message.header.stamp.sec = "optical", index
            message.data = array.array("B", crop.tobytes())
            publisher.publish(message)
            sent = time.monotonic()


def main() -> None:
    """Start the three and say what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("picture", type=Path)
    parser.add_argument("--profile", default="light")
    parser.add_argument("--label", type=Path)
    parser.add_argument("--anomaly", type=int, nargs="*", default=[])
    parser.add_argument("--play", action="store_true")
    parser.add_argument("--clicks", type=int, default=0, help="more of them, all at once")
    options = parser.parse_args()
    if options.play:
        play(options.picture)
        return
    folder = Path(tempfile.mkdtemp())
    lessons = folder / "lessons.safetensors"
    given = ["-p", f"profile:={options.profile}", "-p", "offline:=true", "-p", "max_input_age:=0.0"]
    given += ["-p", f"lessons:={lessons}"]
    python = [sys.executable, "-m", "anomaly_detector_ros.ros.main", "--ros-args", *given]
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH")
    }
    # By default Fast DDS loses most pictures of this size.
    profile = Path(__file__).parents[1] / "config" / "fastdds.xml"
    environment |= {"ROS_LOG_DIR": str(folder), "FASTRTPS_DEFAULT_PROFILES_FILE": str(profile)}
    log = open(folder / "node.log", "w")  # noqa: SIM115
    node = subprocess.Popen(python, env=environment, stdout=log, stderr=log)
    player = subprocess.Popen(
        [sys.executable, __file__, str(options.picture), "--play"], env=environment
    )
    try:
        watch(options, lessons)
    finally:
        player.terminate()
        node.terminate()
        player.wait()
        node.wait()
        print((folder / "node.log").read_text()[-1500:])


def watch(options: argparse.Namespace, lessons: Path) -> None:
    """What the client does."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import PointStamped
    from sensor_msgs.msg import Image
    from std_srvs.srv import Trigger

    rclpy.init()
    client = rclpy.create_node("client")
    masks: dict[int, np.ndarray] = {}
    segments: dict[int, np.ndarray] = {}
    said: list[str] = []

    def listen(name: str, kept: dict[int, np.ndarray], dtype: type) -> None:
        def take(message: Image) -> None:
            pixels = np.frombuffer(message.data, dtype).reshape(message.height, message.width)
            kept[message.header.stamp.sec] = pixels

        client.create_subscription(Image, f"{NODE}/camera/{name}", take, 10)

    def diagnose(message: DiagnosticArray) -> None:
        for status in message.status:
            said.extend(v.value for v in status.values if v.key == "last lesson")

    listen("mask", masks, np.uint8)
    listen("segments", segments, np.uint16)
    client.create_subscription(DiagnosticArray, "/diagnostics", diagnose, 10)
    accept = client.create_publisher(PointStamped, f"{NODE}/camera/accept", 10)
    undo = client.create_client(Trigger, f"{NODE}/undo_lesson")

    def spin(condition: object) -> None:
        deadline = time.monotonic() + 600
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline
            rclpy.spin_once(client, timeout_sec=0.1)

    spin(lambda: set(masks) & set(segments))
    first = min(set(masks) & set(segments))
    mask, segment = masks[first] > 0, segments[first]
    left, top = offset(first - 1)
    height, width = mask.shape
    if options.label:
        label = cv2.imread(str(options.label), cv2.IMREAD_UNCHANGED)[top:, left:][:height, :width]
        near = cv2.dilate(np.isin(label, options.anomaly).astype(np.uint8), np.ones((25, 25)))
        mask = mask & (near == 0)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    assert count > 1, "no false alarm: give another picture"
    component = parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    # Inside, away from the edge of the picture.
    depth = cv2.distanceTransform(component.astype(np.uint8), cv2.DIST_L2, 5)
    depth[:MARGIN] = depth[-MARGIN:] = depth[:, :MARGIN] = depth[:, -MARGIN:] = 0
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    region = segment == segment[row, column]

    def share(index: int) -> float:
        """The alarmed share of the very pixels that were clicked on, wherever they are now."""
        now, rows_columns = offset(index - 1), np.argwhere(region)
        places = rows_columns + np.array([top - now[1], left - now[0]])
        inside = ((places >= 0) & (places < mask.shape)).all(1)
        return float((masks[index][tuple(places[inside].T)] > 0).mean())

    print(
        f"frame {first}: alarms {mask.mean():.3f}, click at ({column}, {row}), "
        f"segment of {region.sum()} pixels, alarmed {share(first):.2f}"
    )
    point = PointStamped()
    point.header.stamp.sec = first  # of the frame that is meant
    point.point.x, point.point.y = float(column), float(row)
    spin(accept.get_subscription_count)
    said.clear()
    began = time.monotonic()
    accept.publish(point)
    spin(lambda: any(text.startswith(("taken", "not")) for text in said))
    print(f"after {time.monotonic() - began:.1f} s: {said[-1]}")
    last = max(masks)
    spin(lambda: max(masks) >= last + 1 + FRAMES + 1)
    after = [share(index) for index in sorted(masks) if last + 1 < index]
    print("alarmed share of the same pixels in", len(after), "frames after the click:")
    print(" ".join(f"{each:.2f}" for each in after), f"mean {np.mean(after):.3f}")
    print("frames in which most of them raise no alarm:", sum(each < 0.5 for each in after))
    future = undo.call_async(Trigger.Request())
    spin(future.done)
    print(future.result().message)
    last = max(masks)
    spin(lambda: max(masks) >= last + 3)
    print(f"after undoing: {[round(share(index), 2) for index in (last + 2, last + 3)]}")
    point.header.stamp.sec = 0  # the last frame
    for _ in range(options.clicks):
        accept.publish(point)
        rclpy.spin_once(client, timeout_sec=0.0)
    if options.clicks:
        last = max(masks)
        spin(lambda: max(masks) >= last + 3)
        print(
            f"after {options.clicks} more clicks: {said[-1]}; "
            f"{lessons.stat().st_size} bytes of lessons"
        )


if __name__ == "__main__":
    main()
