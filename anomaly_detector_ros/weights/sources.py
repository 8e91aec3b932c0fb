"""Where a model's file may come from: a local path, a web address, Hugging Face, Google Drive."""

from __future__ import annotations

import contextlib
import html.parser
import os
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.request import OpenerDirector

from anomaly_detector_ros.weights import web
from anomaly_detector_ros.weights.landing import Landing, SourceError, read_chunks
from anomaly_detector_ros.weights.workspace import Workspace

_PAGE_LIMIT = 1 << 20


class Source(Protocol):
    """One place to get one file from."""

    def describe(self) -> str:
        """How messages name this source."""

    def offline_copy(self, landing: Landing) -> bool:
        """Bring the file without any network or child process; False where that cannot be."""

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """Bring the file to `landing`; raises SourceError (this source) or OSError (our disk)."""


@dataclass(frozen=True)
class LocalSource:
    """A file on this machine; `~` and `$VARIABLES` are expanded when it is used."""

    path: str

    def describe(self) -> str:
        """How messages name this source."""
        return f"local path {self.path}"

    def offline_copy(self, landing: Landing) -> bool:
        """As `deliver`: it needs no network."""
        _land_file(Path(os.path.expandvars(self.path)).expanduser(), landing)
        return True

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """Copy the file to `landing`."""
        self.offline_copy(landing)


@dataclass(frozen=True)
class UrlSource:
    """A plain web address. http is allowed because the content is checked by its sha256."""

    url: str

    def describe(self) -> str:
        """How messages name this source."""
        return self.url

    def offline_copy(self, landing: Landing) -> bool:
        """Bring the file without the network: not possible here."""
        return False

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """Download, resuming an interrupted one."""
        web.download(self.url, landing)


@dataclass(frozen=True)
class HuggingFaceSource:
    """`file` of the Hugging Face repository `repo` ("owner/name") at `revision`.

    The user's token, endpoint and offline settings are those of huggingface_hub, and a copy in
    its cache is used first.
    """

    repo: str
    file: str
    revision: str = "main"
    endpoint: str | None = None

    def describe(self) -> str:
        """How messages name this source."""
        return f"Hugging Face {self.repo}"

    def offline_copy(self, landing: Landing) -> bool:
        """Take the file from Hugging Face's own cache, if it is there and unaltered."""
        hub = _hub()
        cached = hub.try_to_load_from_cache(self.repo, self.file, revision=self.revision)
        if not isinstance(cached, str):
            return False
        _land_file(Path(cached), landing)
        return True

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """Copy from Hugging Face's cache, or download, resuming an interrupted one."""
        hub = _hub()
        with contextlib.suppress(SourceError):
            if self.offline_copy(landing):
                return
        if hub.constants.HF_HUB_OFFLINE:
            raise SourceError("HF_HUB_OFFLINE is set", remedy="unset HF_HUB_OFFLINE")
        address = hub.hf_hub_url(
            self.repo, self.file, revision=self.revision, endpoint=self.endpoint
        )
        try:
            web.download(address, landing, headers=hub.utils.build_hf_headers())
        except SourceError as error:
            if error.status in (401, 403):
                error.remedy = f"accept the licence of {self.repo} and log in with `hf auth login`"
            raise


@dataclass(frozen=True)
class GoogleDriveSource:
    """A public Google Drive file by its id, through the page that asks to confirm large ones."""

    file_id: str
    address: str = "https://drive.google.com/uc"

    def describe(self) -> str:
        """How messages name this source."""
        return f"Google Drive {self.file_id}"

    def offline_copy(self, landing: Landing) -> bool:
        """Bring the file without the network: not possible here."""
        return False

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """Download, resuming an interrupted one."""
        opener = web.make_opener()
        query = urllib.parse.urlencode({"export": "download", "id": self.file_id})
        address = f"{self.address}?{query}"
        page = self._page(opener, address)
        web.download(self._confirmed(page) if page else address, landing, opener=opener)

    def _page(self, opener: OpenerDirector, address: str) -> str:
        """The HTML page that Google Drive answers with, "" if it answers with the file."""
        with web.open_url(opener, address) as response:
            if response.headers.get_content_type() != "text/html":
                return ""
            try:
                return str(response.read(_PAGE_LIMIT).decode("utf-8", "replace"))
            except OSError as error:
                raise SourceError(f"the connection broke ({error})") from error

    def _confirmed(self, page: str) -> str:
        """The address behind the page's "download anyway" form."""
        form = _Form()
        form.feed(page)
        if not form.action:
            if "quota" in page.lower():
                raise SourceError("too many people downloaded this file: try again tomorrow")
            raise SourceError("answers with a page instead of the file: is it public?")
        action = urllib.parse.urljoin(self.address, form.action)
        host = urllib.parse.urlsplit(action).hostname or ""
        own = urllib.parse.urlsplit(self.address).hostname
        if host != own and not host.endswith((".google.com", ".googleusercontent.com")):
            raise SourceError(f"its page leads to a foreign host ({host})")
        return f"{action}?{urllib.parse.urlencode(form.fields)}"


class _Form(html.parser.HTMLParser):
    """Action and hidden fields of the form with the id `download-form`."""

    def __init__(self) -> None:
        super().__init__()
        self.action = ""
        self.fields: dict[str, str] = {}
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag == "form":
            self._inside = values.get("id") == "download-form"
            if self._inside:
                self.action = values.get("action", "")
        elif tag == "input" and self._inside and values.get("type") == "hidden":
            self.fields[values.get("name", "")] = values.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False


def _land_file(path: Path, landing: Landing) -> None:
    with _opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != landing.size:
            raise SourceError(f"has {size} bytes, not the {landing.size} declared")
        landing.receive(read_chunks(stream))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        stream = open(path, "rb")  # noqa: SIM115 - closed below; only opening is caught here
    except OSError as error:
        raise SourceError((error.strerror or str(error)).lower()) from error
    with stream:
        yield stream


def _hub() -> Any:
    """huggingface_hub, imported when a source needs it (it is slow to import)."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError:
        raise SourceError(
            "huggingface_hub is not installed", remedy="pip install huggingface_hub"
        ) from None
    return huggingface_hub
