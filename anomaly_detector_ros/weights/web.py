"""Downloads over HTTP that resume and never exceed the declared size, which pooch's do not.

Nor do huggingface_hub's: they check neither the declared size nor its sha256, and leave a second
copy in a cache of their own.
"""

from __future__ import annotations

import http.client
import http.cookiejar
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from anomaly_detector_ros.weights.landing import CHUNK, Landing, SourceError, WrongContentError

TIMEOUT_S = 30.0
ATTEMPTS = 4
PAUSE_S = 0.5
"""Before the second attempt; it doubles with each."""

Result = TypeVar("Result")

_RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})


def make_opener() -> urllib.request.OpenerDirector:
    """An opener for http and https only, with cookies, the system's proxies and verified TLS."""
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def open_url(
    opener: urllib.request.OpenerDirector,
    url: str,
    headers: Mapping[str, str] | None = None,
    offset: int = 0,
) -> Any:
    """The open response (a context manager) for `url`, asked to start at byte `offset`.

    Raises:
        SourceError: no connection, or an HTTP error status; transient where asking again may help.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "anomaly-detector-ros"})
    for key, value in (headers or {}).items():
        # Unredirected: a token for one host must not travel to the host it redirects to.
        request.add_unredirected_header(key, value)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        return opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(
            f"HTTP {error.code} {error.reason}",
            transient=error.code in _RETRY_STATUS,
            status=error.code,
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        # An unknown scheme, a malformed address, a bad certificate; who waited once waits no more.
        lasting = isinstance(reason, (str, ValueError, TimeoutError))
        what = str(reason) or type(reason).__name__
        raise SourceError(f"no connection ({what})", transient=not lasting) from error


def retried(attempt: Callable[[], Result]) -> Result:
    """What the attempt returns; one that fails for a passing reason is made again, ever later.

    Raises:
        SourceError: it failed for a lasting reason, or `ATTEMPTS` times.
    """
    for tries in range(ATTEMPTS - 1):
        try:
            return attempt()
        except SourceError as error:
            if not error.transient:
                raise
        time.sleep(PAUSE_S * 2**tries)
    return attempt()


def download(
    url: str,
    landing: Landing,
    *,
    headers: Mapping[str, str] | None = None,
    opener: urllib.request.OpenerDirector | None = None,
) -> None:
    """Bring `url` to `landing`, going on from what an earlier try left; broken off, try again.

    Raises:
        SourceError: this address does not give the declared file.
        OSError: the disk failed.
    """
    chosen = opener or make_opener()
    retried(lambda: _download_once(chosen, url, landing, headers))


def _download_once(
    opener: urllib.request.OpenerDirector,
    url: str,
    landing: Landing,
    headers: Mapping[str, str] | None,
) -> None:
    offset = landing.resumable()
    try:
        if offset == landing.size:
            # Killed between the last byte and the rename: nothing is left to ask for.
            return landing.receive((), offset=offset, keep=True)
        with open_url(opener, url, headers, offset) as response:
            offset = _answered_offset(response, offset)
            _check_length(response, landing.size - offset)
            landing.receive(_body(response), offset=offset, keep=True)
    except SourceError as error:
        if offset and (isinstance(error, WrongContentError) or error.status == 416):
            # The kept part may be of another file: once more, from the start.
            landing.partial.unlink(missing_ok=True)
            error.transient = True
        raise


def _answered_offset(response: Any, asked: int) -> int:
    """Where the body that the server sends begins: `asked`, or 0 if it does not do ranges."""
    if not asked or response.status != 206:
        return 0
    span = response.headers.get("Content-Range", "")
    if not span.startswith(f"bytes {asked}-"):
        raise SourceError(f"answered another range than asked for ({span or 'none named'})")
    return asked


def _check_length(response: Any, expected: int) -> None:
    """Refuse a body of the wrong length before it is paid for."""
    length = response.headers.get("Content-Length")
    if length is not None and length.isdigit() and int(length) > expected:
        raise WrongContentError(f"announces {length} bytes, more than the {expected} declared")


def _body(response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            what = error.args[0] if error.args else type(error).__name__
            raise SourceError(f"the connection broke ({what})", transient=True) from error
        if not chunk:
            return
        yield chunk
