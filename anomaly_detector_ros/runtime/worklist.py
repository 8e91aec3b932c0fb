"""Work that processes, on one machine or on several, share by a directory that all of them see."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.files import replace_file

BEAT = 10.0
"""Seconds between the signs of life that a process gives of the piece it is at."""
DEAD_AFTER = 90.0
"""A process of another machine that gives none for so many seconds counts as dead."""
_POLL = 0.5

_END = "summary"

Chains = Sequence[Sequence[str]]
Needs = Mapping[str, Collection[str]]


def share(
    directory: Path,
    job: Mapping[str, Any],
    summary: Path,
    chains: Chains,
    needs: Needs,
    do: Callable[[WorkList, str], Any],
    merge: Callable[[WorkList], Mapping[str, Any]],
) -> dict[str, Any]:
    """Do the pieces of a job with all processes that are told the same, until it is done.

    A run that was interrupted goes on from the pieces that it finished, and one that is finished
    is not begun again.

    Args:
        directory: of the work list; cleared when all is done.
        job: see `WorkList`.
        summary: file that `merge`'s result goes to, with the job's digest as ``job``.
        chains: see `WorkList.pieces`.
        needs: see `WorkList.pieces`.
        do: does a piece; what it gives can be had by `WorkList.result`.
        merge: called once all is done, by one process.

    Returns:
        What the summary holds.

    Raises:
        UserError: another job has left work there.
        OSError: something cannot be written.
    """
    found = find_summary(summary, job)
    if found is None:
        everything = [piece for chain in chains for piece in chain]
        with WorkList(directory, job) as work:
            for piece in work.pieces([*chains, [_END]], {**needs, _END: everything}):
                if find_summary(summary, job):  # all was done, and the directory made anew by us
                    break
                if piece == _END:
                    _write_json(summary, {"job": _digest(job), **merge(work)})
                    break
                try:
                    work.finish(piece, do(work, piece))
                except OSError:
                    if not find_summary(summary, job):
                        raise
                    break  # others took this process for dead, and have done it all
    shutil.rmtree(directory, ignore_errors=True)
    found = found or find_summary(summary, job)
    if found is None:
        raise UserError(f"'{directory}' was removed while at work: start the command again")
    return found


def find_summary(file: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of a job that is done; None where there is none, or it is another's."""
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
        return found if found["job"] == _digest(job) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class WorkList:
    """Who is at which piece of work, as files in a directory; a context manager.

    ``PIECE.N.claim`` is the Nth claim of a piece and says who made it; only one process can make
    it. ``PIECE.done`` holds the piece's result. All files appear with their whole content, and none
    is ever changed, so a shared folder (NFS) will do.

    A process of this machine is known to be dead by its number and start, one of another by its
    silence. One that is wrongly taken for dead does its piece too: whatever a piece leaves behind
    must come out the same, and appear at once under its name.

    Args:
        directory: made if it is not there.
        job: what the results depend on, by the words in which an error names it.
        beat, dead_after: see `BEAT` and `DEAD_AFTER`.

    Raises:
        UserError: the directory is of another job.
        OSError: it cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        job: Mapping[str, Any],
        *,
        beat: float = BEAT,
        dead_after: float = DEAD_AFTER,
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        written = json.dumps(job, default=str).encode()
        if not _create(directory / "job.json", written):
            _check_same(directory, json.loads(written))
        self.done: set[str] = set()
        self._dead_after = dead_after
        self._me = _identity()
        self._held: Path | None = None
        # Of claims of other machines: their last sign of life and when it was first seen here.
        self._seen: dict[Path, tuple[int, float]] = {}
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, args=[beat], name="claims", daemon=True)

    def __enter__(self) -> WorkList:
        """Itself, giving signs of life."""
        self._pulse.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give no more of them."""
        self._ended.set()
        self._pulse.join()

    def pieces(self, chains: Chains, needs: Needs | None = None) -> Iterator[str]:
        """The pieces that this process is to do, one after the other, until all are done.

        Each must be given to `finish` before the next is asked for. Where all are taken, it waits:
        the pieces of a process that dies come here. It also ends when the directory is gone.

        Args:
            chains: pieces, each best done by the process that did the one before it in its chain.
            needs: pieces that must be done before a piece.
        """
        last = None
        while self._look():
            if all(piece in self.done for chain in chains for piece in chain):
                return
            last = self._take(chains, needs or {}, last)
            if last is None:
                self._ended.wait(_POLL)
            else:
                yield last
                self._held = None

    def finish(self, piece: str, result: Any) -> None:
        """Keep the result of a piece, as JSON has it; raises OSError."""
        _write_json(self._done_file(piece), result)
        self.done.add(piece)

    def result(self, piece: str) -> Any:
        """What `finish` was given; raises OSError where the piece is not done."""
        return json.loads(self._done_file(piece).read_bytes())

    def _done_file(self, piece: str) -> Path:
        return self.directory / f"{piece}.done"

    def _claim_file(self, piece: str, number: int) -> Path:
        return self.directory / f"{piece}.{number}.claim"

    def _look(self) -> bool:
        """See what is done and claimed by now; False where the directory is gone."""
        self._claims: dict[str, int] = {}
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return False
        for name in names:
            piece, _, kind = name.rpartition(".")
            if kind == "done":
                self.done.add(piece)
            elif kind == "claim":
                piece, _, number = piece.rpartition(".")
                self._claims[piece] = max(int(number), self._claims.get(piece, 0))
        return True

    def _take(self, chains: Chains, needs: Needs, last: str | None) -> str | None:
        """Claim a piece; None where there is none to be had now."""
        ready = {
            piece
            for chain in chains
            for piece in chain
            if piece not in self.done and self.done.issuperset(needs.get(piece, ()))
        }
        piece = choose(chains, needs, ready - self._claims.keys(), self.done, last)
        if piece is None:  # all are taken: by processes that live?
            taken = (each for chain in chains for each in chain if each in ready)
            piece = next((each for each in taken if not self._is_alive(each)), None)
        if piece is None:
            return None
        claim = self._claim_file(piece, self._claims.get(piece, 0) + 1)
        try:
            claimed = _create(claim, json.dumps(self._me).encode())
        except FileNotFoundError:  # the directory is gone
            return None
        if not claimed:  # another was faster
            return None
        self._held = claim
        return piece

    def _is_alive(self, piece: str) -> bool:
        """Whether the process lives that claimed a piece last."""
        claim = self._claim_file(piece, self._claims[piece])
        try:
            owner = json.loads(claim.read_bytes())  # opened: NFS then asks for its time anew
            sign = claim.stat().st_mtime_ns
        except FileNotFoundError:
            return True  # all is done, and the directory cleared
        except ValueError:
            owner, sign = {}, 0  # written where links cannot be made, not to its end
        if owner.get("host") == self._me["host"]:
            return bool(owner == self._me) or _runs(owner["pid"], owner["started"])
        if self._seen.get(claim, (None, 0.0))[0] != sign:
            self._seen[claim] = sign, time.monotonic()
        return time.monotonic() - self._seen[claim][1] < self._dead_after

    def _beat(self, every: float) -> None:
        while not self._ended.wait(every):
            held = self._held
            with suppress(OSError):
                if held is not None:
                    os.utime(held)


def choose(
    chains: Chains, needs: Needs, free: Collection[str], done: Collection[str], last: str | None
) -> str | None:
    """Of the free pieces the one to do next; None if there is none.

    Pieces that needed others come first, what they were made of can then go. Then the one behind
    the last one done, then one behind which nobody is at work, and else the middle of the longest
    stretch of free ones: who is before it works towards it.

    >>> chain = ["a", "b", "c", "d", "e"]
    >>> choose([chain], {}, {"b", "c", "d", "e"}, done=(), last=None)
    'd'
    >>> choose([chain], {}, {"b", "c", "d", "e"}, done={"a"}, last="a")
    'b'
    """
    needy = next((piece for piece in needs if piece in free), None)
    if needy is not None:
        return needy
    stretches: list[list[str]] = []
    idle: list[str] = []
    for chain in chains:
        before = None
        for piece in chain:
            if piece in free:
                if last is not None and before == last:
                    return piece
                if before is None or before in done:
                    idle.append(piece)
                if before not in free:
                    stretches.append([])
                stretches[-1].append(piece)
            before = piece
    if idle:
        return idle[0]
    longest = max(stretches, key=len, default=None)
    return longest[len(longest) // 2] if longest else None


def _digest(job: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(job, default=str).encode()).hexdigest()


def _write_json(file: Path, content: Any) -> None:
    text = json.dumps(content, indent=2) + "\n"
    replace_file(file, lambda partial: partial.write_text(text))


def _create(file: Path, data: bytes) -> bool:
    """Make a file with its content at once; False where it is there already."""
    private = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        private.write_bytes(data)
        os.link(private, file)
    except FileExistsError:
        return False
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        try:
            with file.open("xb") as out:
                out.write(data)
        except FileExistsError:
            return False
    finally:
        private.unlink(missing_ok=True)
    return True


def _check_same(directory: Path, job: Mapping[str, Any]) -> None:
    """Raises UserError unless the directory's job is this one."""
    try:
        earlier = json.loads((directory / "job.json").read_bytes())
    except ValueError:
        earlier = {}
    different = [key for key in job if job[key] != earlier.get(key)]
    if different:
        raise UserError(
            f"the work in '{directory}' is of a run with another {different[0]}: give it as "
            "before, or remove that folder"
        )


def _identity() -> dict[str, Any]:
    """Who this process is; within one ``host`` a ``pid`` means the same to all."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # of other systems than Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return {
        "host": " ".join(parts),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def _runs(pid: int, started: float) -> bool:
    """Whether a process of this machine runs; one that has ended but was not waited for doesn't."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 5 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # not ours to look at
        return True
