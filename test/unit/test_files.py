import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anomaly_detector_ros.runtime.files import replace_directory, replace_file


@pytest.mark.parametrize("exception", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, exception):
    file = tmp_path / "model.pt"
    replace_file(file, lambda partial: partial.write_text("old"))

    def fail(partial: Path) -> None:
        partial.write_text("ne")
        raise exception

    with pytest.raises(exception):
        replace_file(file, fail)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    file = tmp_path / "model.safetensors"
    for _ in range(2):
        replace_file(file, lambda partial: save_file({"weight": torch.zeros(2)}, partial))
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def test_files_of_a_directory_follow_the_umask(tmp_path: Path, umask: int) -> None:
    def write(partial: Path) -> None:
        (partial / "unet").mkdir()
        save_file({"weight": torch.zeros(2)}, partial / "unet" / "model.safetensors")
        (partial / "config.json").write_text("{}")

    for _ in range(2):  # the second time one is there
        replace_directory(tmp_path / "new" / "model", write)
    files = [path for path in (tmp_path / "new" / "model").rglob("*") if path.is_file()]
    assert {file.name for file in files} == {"model.safetensors", "config.json"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~umask}
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_an_interrupted_write_leaves_the_old_directory(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    replace_directory(directory, lambda partial: (partial / "a").touch())

    def fail(partial: Path) -> None:
        (partial / "b").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_directory(directory, fail)
    assert [path.name for path in directory.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [directory]
