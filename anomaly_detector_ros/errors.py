"""Errors that are the user's to mend: one line that names the thing and the remedy."""


class UserError(Exception):
    """Bad input, missing file, wrong name. The command line prints it without a traceback."""
