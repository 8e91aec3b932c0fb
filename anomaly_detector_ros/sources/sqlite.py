"""rosbag2's SQLite files, with what is still in the log beside them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rosbags.interfaces import MessageDefinition

from anomaly_detector_ros.sources.storage import connection, definition
from anomaly_detector_ros.sources.unpacking import no_room

MAGIC = b"SQLite format 3\0"

_LOGS = ("-wal", "-journal")


class SqliteFile:
    """An open .db3 file; see `storage.Storage`.

    Args:
        path: the file; never written to.
        folder: gives a folder for a copy of file and log, where a recorder left its last messages
            in a log.

    Raises:
        sqlite3.Error: damaged.
        ValueError: it has no tables of rosbag2.
        UserError: no room for the copy.
    """

    def __init__(self, path: Path, folder: Callable[[], Path]) -> None:
        logs = [log for log in (path.with_name(path.name + end) for end in _LOGS) if _holds(log)]
        if logs:
            copy = folder() / path.name
            if path.stat().st_size > shutil.disk_usage(copy.parent).free:
                raise no_room(path, copy)
            for file in (path, *logs):
                shutil.copyfile(file, copy.with_name(file.name))
            path = copy
        options = "mode=rw" if logs else "mode=ro&immutable=1"
        self._data = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?{options}", uri=True, check_same_thread=False
        )
        try:
            self._open()
        except BaseException:
            self._data.close()
            raise

    def close(self) -> None:
        """See `storage.Storage`."""
        self._data.close()

    def messages(self, ids: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """See `storage.Storage`."""
        wanted = ",".join(str(int(id_)) for id_ in ids)
        yield from self._data.execute(
            f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({wanted})"
            " ORDER BY timestamp, id"
        )

    def _open(self) -> None:
        columns = self._columns("topics")
        if not (columns and self._columns("messages")):
            raise ValueError("it has no tables of rosbag2")
        counts = dict(self._data.execute("SELECT topic_id, COUNT(*) FROM messages GROUP BY 1"))
        definitions: dict[str, MessageDefinition] = {}
        if self._columns("message_definitions"):
            rows = self._data.execute(
                "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
            )
            definitions = {kind: definition(encoding, text) for kind, encoding, text in rows}
        self.connections, self.left_out = [], {}
        for row in self._data.execute("SELECT * FROM topics ORDER BY id"):
            topic: dict[str, Any] = dict(zip(columns, row, strict=True))
            count = counts.pop(topic["id"], 0)
            encoding = topic.get("serialization_format", "cdr")
            if encoding != "cdr":
                self.left_out[topic["name"]] = encoding
                continue
            self.connections.append(
                connection(
                    topic["id"],
                    topic["name"],
                    topic["type"],
                    definitions.get(topic["type"], definition("", "")),
                    topic.get("type_description_hash") or "",
                    count,
                    topic.get("offered_qos_profiles"),
                )
            )
        if counts:
            raise ValueError(f"messages are of topic {min(counts)}, which nothing describes")

    def _columns(self, table: str) -> list[str]:
        return [row[1] for row in self._data.execute(f"PRAGMA table_info({table})")]


def _holds(log: Path) -> bool:
    return log.is_file() and log.stat().st_size > 0
