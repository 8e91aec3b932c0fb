"""Parts of a detector that load weights: how their settings name them, and where they lie."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.files import hash_file
from anomaly_detector_ros.weights.registry import Registry

RANDOM = "random"
"""In place of weights: those that a network starts its training with, for timing and tests."""

# What counts of a directory: configurations too, as a network means nothing without its own.
_LOADED = (".safetensors", ".onnx", ".bin", ".pt", ".pth", ".ckpt", ".json")


@dataclass(frozen=True)
class Loader:
    """Finds weights by what settings call them: a model of the registry, or a path.

    A text with a slash in it is a path, any other one is a model's name.

    Attributes:
        registry: where models are.
        device: where the parts run.
        offline: never touch the network.
    """

    registry: Registry
    device: torch.device
    offline: bool = False

    def files(self, weights: str) -> list[Path]:
        """The files of a model, in the registry's order, or of a path, which need not exist.

        Raises:
            UserError: the registry does not know the model, or a file of it is missing.
        """
        if not is_path(weights):
            folder = self.registry.path(weights)
            return [folder / file.name for file in self.registry.entry(weights).files]
        path = Path(weights).expanduser()
        if not path.is_dir():
            return [path]
        return sorted(file for file in path.rglob("*") if file.suffix in _LOADED)

    def sha256(self, weights: str) -> list[str]:
        """The content of each of `files`; a model's is checked, and hashed only if it changed.

        Raises:
            UserError: a file is missing or altered; see also `files`.
        """
        if is_path(weights):
            return [content_sha256(file) for file in self.files(weights)]
        folder = self.registry.path(weights, verify=True)
        files = self.registry.entry(weights).files
        return [file.sha256 or content_sha256(folder / file.name) for file in files]

    def file(self, weights: str) -> Path:
        """The only file.

        Raises:
            UserError: there are several; see also `files`.
        """
        files = self.files(weights)
        if len(files) != 1:
            raise UserError(f"weights '{weights}': {len(files)} files: expected one")
        return files[0]


class Weighted:
    """Base of the settings of parts that may load weights: which these are."""

    def weights_used(self) -> tuple[str, ...]:
        """What is loaded, as `Loader.files` takes it."""
        return ()

    def random_weights(self) -> Mapping[str, str]:
        """Settings that need no file, where there are such."""
        return {}

    def published(self, loader: Loader) -> Path | None:
        """A file that comes from neither the registry nor a path, but from its publisher.

        Raises:
            UserError: it cannot be had.
        """
        return None

    def models(self) -> list[str]:
        """The names of the registry's models among `weights_used`: they must be fetched first."""
        return [weights for weights in self.weights_used() if not is_path(weights)]

    def sha256(self, loader: Loader) -> list[str]:
        """The content of every file that is loaded.

        Raises:
            UserError: a file is missing.
        """
        hashes = [sha256 for weights in self.weights_used() for sha256 in loader.sha256(weights)]
        published = self.published(loader)
        return [*hashes, content_sha256(published)] if published else hashes


def is_path(weights: str) -> bool:
    """Whether weights are named by a path."""
    return "/" in weights


def content_sha256(file: Path) -> str:
    """Hex sha256 of a file's content, hashed once as long as it does not change.

    Raises:
        UserError: it cannot be read.
    """
    try:
        status = file.stat()
        return _sha256(file, (status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    except OSError as error:
        raise UserError(f"cannot read '{file}' ({error.strerror}): correct its path") from error


@functools.lru_cache(maxsize=256)
def _sha256(file: Path, mark: tuple[int, int, int]) -> str:
    return hash_file(file)
