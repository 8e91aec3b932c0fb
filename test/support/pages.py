"""Pages as a browser reads them."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

VOID = {"meta", "link", "img", "input", "br"}


class Parsed(HTMLParser):
    """A page's text by element, its links and its data.

    Attributes:
        text: what people read, without styles and scripts.
        links: addresses of files beside the page.
        open: elements that were not closed.
        tags: how many elements there are of each kind.
        data: what the page's code reads.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.file = file
        self.text, self.links, self.open = "", list[str](), list[str]()
        self.tags: Counter[str] = Counter()
        self._scripts: list[str] = []
        self.feed(file.read_text("utf-8"))
        self.close()
        self.data: dict[str, Any] = json.loads(self._scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if k in ("href", "src") and v and v.startswith("./")]
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self._scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self._scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data

    def referenced(self) -> list[Path]:
        """Every file that the page shows or links to."""
        addresses = list(self.links)
        for frame in self.data["frames"]:
            keys = [self.data["layers"][i]["key"] for i in frame["has"]]
            addresses += [
                f"{frame['base']}_{key}.jpg" for key in [*keys, *(["thumb"] * bool(keys))]
            ]
            addresses += [address for _, address in frame["files"]]
            addresses += [frame["motion"]] * bool(frame["motion"])
        assert all(address.startswith("./") for address in addresses)
        return [self.file.parent / unquote_to_bytes(a).decode(errors="surrogateescape")
                for a in addresses]  # fmt: skip
