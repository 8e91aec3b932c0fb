"""Where a model's file may come from: a local path, a web address, Hugging Face, Google Drive."""

from __future__ import annotations

import contextlib
import html.parser
import os
import re
import shutil
import tempfile
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.request import OpenerDirector

from pydantic import AfterValidator

from anomaly_detector_ros.weights import web
from anomaly_detector_ros.weights.landing import DownloadProgress, Landing, SourceError, read_chunks

_PAGE_LIMIT = 1 << 20
_WORKSPACE = ".download-"


def matching(pattern: str, what: str) -> AfterValidator:
    """For an annotation: a text that the whole of ``pattern`` matches, which is to be ``what``."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.DOTALL):
            raise ValueError(what)
        return text

    return AfterValidator(check)


# A leading dash would read as an option where the text is given to a command.
Text = Annotated[str, matching(r"[^-\s].*", "a text that begins with no dash or blank")]
Address = Annotated[str, matching(r"https?://.*", "an http or https address")]


class Workspace:
    """A context manager with scratch folders, so that a package with several files comes once.

    They lie under `parent`, beside the models, since that is the disk the user chose for them. The
    caller holds the model's lock, so folders that a killed fetch left are removed, too.
    """

    def __init__(self, parent: Path, progress: DownloadProgress | None = None) -> None:
        self._parent, self._progress = parent, progress
        self._archives: dict[str, Path] = {}

    def __enter__(self) -> Workspace:
        self._clear()
        return self

    def __exit__(self, *error: object) -> None:
        self._clear()

    def archive(self, key: str, make: Callable[[Path], Path]) -> Path:
        """The archive called `key`; `make(empty folder)` brings it the first time."""
        if key not in self._archives:
            folder = Path(tempfile.mkdtemp(prefix=_WORKSPACE, dir=self._parent))
            self._archives[key] = make(folder)
        return self._archives[key]

    def report(self, name: str, done: int, total: int) -> None:
        """Tell the listener how much of a package has come."""
        if self._progress:
            self._progress(name, done, total)

    def _clear(self) -> None:
        for folder in self._parent.glob(_WORKSPACE + "*"):
            shutil.rmtree(folder, ignore_errors=True)


class Source(ABC):
    """One place to get one file from; its fields are what the registry file says of it."""

    shown: ClassVar[str]
    """How messages name such a source; fields stand in braces."""

    def describe(self) -> str:
        """How messages name this source."""
        return self.shown.format(**vars(self))

    def offline_copy(self, landing: Landing) -> bool:
        """Bring the file without any network or child process; False where that cannot be."""
        return False

    @abstractmethod
    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """Bring the file to `landing`; raises SourceError (this source) or OSError (our disk)."""


@dataclass(frozen=True)
class LocalSource(Source):
    """A file on this machine; `~` and `$VARIABLES` are expanded when it is used."""

    path: Text

    shown = "local path {path}"

    def offline_copy(self, landing: Landing) -> bool:
        """See `Source`."""
        _land_file(Path(os.path.expandvars(self.path)).expanduser(), landing)
        return True

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """See `Source`."""
        self.offline_copy(landing)


@dataclass(frozen=True)
class UrlSource(Source):
    """A plain web address. http is allowed because the content is checked by its sha256."""

    url: Address

    shown = "{url}"

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """See `Source`; resumes an interrupted download."""
        web.download(self.url, landing)


@dataclass(frozen=True)
class HuggingFaceSource(Source):
    """`file` of the Hugging Face repository `repo` ("owner/name") at `revision`.

    The user's token, endpoint and offline settings are those of huggingface_hub, and a copy in
    its cache is used first.
    """

    repo: Text
    file: Text
    revision: Text = "main"
    endpoint: Address | None = None

    shown = "Hugging Face {repo}"

    def offline_copy(self, landing: Landing) -> bool:
        """See `Source`: from Hugging Face's own cache, if it is there and unaltered."""
        cached = _hub().try_to_load_from_cache(self.repo, self.file, revision=self.revision)
        if not isinstance(cached, str):
            return False
        _land_file(Path(cached), landing)
        return True

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """See `Source`; resumes an interrupted download."""
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
class GoogleDriveSource(Source):
    """A public Google Drive file by its id, through the page that asks to confirm large ones."""

    file_id: Text
    address: Address = "https://drive.google.com/uc"

    shown = "Google Drive {file_id}"

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """See `Source`; resumes an interrupted download."""
        opener = web.make_opener()
        query = urllib.parse.urlencode({"export": "download", "id": self.file_id})
        address = f"{self.address}?{query}"
        page = web.retried(lambda: self._page(opener, address))
        web.download(self._confirmed(page) if page else address, landing, opener=opener)

    def _page(self, opener: OpenerDirector, address: str) -> str:
        """The HTML page that Google Drive answers with, "" if it answers with the file."""
        with web.open_url(opener, address) as response:
            if response.headers.get_content_type() != "text/html":
                return ""
            try:
                return str(response.read(_PAGE_LIMIT).decode("utf-8", "replace"))
            except OSError as error:
                raise SourceError(f"the connection broke ({error})", transient=True) from error

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
    try:
        stream = open(path, "rb")  # noqa: SIM115 - closed below; only opening is caught here
    except OSError as error:
        raise SourceError((error.strerror or str(error)).lower()) from error
    with stream:
        size = os.fstat(stream.fileno()).st_size
        if size != landing.size:
            raise SourceError(f"has {size} bytes, not the {landing.size} declared")
        landing.receive(read_chunks(stream))


def _hub() -> Any:
    """huggingface_hub, imported when a source needs it (it is slow to import)."""
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.utils

    return huggingface_hub
