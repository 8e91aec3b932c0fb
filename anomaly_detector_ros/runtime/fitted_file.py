"""Files of what was fitted: tensors, a header in JSON, and a check that both are as written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.runtime.files import replace_file

Tensors = Mapping[str, Tensor]


def header_key(kind: str) -> str:
    """Key of the file's metadata under which the header of a ``kind`` of file stands."""
    return f"anomaly_detector_ros.{kind}"


def save_fitted(
    path: Path, kind: str, header: Mapping[str, Any], tensors: Tensors, libraries: tuple[str, ...]
) -> None:
    """Writes one safetensors file, whole or not at all.

    Args:
        kind: calibration or baseline.
        header: anything JSON can write.
        libraries: distributions whose versions go into the header.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    # safetensors writes memory as it lies, whatever its strides.
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    whole = {
        **header,
        "libraries": {library: version(library) for library in libraries},
        "sha256": digest(plain),
    }
    data = save(plain, metadata={header_key(kind): json.dumps(whole)})
    replace_file(path, lambda partial: _write(partial, data))


def _write(file: Path, data: bytes) -> None:
    """On the disk, not only in its cache: the name must not appear before its content."""
    with open(file, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def open_fitted(
    path: Path, kind: str, command: str
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Header and tensors of a file that `save_fitted` wrote.

    KeyError, TypeError, ValueError and RuntimeError raised within mean a malformed file.

    Args:
        command: what writes such files, for the remedy.

    Raises:
        UserError: missing, truncated or altered, or a file of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        try:
            # At once: safetensors opens it twice, and another process may replace it in between.
            data = path.read_bytes()
        except OSError as error:
            reason = one_line(error, 200)
            raise UserError(f"cannot read {kind} '{path}' ({reason}): give another") from error
        tensors = load(data)
        begin = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = begin.get("__metadata__", {})[header_key(kind)]
        header = json.loads(text)
        if header["sha256"] != digest(tensors):
            raise ValueError("it is altered, its sha256 does not fit")
        yield header, tensors
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"'{path}' is no {kind}: give a file that `anomaly-detector {command}` wrote "
            f"({one_line(error, 200)})"
        ) from error


def digest(tensors: Tensors) -> str:
    """sha256 of the tensors' names and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].contiguous().numpy().tobytes())
    return sha.hexdigest()
