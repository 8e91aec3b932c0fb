"""Errors that are the user's to mend: one line that names the thing and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input, missing file, wrong name. The command line prints it without a traceback."""


@contextmanager
def as_user_error(what: str, remedy: str) -> Iterator[None]:
    """Makes a `UserError` of any error within the block, such as "cannot load X (why): remedy".

    For files that libraries read: they raise many kinds, all meaning the same to a user.
    """
    try:
        yield
    except Exception as error:
        raise UserError(f"{what} ({one_line(error, 200)}): {remedy}") from error


def one_line(what: object, limit: int | None = None) -> str:
    """An exception's message, or any text, as one line; never empty for an exception.

    Args:
        what: an exception or anything with a text.
        limit: cut off after so many characters.
    """
    text = what.strerror if isinstance(what, OSError) and what.strerror else str(what)
    text = " ".join(text.split())
    if not text and isinstance(what, BaseException):
        text = type(what).__name__
    return text if limit is None or len(text) <= limit else text[:limit] + "..."
