"""The console script `anomaly-detector`."""

from __future__ import annotations

import logging
import sys
import traceback

import typer

from anomaly_detector_ros import __version__
from anomaly_detector_ros.cli.bag import bag
from anomaly_detector_ros.cli.benchmark import benchmark
from anomaly_detector_ros.cli.calibrate import calibrate
from anomaly_detector_ros.cli.common import console
from anomaly_detector_ros.cli.demo import demo
from anomaly_detector_ros.cli.detect import detect
from anomaly_detector_ros.cli.evaluate import evaluate
from anomaly_detector_ros.cli.lessons import app as lessons
from anomaly_detector_ros.cli.models import app as models
from anomaly_detector_ros.cli.selfcheck import selfcheck
from anomaly_detector_ros.cli.teach import teach
from anomaly_detector_ros.cli.train import train
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.runtime.allocator import tune
from anomaly_detector_ros.runtime.signals import sigterm_as_interrupt

app = typer.Typer(
    name="anomaly-detector",
    help="Finds, pixel by pixel, what does not belong in an off-road scene.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_ANYWHERE = ("--debug", "--quiet", "--verbose")
"""Options that may stand before and behind a command."""

for command in (detect, bag, train, calibrate, teach, evaluate, benchmark, demo, selfcheck):
    app.command()(command)
app.add_typer(models, name="models")
app.add_typer(lessons, name="lessons")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _globals(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    quiet: bool = typer.Option(
        False, "--quiet", help="Print results and errors alone: no progress, no warnings."
    ),
    verbose: bool = typer.Option(
        False, "--verbose", help="Print the time of each stage for each frame."
    ),
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    # Taken from the arguments by main() already, so that they may stand behind the command as well.
    del debug, quiet, verbose, version


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 error, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""
    given = sys.argv[1:] if arguments is None else arguments
    ours = given[: given.index("--")] if "--" in given else given
    debug, quiet, verbose = (option in ours for option in _ANYWHERE)
    _speak(quiet, verbose)
    tune()  # before torch is imported
    try:
        with sigterm_as_interrupt():
            app([*(a for a in ours if a not in _ANYWHERE), *given[len(ours) :]])
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        _report(str(error), debug)
    except BrokenPipeError:
        # The reader of a pipe left, as `head` does; closing stderr too keeps Python quiet about it.
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        _report(
            f"{type(error).__name__}: {error} (run again with --debug for the traceback)", debug
        )


class _ToConsole(logging.Handler):
    """Writes the package's log where the commands write for people."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage(), style="dim", markup=False, soft_wrap=True)


def _speak(quiet: bool, verbose: bool) -> None:
    console.quiet = quiet
    log = logging.getLogger("anomaly_detector_ros")
    log.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.NOTSET)
    log.handlers = [_ToConsole()] if verbose else []


def _report(text: str, debug: bool) -> None:
    """One red line, after the traceback if it is wanted; exits with 1."""
    console.quiet = False
    if debug:
        traceback.print_exc()
    console.print(f"error: {one_line(text)}", style="red", markup=False, soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
