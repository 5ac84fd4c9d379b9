"""What can go wrong in a way a person can mend, and the exit code that says which."""

import atexit
import difflib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from .names import make_streams_readable, readable
from .stopping import Stopped, stoppable


class ExitCode(IntEnum):
    """Exit codes of all commands; status.json has them too, since torchrun flattens them to 1."""

    DONE = 0
    PEER_LOST = 1
    BAD_INPUT = 2
    NON_FINITE = 3
    OUT_OF_MEMORY = 4
    STORAGE = 5
    INTERRUPTED = 130
    PREEMPTED = 143


class UserError(ValueError):
    """Bad input. The message is one line: what was given, what is allowed, what to do."""

    code = ExitCode.BAD_INPUT
    said = False  # by another process, which met it first
    problems: tuple[str, ...] = ()  # of an error for many things: what is wrong with each
    things = ""  # what these are, such as images


class NonFiniteError(UserError):
    """The loss or a gradient stayed NaN or infinite for longer than the policy allows."""

    code = ExitCode.NON_FINITE


class MemoryExhausted(UserError):
    """Even the smallest micro-batch does not fit the device."""

    code = ExitCode.OUT_OF_MEMORY


class PeerLost(UserError):
    """Another process of the same training is gone; its own message says why."""

    code = ExitCode.PEER_LOST


class StorageError(UserError):
    """A file that must be written could not be."""

    code = ExitCode.STORAGE


LONGEST_TRY = 60.0  # seconds of the processor, of one option's first try; kron takes 5
LISTED = 5  # of many that are wrong or odd


def all_at_once(problems: Sequence[str], what: str) -> UserError:
    """One error for `problems`, each of its own thing, such as a file: how many, the first five
    shortened to what is wrong, and the first one's remedy."""
    text, parts = problems[0], [problem.partition(": ") for problem in problems[:LISTED]]
    if problems[1:]:
        reasons = [re.split("[;.] ", rest, maxsplit=1)[0].removesuffix(".") for *_, rest in parts]
        remedy = parts[0][2][len(reasons[0]) :].lstrip(";. ")
        remedy = remedy[:1].upper() + remedy[1:]
        file = f"{parts[0][0]}: " * (len({where for where, *_ in parts}) == 1)  # one for all
        if not file:
            reasons = [f"{where}: {why}" for (where, *_), why in zip(parts, reasons, strict=True)]
        listed = some(reasons, len(problems), "; ")
        text = f"{file}{len(problems):,} {what} cannot be used: {listed}. {remedy}"
    error = UserError(text.strip())
    error.problems, error.things = tuple(problems), what
    return error


def some(names: Sequence[str], count: int | None = None, apart: str = ", ") -> str:
    """The first five of `names`, and how many more of `count` there are."""
    count = len(names) if count is None else count
    more = [f"{count - LISTED:,} more"] if count > LISTED else []
    return apart.join([*names[:LISTED], *more])


def counted(number: int, what: str) -> str:
    """ "1 epoch", "1,000 epochs", "2 classes"."""
    many = what + ("es" if what.endswith(("s", "batch")) else "s")
    return f"{number:,} {what if number == 1 else many}"


def unknown(kind: str, name: str, known: Iterable[str], most: int = 400) -> str:
    """One line for a name nobody has: the nearest valid name, and the list.

    Of a list longer than `most` letters only the near names are shown.
    """
    known = sorted(known)
    matched = partial(difflib.get_close_matches, possibilities=known, n=12, cutoff=0.5)
    near = matched(name[:64]) or matched(name[:64].lower())
    hint = f"; did you mean '{near[0]}'?" if near else "."
    listed = ", ".join(known)
    if len(listed) <= most:
        return f"no {kind} called '{short(name, 40)}'{hint} Known: {listed}"
    few = ", ".join(near or known[:8])
    return f"no {kind} called '{short(name, 40)}'{hint} Known: {few}, … ({len(known)} in all)"


def shown(value: Any, most: int = 60) -> str:
    """A value as a recipe writes it, on one line of at most `most` letters."""
    return short(json.dumps(value, ensure_ascii=False, default=str), most)


def short(text: str, most: int) -> str:
    """`text` on one line of at most `most` letters."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"


# letters that steer a terminal, or turn the text around
_STEERING = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """`text` in which control letters are seen, and do nothing: \\x1b, \\u202e."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], readable(text))


class _Visible:
    """A stream to print on; names from files and recipes cannot steer the terminal behind it.

    rich writes past it, and is given `visible` texts. For rich it is a proxy of rich's own: else
    rich would put one around it for as long as it draws a bar, and draw that through `write`.
    """

    def __init__(self, stream: Any):
        self._stream, self.rich_proxied_file = stream, getattr(stream, "rich_proxied_file", stream)

    @property
    def __class__(self) -> type:
        return getattr(sys.modules.get("rich.file_proxy"), "FileProxy", _Visible)

    def write(self, text: str) -> int:
        bar = text.startswith("\r")  # the library that fetches weights draws one over the other
        return self._stream.write(text[:bar] + visible(text[bar:]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def check_range(who: str, interval: str, **values: float | Sequence[float]) -> None:
    """UserError for the first of `values`, by option, outside an interval such as "[0, 1)"; of a
    list, each number has to be inside."""
    low, high = map(float, interval[1:-1].split(","))
    for option, value in values.items():
        for number in value if isinstance(value, Sequence) else [value]:
            above = low <= number if interval[0] == "[" else low < number
            below = number <= high if interval[-1] == "]" else number < high
            if not (above and below):
                raise UserError(f"{who}: {option} is {value}; a number in {interval} is expected.")


class _Endless(BaseException):
    """A first try used up its time."""


@contextmanager
def trying(key: str) -> Iterator[None]:
    """Whatever fails within it is a UserError that begins with `key`, such as `loss.focal`.

    For a first try of code that is not ours, which raises whatever it likes: where it did is said.
    What takes longer than LONGEST_TRY, such as a billion rounds of Newton-Schulz, fails, too.
    """
    name = key.rpartition(".")[2]
    try:
        with _limited():
            yield
    except _Endless:
        raise UserError(
            f"{key}: not done after {LONGEST_TRY:g} s of computing on a few numbers, so it would "
            "hardly train. Make its counts or sizes smaller."
        ) from None
    except UserError as error:
        own = rf"^(\w+ )?'?{re.escape(name)}'?: "  # what it calls itself
        error.args = (f"{key}: {re.sub(own, '', str(error))}",)
        raise
    except MemoryError:
        raise
    except Exception as error:
        kind = MemoryExhausted if type(error).__name__ == "OutOfMemoryError" else UserError
        place, said = error.__traceback__, " ".join(str(error).split())
        while place.tb_next:
            place = place.tb_next
        file = Path(place.tb_frame.f_code.co_filename).name
        where = f"{type(error).__name__} in {file}, line {place.tb_lineno}"
        raise kind(f"{key}: {short(said, 200)} ({where}). Change its options.") from error


@contextmanager
def _limited() -> Iterator[None]:
    """Raise _Endless after LONGEST_TRY, in the main thread of systems that can."""
    kind = getattr(signal, "SIGVTALRM", None)
    if kind is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise _Endless

    before, shown = signal.signal(kind, end), sys.unraisablehook
    # Raised within a callback (of the garbage collector, of a compiler) it is only written down by
    # Python: not even that, and it is raised again a second later.
    sys.unraisablehook = lambda lost: None if lost.exc_type is _Endless else shown(lost)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_TRY, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(kind, before)
        sys.unraisablehook = shown


def exit_code(error: BaseException) -> int:
    """What a process that ends with `error` exits with."""
    if isinstance(error, UserError | Stopped):
        return int(error.code)
    if isinstance(error, OSError) and error.filename is not None:
        return int(ExitCode.BAD_INPUT)  # a file that may not be read, a name that is too long …
    known = {KeyboardInterrupt: ExitCode.INTERRUPTED, MemoryError: ExitCode.OUT_OF_MEMORY}
    return int(known.get(type(error), 1))


def run_process(main: Callable[[], int]) -> NoReturn:
    """Run `main` as all that this process does; its exit code is the process's.

    Python's own end would first take every module apart: with torch that takes two seconds, in
    which a signal is not heard, and torchrun waits for what went wrong.
    """
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading._shutdown()  # waits for threads; as the end of a child of multiprocessing
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def run_main(main: Callable[[], int | None]) -> int:
    """Run a command; a UserError becomes one line on stderr and its exit code, no traceback."""
    make_streams_readable()
    # Read when torch loads. OpenMP's threads spin while they wait, which beside other work (a
    # browser) made a small network 6x slower; giving up soon costs nothing alone.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Visible(stream) for stream in streams)
    try:
        with stoppable():
            return int(main() or ExitCode.DONE)
    except BrokenPipeError:  # `… | head`: the reader has seen enough
        sys.stderr.close()
        return int(ExitCode.DONE)
    except (UserError, MemoryError, KeyboardInterrupt, OSError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError):
            text = f"out of memory: {text}. Make the data or the batch smaller."
        if isinstance(error, OSError):
            if error.filename is None:  # nothing that a person named
                raise
            text = f"{error.filename}: {error.strerror}. Name another, or mend its permissions."
        if text and not getattr(error, "said", False):
            print(f"error: {text}", file=sys.stderr)
        return exit_code(error)
    finally:
        sys.stdout, sys.stderr = streams
