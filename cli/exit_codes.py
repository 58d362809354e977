"""Turns what a command raises into an exit code and at most one line on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from llavacot_mlx.cli.gpu_advice import Work, gpu_line
from llavacot_mlx.cli.printable import short_line
from llavacot_mlx.errors import UserError

FAILURE = 1
WRONG_USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141  # what a shell reports for `cat | head -1`


class UsageError(UserError):
    """What is wrong can be seen in the command line alone, whatever the files hold: exit code 2.

    Everything else that a user can mend is a plain UserError: exit code 1.
    """


@contextmanager
def check_usage() -> Iterator[None]:
    """Turns a UserError of its body, which checks flags alone, into a UsageError."""
    try:
        yield
    except UserError as error:
        raise UsageError(str(error)) from None


@contextmanager
def handle_errors(*, debug: bool, work: Work | None = None) -> Iterator[None]:
    """Wraps the body of a command: an exception ends it with an exit code and a line on stderr.

    With `debug`, the traceback is printed before the line. `work` is what the command has the GPU
    do, for advice about errors of the GPU.
    """
    try:
        yield
        sys.stdout.flush()  # a broken pipe is noticed here, and not while Python shuts down
    except (typer.Exit, typer.TyperException):
        raise  # typer prints the message and chooses the code itself
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _drop_unwritten_output()
        sys.exit(BROKEN_PIPE)
    except Exception as error:
        if isinstance(error, OSError):
            _drop_unwritten_output()  # it may be why writing failed, such as a full disk
        _print_error(_one_line(error, work), debug=debug)
        sys.exit(WRONG_USAGE if isinstance(error, UsageError) else FAILURE)


def _one_line(error: Exception, work: Work | None) -> str:
    if isinstance(error, UserError):
        return str(error)
    if work is not None and (line := gpu_line(error, work)):
        return line
    if isinstance(error, OSError) and error.strerror:  # such as a folder without write permission
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"internal: {what}; run again with --debug for the details"


def _print_error(line: str, *, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"error: {short_line(line)}", file=sys.stderr)


def _drop_unwritten_output() -> None:
    """Sends unwritten output to the null device: Python flushes at exit, and would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
