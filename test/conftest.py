"""Fixtures shared by unit and integration tests."""

from __future__ import annotations

import os
from pathlib import Path

# Tiny networks only lose time to a second thread, most of all when several processes share the
# cores. Inherited by the processes that tests start; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from support.tiny import save_tiny_unet, write_profile

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real off-road images beside the checkout; tests that need them skip without."""
    return _shared("data", "evaluation images")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Published weights beside the checkout; tests that need them skip without."""
    return _shared("models", "published weights")


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Inputs that were trouble, beside the checkout; tests that need them skip without."""
    return _shared("cases", "odd inputs")


def _shared(folder: str, what: str) -> Path:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no {what} at {SHARED / folder}")
    return SHARED / folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers model directory with a tiny U-Net of random weights."""
    return save_tiny_unet(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def light_profile(tiny_model: Path) -> str:
    """Path of a profile file: random tiny U-Net, RGB features, no segmenter, no fetched weights."""
    return str(write_profile(tiny_model.parent / "light_test.yaml", tiny_model))
