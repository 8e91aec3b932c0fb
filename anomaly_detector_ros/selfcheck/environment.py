"""The machine and the installation: what a bug report needs to be understood."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from anomaly_detector_ros import __version__
from anomaly_detector_ros.benchmarking.machine import cpu_name
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, load_profile, profile_names
from anomaly_detector_ros.runtime import allocator
from anomaly_detector_ros.runtime.devices import available_cores, choose_dtype, cpu_flags
from anomaly_detector_ros.runtime.environment import (
    FASTDDS,
    SEGMENT,
    fastdds_profile,
    shared_memory_suffices,
)
from anomaly_detector_ros.selfcheck.finding import Finding
from anomaly_detector_ros.weights.registry import Registry

PACKAGES = (
    "torch", "torchvision", "onnxruntime", "onnx", "diffusers", "timm", "open-clip-torch",
    "numpy", "scipy", "scikit-image", "opencv-python-headless", "pillow", "faiss-cpu", "rosbags",
)  # fmt: skip
# Those that the libraries have faster code for.
FEATURES = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
OPTIONAL_ROS = ("vision_msgs", "cv_bridge", "tf2_ros", "message_filters", "diagnostic_updater")
LEAST_MEMORY = 2 * 2**30
_NOT_SYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


def machine() -> Iterator[Finding]:
    """Versions, processor, memory and clocks."""
    section = "Machine"
    yield Finding(
        section,
        "versions",
        f"anomaly_detector_ros {__version__}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    )
    yield Finding(section, "system", platform.platform())
    flags = [name for name in FEATURES if name in cpu_flags()]
    yield Finding(section, "processor", f"{cpu_name()}; {', '.join(flags) or 'features unknown'}")
    yield _cores(section)
    yield _busy(section)
    yield _memory(section)
    yield _allocator(section)
    yield _clocks(section)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _cores(section: str) -> Finding:
    cores, threads = available_cores(), torch.get_num_threads()
    told = f"{cores} of {os.cpu_count()}; torch uses {threads} threads"
    told += f", in {str(choose_dtype('auto', torch.device('cpu'))).removeprefix('torch.')}"
    if threads < cores:
        setting = os.environ.get("OMP_NUM_THREADS")
        remedy = "unset OMP_NUM_THREADS" if setting else "see what sets torch's threads"
        return Finding(section, "cores", told, "advice", f"{remedy}: some cores are left out")
    return Finding(section, "cores", told)


def _busy(section: str) -> Finding:
    try:
        load = os.getloadavg()[0]
    except OSError:
        return Finding(section, "load", "unknown")
    if load > 0.5 * available_cores():
        remedy = "end other work and run it again: the times below are those of a busy machine"
        return Finding(section, "load", f"{load:.1f} processes ran or waited", "advice", remedy)
    return Finding(section, "load", f"{load:.1f}")


def _memory(section: str) -> Finding:
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit = _memory_limit()
    told = f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} free"
    if limit is not None and limit < total:
        told += f"; this container may use {limit / 2**30:.1f}"
        free = min(free, limit - psutil.Process().memory_info().rss)
    if free < LEAST_MEMORY:
        remedy = "end other programs or raise the container's limit: a detector takes 1 to 2 GiB"
        return Finding(section, "memory", told, "advice", remedy)
    return Finding(section, "memory", told)


def _memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        try:
            return int(file.read_text())
        except (OSError, ValueError):  # another version of cgroups, or "max"
            continue
    return None


def _allocator(section: str) -> Finding:
    set_ = {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}
    told = ", ".join([platform.libc_ver()[0] or "no glibc", *(f"{k}={v}" for k, v in set_.items())])
    if platform.libc_ver()[0] == "glibc" and not allocator.tune():
        remedy = "set MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ to 8589934592"
        return Finding(section, "allocator", f"{told}; refuses settings", "advice", remedy)
    return Finding(section, "allocator", told)


def _clocks(section: str) -> Finding:
    source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    told = source.read_text().strip() if source.is_file() else "source unknown"
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return Finding(section, "clocks", told)
    if state == _NOT_SYNCHRONISED:
        remedy = "run chrony or PTP if cameras stamp on other computers: ages go by stamps"
        return Finding(section, "clocks", f"{told}; not synchronised", "advice", remedy)
    return Finding(section, "clocks", f"{told}; synchronised" if state >= 0 else told)


def gpu(wanted: bool) -> Iterator[Finding]:
    """The GPUs and their driver.

    Args:
        wanted: whether it is an error that there is none.
    """
    section = "GPU"
    driver = Path("/proc/driver/nvidia/version")
    told = driver.read_text().splitlines()[0].partition(":")[2] if driver.is_file() else "none"
    yield Finding(section, "driver", " ".join(told.split()))
    if torch.cuda.is_available():
        yield Finding(section, "CUDA", f"torch is built for {torch.version.cuda}")
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            dtype = choose_dtype("auto", torch.device("cuda", index))
            yield Finding(
                section,
                f"cuda:{index}",
                f"{found.name}, {found.total_memory / 2**30:.1f} GiB, {found.major}.{found.minor}, "
                f"in {str(dtype).removeprefix('torch.')}",
            )
        return
    built = f"torch is built for {torch.version.cuda or 'no CUDA'}, it sees no GPU"
    if not driver.is_file() and not wanted:
        yield Finding(section, "CUDA", built)
        return
    remedy = (
        "install a torch that is built for CUDA"
        if torch.version.cuda is None
        else "install NVIDIA's driver, or a torch built for the one that is there; in a container "
        "pass the GPU in (--gpus all)"
    )
    yield Finding(section, "CUDA", built, "error" if wanted else "advice", remedy)


def ros() -> Iterator[Finding]:
    """ROS, its middleware and the shared memory that carries images."""
    section = "ROS 2"
    distribution = os.environ.get("ROS_DISTRO", "")
    wheels = next(filter(has_wheel, ("ros-jazzy-rclpy", "ros-humble-rclpy")), None)
    if find_spec("rclpy") is None:
        remedy = "source its setup.bash, or pip install 'anomaly_detector_ros[ros]'"
        yield Finding(section, "rclpy", "absent", "skipped", f"for the node: {remedy}")
        return
    origin = f"the package {wheels} {_version(wheels)}" if wheels else "an installation"
    yield Finding(section, "rclpy", f"{distribution or 'no ROS_DISTRO'}, from {origin}")
    there = [name for name in OPTIONAL_ROS if find_spec(name)]
    yield Finding(section, "packages used where present", ", ".join(there) or "none")
    middleware = os.environ.get("RMW_IMPLEMENTATION") or "rmw_fastrtps_cpp, by default"
    yield Finding(section, "middleware", middleware)
    if "fastrtps" in middleware:
        yield _fastdds(section)
        yield _segments(section)
    names = ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY")
    given = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    yield Finding(section, "graph", given or "defaults: domain 0, the whole subnet")


def has_wheel(package: str) -> bool:
    """Whether a Python package is installed."""
    return _version(package) != "absent"


def _fastdds(section: str) -> Finding:
    name = "Fast DDS profile"
    for variable in FASTDDS:
        if file := os.environ.get(variable):
            if Path(file).is_file():
                return Finding(section, name, f"{variable}={file}")
            remedy = f"correct or unset {variable}"
            return Finding(section, name, f"{file} is not there", "advice", remedy)
    told = f"none set; the launch files set {fastdds_profile()}"
    remedy = (
        f"export {FASTDDS[0]}={fastdds_profile()} for camera drivers too: most images of 720p "
        "are lost in the default's 0.5 MB of shared memory"
    )
    return Finding(section, name, told, "advice", remedy)


def _segments(section: str) -> Finding:
    """Room in /dev/shm, and what ended processes left there."""
    folder = Path("/dev/shm")
    try:
        free = shutil.disk_usage(folder).free
        files = [file for file in folder.glob("fastrtps_*") if not file.name.endswith("_el")]
        mapped = _mapped("/dev/shm/fastrtps_")
        left = [file.stat().st_size for file in files if str(file) not in mapped]
    except OSError as error:
        return Finding(section, "/dev/shm", f"cannot be read ({error.strerror})")
    told = f"{free / 2**20:.0f} MiB free"
    if not shared_memory_suffices():
        remedy = f"give it {4 * SEGMENT >> 20} MiB (docker run --shm-size): images go over UDP now"
        return Finding(section, "/dev/shm", told, "advice", remedy)
    if sum(left) > SEGMENT:
        told += f"; {len(left)} segments of {sum(left) / 2**20:.0f} MiB that no process here uses"
        remedy = "remove them while no ROS runs: rm /dev/shm/fastrtps_* /dev/shm/sem.fastrtps_*"
        return Finding(section, "/dev/shm", told, "advice", remedy)
    return Finding(section, "/dev/shm", told)


def _mapped(prefix: str) -> set[str]:
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:  # ended, or another user's
            continue
        found |= {line[line.index(prefix) :] for line in lines if prefix in line}
    return found


def weights(quick: bool) -> Iterator[Finding]:
    """The registry's models, and which profiles can run.

    Args:
        quick: trust what is remembered of files that have not changed since they were hashed.
    """
    section = "Weights"
    registry = Registry.default()
    needed, absent = load_profile(DEFAULT_PROFILE).model_names(), []
    for name in registry.names():
        try:
            states = registry.verify(name, anew=not quick)
        except UserError as error:
            yield Finding(section, name, str(error), "error", "make its files readable")
            continue
        bad = [each for each in states if each.state != "ok"]
        size = sum(each.bytes or 0 for each in states) / 1e6
        if not bad:
            yield Finding(section, name, f"present and verified, {size:.0f} MB")
            continue
        told = ", ".join(f"{each.name} is {each.state}" for each in bad)
        fetch = f"run `anomaly-detector models fetch {name}`"
        if any(each.state == "altered" for each in bad):
            yield Finding(section, name, told, "error", fetch)
        elif name in needed:
            yield Finding(section, name, told, "advice", f"{fetch}: `{DEFAULT_PROFILE}` needs it")
        else:
            absent.append(name)
    if absent:
        fetch = "`anomaly-detector models fetch NAME` or `convert` brings those you want to use"
        yield Finding(section, "not here", ", ".join(absent), "skipped", fetch)


def runnable_profiles() -> list[str]:
    """The profiles whose weights are here."""
    registry = Registry.default()
    return [
        name for name in profile_names() if all(map(registry.has, load_profile(name).model_names()))
    ]
