"""Injects faults into a running node and into commands, and shows what happened and recovered.

``python test/faults`` runs all; ``--list`` names them, ``--only NAME,GROUP,...`` runs some, and
``--json FILE``, ``--markdown FILE`` write the results. Exit code 1 if one is not as expected.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[up]) for up in (1, 2)]


def main() -> int:
    """Runs the faults of choice. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names or groups, with commas")
    parser.add_argument("--skip", default="", help="names or groups to leave out, with commas")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    options = parser.parse_args()
    # A shell's background jobs ignore SIGINT, and so would the processes that get one here.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    import bag_faults
    import detect_faults
    import fetch_faults
    import graph_faults
    import message_faults
    import request_faults
    import resource_faults
    import signal_faults
    from bench import Bench
    from fault import markdown, run

    from anomaly_detector_ros.runtime.signals import sigterm_as_interrupt

    script = [
        *message_faults.FAULTS,
        *graph_faults.FAULTS,
        *request_faults.FAULTS,
        *signal_faults.FAULTS,
        *resource_faults.FAULTS,
        *detect_faults.FAULTS,
        *bag_faults.FAULTS,
        *fetch_faults.FAULTS,
    ]
    without = set(options.skip.split(","))
    wanted = set(options.only.split(",")) if options.only else {each.group for each in script}
    known = [*script, *resource_faults.NONE]
    unknown = wanted - {each.name for each in known} - {each.group for each in known}
    if unknown:
        parser.error(f"no fault or group '{min(unknown)}': see --list")
    chosen = [
        each for each in known if {each.name, each.group} & wanted
        and not {each.name, each.group} & without
    ]  # fmt: skip
    if options.list:
        for each in chosen:
            print(f"{each.group:10} {each.name:22} {each.injected}")
        return 0

    results = []
    with sigterm_as_interrupt(), tempfile.TemporaryDirectory(prefix="faults_") as folder:
        bench = Bench(Path(folder))
        try:
            for each in chosen:
                results.append(run(each, bench))
                last = results[-1]
                well = last.skipped or (last.as_expected and last.recovered)
                print(f"{'ok  ' if well else 'FAIL'} {last.name}: {last.happened}", file=sys.stderr,
                      flush=True)  # fmt: skip
        finally:
            bench.close()
            if options.json:
                options.json.write_text(json.dumps([asdict(each) for each in results], indent=2))
            if options.markdown:
                options.markdown.write_text(markdown(results))
    print(markdown(results))
    return 0 if all(r.skipped or (r.as_expected and r.recovered) for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
