from pathlib import Path

import pytest

from anomaly_detector_ros.runtime.files import replace_file


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
