"""How a command ends: the exit code, and at most one line about what went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.errors import UserError

PROBLEM = 1
INTERRUPTED = 130
READER_GONE = 141  # what a shell reports for `cat | head -1`


@contextmanager
def handle_errors(*, debug: bool) -> Iterator[None]:
    """Runs the body of a command; what it raises becomes an exit code and a line on stderr.

    With `debug`, the traceback comes before the line.
    """
    try:
        yield
        sys.stdout.flush()  # a reader that is gone is noticed here and not while Python shuts down
    except (typer.Exit, typer.TyperException):
        raise  # typer's own: it prints what it has to and picks the code
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _drop_unwritten_output()
        sys.exit(READER_GONE)
    except Exception as error:
        if isinstance(error, OSError):
            _drop_unwritten_output()  # it may be what could not be written, such as to a full disk
        _say(_in_a_line(error), debug=debug)
        sys.exit(PROBLEM)


def _in_a_line(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:  # such as a folder that may not be written
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"internal: {what}; run again with --debug for the details"


def _say(line: str, *, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"error: {printable_line(line)}", file=sys.stderr)


def _drop_unwritten_output() -> None:
    """Python flushes stdout once more at exit, and would complain once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
