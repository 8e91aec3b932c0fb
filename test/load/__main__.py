"""Two 720p cameras at 30 Hz on one node: frames, ages, memory and CPU against their bounds.

``python test/load --seconds 180 --json FILE`` prints a table; exit code 1 if a bound is broken.
Needs ``pip install '.[ros]'`` or a ROS installation; ``light.yaml`` beside it is the profile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "faults")]


def main() -> int:
    """Runs and prints the table. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="load", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()

    from two_cameras import Run, checks

    from anomaly_detector_ros.runtime.signals import sigterm_as_interrupt

    with sigterm_as_interrupt(), tempfile.TemporaryDirectory(prefix="load_") as folder:
        run = Run(Path(folder), options.seconds)
        try:
            found = run.measure()
        finally:
            run.close()
    rows = checks(found)
    print("| measured | found | bound | holds |\n| --- | --- | --- | --- |")
    for what, value, bound, holds in rows:
        print(f"| {what} | {value} | {bound} | {'yes' if holds else '**no**'} |")
    found["holds"] = all(holds for *_, holds in rows)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
