"""Where data sets lie, and where this account may keep what can be made again."""

import logging
import os
import stat
import tempfile
from functools import cache
from pathlib import Path

from .errors import StorageError, UserError

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where data sets lie, and what was made of them: below ~/.cache, or $XDG_CACHE_HOME.

    For an account that cannot write there it is a temporary folder, and a warning says so.
    """
    own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vision_tutorial")
    own = Path(os.path.expanduser(own))  # which leaves the `~` of an account without a home
    if own.is_absolute() and (os.path.isdir(own) or may_write(own)):
        return own
    return _spare(own)


@cache
def _spare(own: Path) -> Path:
    """A temporary folder of this account alone, in place of `own`."""
    try:
        user = getattr(os, "getuid", int)()
        folder = Path(tempfile.gettempdir(), f"vision-tutorial-{user}")
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
        if facts.st_uid != user or facts.st_mode & 0o170022 != stat.S_IFDIR:  # set by another user
            folder = Path(tempfile.mkdtemp(prefix="vision-tutorial-"))
    except OSError as error:
        raise StorageError(
            f"neither {own} nor a temporary folder can be written ({error}). Set XDG_CACHE_HOME or "
            "TMPDIR to a folder that can."
        ) from error
    logger.warning("%s cannot be written: what is kept between runs goes to %s", own, folder)
    return folder


def may_write(path: Path) -> bool:
    """Whether this process may make `path`, or files in it, as far as permissions say."""
    return os.access(next(filter(os.path.exists, (path, *path.parents))), os.W_OK | os.X_OK)


# -- data sets -------------------------------------------------------------------------------------

STARTED_IN: list[Path] = []  # where the runs that were opened were started


def typed_path(text: str) -> Path:
    """A path as a person types it, here or where a run was started: `~` is a home, and blanks
    around it are none of it."""
    try:
        paths = [Path(each).expanduser() for each in (text, text.strip())]
        places = (Path(), *STARTED_IN)
        found = (place / path for place in places for path in paths if (place / path).exists())
        return next(found, paths[1])
    except RuntimeError as error:  # `~` of nobody
        raise UserError(f"'{text}': {error}. Give the folder's whole path.") from error


def data_root(root: str | None = None) -> Path:
    """The folder of the data sets: `root`, else $VISION_TUTORIAL_DATA, else a cache folder."""
    given = root or os.environ.get("VISION_TUTORIAL_DATA")
    return typed_path(given) if given else cache_folder()


def data_folder(root: str, who: str) -> Path:
    """The folder `root` if there is one, else the folder of that name among the data sets. `who`
    asks; UserError where there is neither."""
    path = typed_path(root)
    places = dict.fromkeys([path, data_root() / path])  # one, where `root` is absolute
    for place in places:
        if place.is_dir():
            return place
    looked = " nor ".join(map(str, places))
    raise UserError(f"{who}: no folder {looked}. Correct `root`, or copy the data there.")
