"""The commands of each tutorial, run one after the other with the real models: make tutorials."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for page in sorted([*ROOT.glob("docs/tutorials/*.md"), ROOT / "examples" / "README.md"])
    if page.is_file() and "```bash" in page.read_text()
]

pytestmark = [pytest.mark.slow, pytest.mark.tutorial]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_run(page: Path, tmp_path: Path) -> None:
    """Blocks of `bash` alone: those of `sh` need ROS, a camera, Docker or downloads."""
    for name in ("demo", "docs", "examples", "models"):  # a reader stands in the checkout
        (tmp_path / name).symlink_to(ROOT / name)
    script = "\n".join(re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.M | re.S))
    binaries = Path(sys.executable).parent
    path = os.pathsep.join([str(binaries), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        timeout=1800,
    )
    assert done.returncode == 0, "the last line above that begins with + failed"
