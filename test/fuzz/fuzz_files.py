"""Mutated bags, models, fitted files, settings, archives and pictures through what reads them.

python test/fuzz/fuzz_files.py --count 1000 --seed 0
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.extend(str(Path(__file__).parents[up]) for up in (0, 1))

from harness import Case, main
from mutations import mutate, replace_somewhere
from subjects import SUBJECTS, Subject

_DOCUMENTS = {".json": True, ".yaml": False}


def make_case(seed: int) -> Case:
    """Case by number: its kind of file goes round, the changes are drawn."""
    # A process that is forked beside threads of OpenMP waits for them for ever.
    torch.set_num_threads(1)
    pristine = tempfile.TemporaryDirectory(prefix="fuzz-files-")
    made: dict[str, Path] = {}
    for index, subject in enumerate(SUBJECTS):
        folder = Path(pristine.name) / str(index)
        folder.mkdir()
        made[subject.name] = subject.make(folder)

    def case(number: int) -> bool:
        subject = SUBJECTS[number % len(SUBJECTS)]
        rng = np.random.default_rng([seed, number])
        with tempfile.TemporaryDirectory(prefix="fuzz-case-") as scratch:
            return _try(subject, made[subject.name], Path(scratch), rng)

    case.pristine = pristine  # type: ignore[attr-defined] - removed when the cases are
    return case


def _try(subject: Subject, good: Path, scratch: Path, rng: np.random.Generator) -> bool:
    """Read a spoilt copy; it must not reach anything outside its own folder."""
    folder = scratch / "inside"
    shutil.copytree(good.parent, folder)
    copy = folder / good.name
    files = sorted(path for path in copy.rglob("*") if path.is_file()) if copy.is_dir() else [copy]
    _spoil(files[int(rng.integers(len(files)))], rng)
    try:
        return subject.read(copy) is not None
    finally:
        assert [path.name for path in scratch.iterdir()] == ["inside"], "it wrote outside"


def _spoil(file: Path, rng: np.random.Generator) -> None:
    as_json = _DOCUMENTS.get(file.suffix)
    if as_json is not None and rng.random() < 0.7:
        file.write_text(replace_somewhere(file.read_text(), rng, as_json=as_json))
    else:
        file.write_bytes(mutate(file.read_bytes(), rng, head=1000))


if __name__ == "__main__":
    sys.exit(main("mutated files", make_case, 1000, memory=4 << 30))
