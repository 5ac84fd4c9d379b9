"""What can go wrong in a way a person can mend, and the exit code that says which."""

import difflib
import sys
from collections.abc import Callable, Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every verb; also written to status.json, since torchrun flattens them to 1."""

    DONE = 0
    BAD_INPUT = 2
    NON_FINITE = 3
    OUT_OF_MEMORY = 4
    STORAGE = 5
    INTERRUPTED = 130
    PREEMPTED = 143


class UserError(ValueError):
    """Bad input. The message is one line: what was given, what is allowed, what to do."""

    code = ExitCode.BAD_INPUT


class NonFiniteError(UserError):
    """The loss or a gradient stayed NaN or infinite for longer than the policy allows."""

    code = ExitCode.NON_FINITE


class MemoryExhausted(UserError):
    """Even the smallest micro-batch does not fit the device."""

    code = ExitCode.OUT_OF_MEMORY


class StorageError(UserError):
    """A file that must be written could not be."""

    code = ExitCode.STORAGE


def unknown(kind: str, name: str, known: Iterable[str], at_most: int = 40) -> str:
    """One line for a name nobody has: the nearest valid name, and the list."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    shown = ", ".join(known[:at_most]) + (f", … ({len(known)} in all)" if known[at_most:] else "")
    return f"no {kind} called '{name}'{hint} Known: {shown}"


def run_verb(main: Callable[[], int | None]) -> int:
    """Run a verb; a UserError becomes one line on stderr and its exit code, never a traceback."""
    try:
        return int(main() or ExitCode.DONE)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return int(error.code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # `… | head`: the reader has seen enough
        sys.stderr.close()
        return int(ExitCode.DONE)
