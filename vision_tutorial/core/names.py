"""Names from outside: as names of folders, and on streams and in files that lack their letters."""

import codecs
import os
import sys
import unicodedata
from contextlib import suppress
from typing import Any

LONGEST = 64
ALLOWED = f"1 to {LONGEST} letters, digits, '.', '_' and '-'"
# Roughly the same, in what Python, JavaScript and JSON schema read alike: of ASCII these, and all
# that is not ASCII.
PATTERN = r"^\.*[^\x00-,./:-@\[-^`{-\x7f][^\x00-,/:-@\[-^`{-\x7f]*$"


def checked_name(name: str) -> str:
    """`name`, composed (NFC), if it is safe as the name of a folder; else a ValueError."""
    name = unicodedata.normalize("NFC", name)
    if not (all(map(_allowed, name)) and name.strip(".") and len(name) <= LONGEST):
        raise ValueError(ALLOWED)
    return name


def folder_name(text: str) -> str:
    """The name of a file as one of a folder: letters of every language stay."""
    text = unicodedata.normalize("NFC", readable(text))
    kept = "".join(letter if _allowed(letter) else "-" for letter in text).lstrip("-")
    return kept[:LONGEST] if kept.strip("-.") else "recipe"


def _allowed(letter: str) -> bool:
    return letter in "._-" or unicodedata.category(letter)[0] in "LMN"  # letters, marks, numbers


def _readable(error: UnicodeError) -> tuple[bytes, int]:
    """What stands for letters that an encoding lacks: '?'; for the bytes of a file's name that
    Python could not read, the UTF-8 that they are, or each as \\xb0."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text: Any = error.object[error.start : error.end]
    with suppress(UnicodeEncodeError):
        text = text.encode("ascii", "surrogateescape").decode("utf-8", "backslashreplace")
    return text.encode(error.encoding, "replace"), error.end


READABLE = "vision_tutorial.readable"  # for `errors=` of what is written
codecs.register_error(READABLE, _readable)
CSV = {"newline": "", "encoding": "utf-8", "errors": READABLE}  # how such a file is opened


def readable(text: str) -> str:
    """`text` as it would be written: a name from a file system need not be UTF-8."""
    return text.encode("utf-8", READABLE).decode()


def restart_in_utf8() -> None:
    """Begin this command again where Python takes names of files for ASCII (LANG=C, PYTHONUTF8=0):
    it could open no other file."""
    if sys.getfilesystemencoding() == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def make_streams_readable() -> None:
    """From now on no letter ends a command that prints it; where the locale is C, as in many
    containers, terminals and files are in UTF-8 all the same."""
    asked = os.environ.get("PYTHONIOENCODING")
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, TypeError, OSError):  # a stream may lack it
            ascii = codecs.lookup(stream.encoding).name == "ascii" and not asked
            stream.reconfigure(encoding="utf-8" if ascii else None, errors=READABLE)
