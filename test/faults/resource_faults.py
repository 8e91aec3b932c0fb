"""Resources that are missing, broken or too small."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import SIZE, Bench, small_disk
from fault import Act, Fault, SkipError, expect
from support.node_client import image, picture
from support.tiny import write_profile

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"
SAM_FILES = {"encoder.onnx": 28_085_517, "decoder.onnx": 16_501_766}


# -- weights -------------------------------------------------------------------------------------


def bad_model(change: Callable[[Path], None], words: str) -> Act:
    """Configuring with a damaged model directory fails with the words; the node stays up."""

    def act(bench: Bench) -> str:
        model = bench.folder / "damaged"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(bench.model, model)
        change(model)
        profile = write_profile(bench.folder / "damaged.yaml", model)
        return not_configured(bench, words, profile=str(profile))

    return act


def not_configured(bench: Bench, words: str, **parameters: Any) -> str:
    expect(not bench.reconfigure(**parameters), "configured all the same")
    return _refusal(bench, words)


def _refusal(bench: Bench, words: str) -> str:
    """Why the node was not configured, which holds the words."""
    line = next(li for li in reversed(bench.node.output.splitlines()) if "not configured" in li)
    said = line.partition("not configured: ")[2]
    expect(words in said, f"the log says '{said[:200]}', without '{words}'")
    expect("Traceback" not in bench.node.output, "a traceback in the log")
    return f'not configured: "{said.replace(str(bench.folder), "...")[:150]}"'


def truncate(model: Path) -> None:
    os.truncate(model / WEIGHTS, (model / WEIGHTS).stat().st_size // 2)


def make_unreadable(model: Path) -> None:
    (model / WEIGHTS).chmod(0)
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        raise SkipError("root reads every file, and there is no setpriv")


def other_shape(model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / WEIGHTS)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first][..., :0]}, model / WEIGHTS)


def nan_weights(bench: Bench) -> str:
    """Weights that are all NaN: refused at once, or every image counted as failed."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    model = bench.folder / "damaged"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(bench.model, model)
    nan = {name: np.full_like(t, np.nan) for name, t in load_file(model / WEIGHTS).items()}
    save_file(nan, model / WEIGHTS)
    profile = write_profile(bench.folder / "damaged.yaml", model)
    if not bench.reconfigure(profile=str(profile)):
        return _refusal(bench, "")
    expect(bench.client.transition("activate"), "activate failed")
    stamp = bench.client.send(image())
    failed = bench.client.diagnostics(
        "camera", lambda s: int(s.get("dropped: failed", 0)) > 0, "a failed image"
    )
    expect(not bench.await_outputs(stamp, 0.0), "an output was published")
    return f'each image counted as failed: "{failed.get("last problem", "")[:110]}"'


def pickle_weights(bench: Bench) -> str:
    """A pickle that would write a file, in place of the safetensors file."""
    import pickle

    trap = bench.folder / "trapped"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(trap),))

    def change(model: Path) -> None:
        (model / WEIGHTS).unlink()
        with (model / WEIGHTS.with_suffix(".bin")).open("wb") as out:
            pickle.dump(Trap(), out)

    happened = bad_model(change, "")(bench)
    expect(not trap.exists(), "the pickle was executed")
    return f"not executed; {happened}"


def wrong_hash(bench: Bench) -> str:
    """MobileSAM's files of the right size and with other bytes, in the cache."""
    cache = bench.folder / "cache"
    (cache / "mobile_sam").mkdir(parents=True, exist_ok=True)
    for name, size in SAM_FILES.items():
        with (cache / "mobile_sam" / name).open("wb") as out:
            out.truncate(size)
    segmenter = {"name": "mobile_sam"}
    profile = write_profile(bench.folder / "sam.yaml", bench.model, segmenter=segmenter)
    environment = {**bench.environment, "ANOMALY_DETECTOR_CACHE": str(cache)}
    bench.launch(environment=environment, profile=str(profile)).wait_for("not configured")
    shutil.rmtree(cache)
    return _refusal(bench, "mobile_sam")


# -- memory, disk, environment -------------------------------------------------------------------


def memory_limit(bench: Bench) -> str:
    """No more address space than in use, then an image that needs more."""
    with open(f"/proc/{bench.node.pid}/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.prlimit(bench.node.pid, resource.RLIMIT_AS)
    resource.prlimit(bench.node.pid, resource.RLIMIT_AS, (used + (8 << 20), before[1]))
    try:
        bench.client.send(image(picture(1500, 2500)))
        failed = bench.client.diagnostics(
            "camera", lambda s: int(s.get("dropped: failed", 0)) > 0, "a failed image", 30.0
        )
    finally:
        resource.prlimit(bench.node.pid, resource.RLIMIT_AS, before)
    return f'counted as failed: "{failed.get("last problem", "")[:110]}"'


def full_disk(bench: Bench) -> str:
    logs = bench.folder / "small_logs"
    logs.mkdir(exist_ok=True)
    environment = {**bench.environment, "ROS_LOG_DIR": str(logs)}
    bench.start(prefix=small_disk(logs, 64, fill=True), environment=environment)
    bench.client.send(image(encoding="rgb565"))
    return "became active and processes images without a log file"


def file_size_limit(bench: Bench) -> str:
    """No file may grow any more: log file, shared memory, caches."""
    before = resource.prlimit(bench.node.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(bench.node.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        for _ in range(3):
            bench.client.send(image(encoding="rgb565"))
            bench.good_frame()
    finally:
        resource.prlimit(bench.node.pid, resource.RLIMIT_FSIZE, before)
    return "images processed meanwhile"


def no_home(bench: Bench) -> str:
    environment = _without(bench.environment, "HOME", "XDG_CACHE_HOME")
    bench.start(environment={**environment, "HOME": str(bench.folder / "no" / "home")})
    return "became active and processes images"


def no_home_nor_log_folder(bench: Bench) -> str:
    environment = _without(bench.environment, "ROS_LOG_DIR", "ROS_HOME")
    node = bench.launch(environment={**environment, "HOME": "/proc/none"})
    code = node.wait(120.0)
    lines = node.output.strip().splitlines()
    expect("Traceback" not in node.output, f"code {code} and a traceback: {lines[-1][:160]}")
    expect(code == 1, f"exit code {code}")
    expect(any("ROS_LOG_DIR" in line or "log" in line for line in lines), f"it says {lines[-1:]}")
    return f'exit code 1: "{lines[-1][:150]}"'


def small_shared_memory(bench: Bench) -> str:
    """All processes of the graph with 1 MB of /dev/shm: this script once more, inside."""
    import subprocess
    import sys

    bench.stop_node()
    script = str(Path(__file__).parent)
    child = subprocess.run(
        [*small_disk(Path("/dev/shm"), 1024), sys.executable, script, "--only", "none"],
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    expect(child.returncode == 0, f"no image came through: {child.stdout[-300:]}")
    return "images come through all the same"


def nothing(bench: Bench) -> str:
    bench.good_frame()
    return f"a {SIZE[1]}x{SIZE[0]} image is processed"


def _without(environment: Mapping[str, str], *names: str) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key not in names}


NOT_CONFIGURED = "not configured, the reason in log and diagnostics; the process stays"
WEIGHT_FAULTS = [
    ("missing_weights", "model directory without its weights",
     lambda model: (model / WEIGHTS).unlink(), ""),
    ("no_model", "model directory that does not exist", shutil.rmtree, "damaged"),
    ("truncated_weights", "weights cut in half", truncate, ""),
    ("unreadable_weights", "weights without permission to read", make_unreadable, ""),
    ("empty_weights", "weights of 0 bytes", lambda model: os.truncate(model / WEIGHTS, 0), ""),
    ("other_weights", "weights of another shape", other_shape, ""),
]  # fmt: skip

FAULTS = [
    *(
        Fault("resources", name, injected, NOT_CONFIGURED, bad_model(change, words),
              Bench.back_to_normal)
        for name, injected, change, words in WEIGHT_FAULTS
    ),
    Fault("resources", "nan_weights", "weights that are all NaN",
          "refused or each image counted as failed; nothing published", nan_weights,
          Bench.back_to_normal),
    Fault("resources", "pickle_weights", "a pickle with code in place of the weights",
          "not executed, not configured", pickle_weights, Bench.back_to_normal),
    Fault("resources", "wrong_hash", "fetched weights of the right size and other bytes",
          NOT_CONFIGURED, wrong_hash, Bench.back_to_normal, needs_node=False),
    Fault("resources", "memory_limit", "no more address space, then a 2500x1500 image",
          "counted as failed, the process stays", memory_limit),
    Fault("resources", "file_size_limit", "RLIMIT_FSIZE of 0 on the running node",
          "images go on", file_size_limit),
    Fault("resources", "full_disk", "no byte free where ROS logs go", "works without a log file",
          full_disk, needs_node=False),
    Fault("resources", "no_home", "HOME is a folder that cannot be made", "works", no_home,
          needs_node=False),
    Fault("resources", "no_log_folder", "neither HOME nor ROS_LOG_DIR can be written",
          "exit code 1 with one line that names them", no_home_nor_log_folder, Bench.restart,
          needs_node=False),
    Fault("resources", "small_shared_memory", "1 MB of /dev/shm for the whole graph",
          "images come through", small_shared_memory, Bench.restart, needs_node=False),
]  # fmt: skip

NONE = [Fault("none", "none", "nothing", "a good frame", nothing)]
"""Not part of the script: shows that node and client work."""
