"""The exceptions whose text is meant for the user."""

from __future__ import annotations


class UserError(Exception):
    """A problem that the user can act on.

    Its text is one line: it names the file, the row or the flag, and says what to do. The command
    line prints it as `error: …` and exits with 1; everything else that is raised is a bug of ours.
    """


class LostConnectionError(UserError):
    """A server cannot be reached any more; the same command goes on where this one stopped."""


class MissingFileError(UserError):
    """A file that a folder should have is not in it, as after an interrupted download."""
