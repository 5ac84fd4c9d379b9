"""Rows to Weights & Biases, when it is there. The run folder is the truth; this is its mirror.

All of wandb's work is on a daemon thread behind a bounded queue, so it can neither stop nor slow a
training. A bookmark names the last row sent: all of metrics.jsonl may be replayed through `log`.
"""

import atexit
import hashlib
import json
import netrc
import os
import queue
import secrets
import shlex
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psutil

from ..core.atomic import make_folder, write_text
from ..core.errors import UserError, unknown

_BOOKMARK = "sent.json"
_MODES = ("auto", "online", "offline", "disabled")
_OWN_MODES = {name: name for name in _MODES[1:]} | {"dryrun": "offline", "run": "online"}
_TRUE = ("1", "true", "yes", "on", "t", "y")
QUEUE_ROWS = 10_000
PROBE_SECONDS = 2.0
START_SECONDS = 3.0
FINISH_SECONDS = 30.0
FREED_SECONDS = 2.0

# wandb would else keep the command line, the environment's packages and the console's output, any
# of which may hold a secret. A version that lacks one of these fields is not given it.
SETTINGS = {
    "silent": True,
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 1.0,
    "init_timeout": 30.0,
}


def has_key(url: str, *names: str) -> bool:
    """Whether wandb would find credentials for the server at `url` without asking for them.

    In a netrc file they stand under the server's own name or under one of `names`.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    own = os.environ.get("NETRC")
    paths = map(os.path.expanduser, [own] if own else ("~/.netrc", "~/_netrc"))
    with suppress(StopIteration, netrc.NetrcParseError, OSError, UnicodeDecodeError):
        kept = netrc.netrc(next(filter(os.path.exists, paths)))
        entries = map(kept.authenticators, (urlsplit(url).netloc, *names))
        return any(entry and entry[2] for entry in entries)
    return False


def serves(url: str) -> bool:
    """Whether the server answers within two seconds in all, and as one that works: not with
    something else than HTTP, byte by byte, that it does not know us, or that it is broken."""
    found: list[bool] = []  # on a thread: resolving a name has no time limit
    work = threading.Thread(target=lambda: found.append(_works(url)), daemon=True)
    work.start()
    work.join(PROBE_SECONDS)
    return found == [True]


def _works(url: str) -> bool:
    query = b'{"query": "query { serverInfo { cliVersionInfo } }"}'
    try:
        request = Request(f"{url}/graphql", query, {"Content-Type": "application/json"})
        urlopen(request, timeout=PROBE_SECONDS).read(1)
    except HTTPError as error:
        return error.code < 500 and error.code not in (401, 403)
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # wandb has certificates of its own
    except (OSError, HTTPException, ValueError):
        return False
    return True


def decide_mode(mode: str, wandb: ModuleType) -> tuple[str, str]:
    """'online', 'offline' or 'disabled', and why: online never without a key, since wandb would
    ask for it; with `auto` what `wandb offline` or `wandb disabled` have set holds."""
    if mode == "offline":
        return "offline", "as asked"
    settings = wandb.setup().settings
    url, kept = settings.base_url, _OWN_MODES.get(settings.mode)
    if mode == "auto" and kept in ("offline", "disabled"):
        return kept, f"as `wandb {kept}` has set it"
    # Keys for the public server are stored under its old name too.
    public = url == wandb.Settings.model_fields["base_url"].default
    if not has_key(url, *["api.wandb.ai"] * public):
        return "offline", "no key: `wandb login` stores one"
    if not serves(url):
        return "offline", f"{urlsplit(url).hostname} does not answer, or not as it should"
    return "online", ""


class Tracker:
    """Where the rows of a run go besides the run folder: one wandb run, fed by its own thread.

    Without arguments it is off and sends nothing. `val/…` is drawn over `epoch`, all else over
    `step`. `run` goes to `wandb.init`; `say` prints a line.
    """

    off = True
    _thread: threading.Thread | None = None

    def __init__(
        self,
        wandb: ModuleType | None = None,
        mode: str = "disabled",
        run: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        if wandb is None or run is None:
            return
        self.off = False
        self._wandb, self._run, self._say = wandb, run, say
        self._folder = Path(run["dir"]) / "wandb"
        # The last row sent, by its step and its place among the rows of that step.
        self._sent, self._row = (-1, 0), (-1, 0)
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads((self._folder / _BOOKMARK).read_text("utf-8"))
            if kept["run"] == run["id"]:
                self._sent = (int(kept["step"]), int(kept["row"]))
        self._known = {"step", "epoch"}  # the metrics that wandb has been given an axis for
        self._jobs: queue.Queue[Callable[[Any], object] | None] = queue.Queue(QUEUE_ROWS)
        self._server = ""  # where rows go, if they do
        self._upload = ""  # the command that uploads what is in the folder, once there is one
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(mode,), name="wandb", daemon=True)
        self._thread.start()
        # Nearly always done by then, so that no loader worker is forked in the midst of it.
        self._ready.wait(START_SECONDS)

    def log(self, row: Mapping[str, Any]) -> None:
        """Send a row: plain numbers by name, among them `step` and `epoch`."""

        def send(run: Any) -> None:
            if not self._is_new(row["step"]):
                return
            for name in row.keys() - self._known:
                run.define_metric(name, step_metric="epoch" if name.startswith("val/") else "step")
            self._known.update(row)
            run.log(row)

        row = dict(row)
        self._put(send)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Send a table, say of every class and its accuracy."""
        data = [list(row) for row in rows]
        self._put(lambda run: run.log({name: self._wandb.Table(columns=list(columns), data=data)}))

    def image(self, name: str, pixels: Any) -> None:
        """Send an image uint8 (H, W, 3)."""
        self._put(lambda run: run.log({name: self._wandb.Image(pixels)}))

    def report(self, title: str, markdown: str) -> None:
        """Make a Report of wandb's, a page for people, where there is a server that takes it."""
        self._put(lambda run: self._say(f"wandb: {_report(run, title, markdown)}"))

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Send the summary and wait until everything has arrived: half a minute at most, and not
        for a server that no longer answers."""
        if self._thread is None:
            return
        atexit.unregister(self.finish)
        self._put(lambda run: run.summary.update(summary))
        self._put(lambda run: run.finish(exit_code=exit_code))
        self._put(None)  # the end of the queue
        began, first = time.monotonic(), min(1.0, FINISH_SECONDS)
        self._thread.join(0 if self.off else first)
        more = FINISH_SECONDS - first
        if self._thread.is_alive() and more and (not self._server or serves(self._server)):
            self._thread.join(0 if self.off else more)
        if self._thread.is_alive():
            rest = f"; `{self._upload}` uploads the rest" if self._upload else ""
            self._turn_off(f"not done after {time.monotonic() - began:.0f} s{rest}")
            self._thread.join(FREED_SECONDS)
        self.off = True

    def _is_new(self, step: int) -> bool:
        """Whether the next row, of this step, is new; if so it counts as sent from here on."""
        self._row = (step, self._row[1] + 1 if step == self._row[0] else 1)
        if self._row <= self._sent:
            return False
        self._sent = self._row
        fresh = self._folder / f"{_BOOKMARK}.new"
        fresh.write_text(
            json.dumps({"run": self._run["id"], "step": step, "row": self._row[1]}), "utf-8"
        )
        os.replace(fresh, self._folder / _BOOKMARK)
        return True

    def _put(self, job: Callable[[Any], object] | None) -> None:
        if self.off:
            return
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._turn_off(f"{QUEUE_ROWS} rows behind")

    def _work(self, mode: str) -> None:
        """The thread: everything that talks to wandb, in one place to catch what goes wrong."""
        try:
            run = self._start(mode)
            self._ready.set()
            while not self.off and (job := self._jobs.get()):
                job(run)
        except BaseException as error:  # also SystemExit: this thread ends here or nowhere
            self._turn_off(str(error).strip() or type(error).__name__)
        finally:
            self._ready.set()
        with suppress(Exception):
            self._wandb.teardown()  # only when its own process has ended is the file complete

    def _start(self, mode: str) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)  # else wandb would write to /tmp
        try:
            return self._open(mode)
        except Exception as error:  # the server's, or about a variable that wandb does not take
            places = _places(self._folder)
            names = [name for name in os.environ if name[:6] == "WANDB_" or name in places]
            own = {name: os.environ.pop(name) for name in names}
            os.environ.update(places)  # its settings file may be as bad
            try:
                self._wandb.teardown()  # else the run's id is taken
                return self._open("offline", _line(str(error)))
            finally:
                for name in places:
                    del os.environ[name]
                os.environ.update(own)

    def _open(self, mode: str, why: str = "") -> Any:
        fields = self._wandb.Settings.model_fields
        settings = self._wandb.Settings(**{k: v for k, v in SETTINGS.items() if k in fields})
        self._wandb.setup(settings=settings)  # silent before there is a run, and after it
        if not why:
            mode, why = decide_mode(mode, self._wandb)
        if mode == "disabled":
            self._turn_off(why)
        if self.off:  # or the training was over before the server answered
            return None
        how = {"resume": "allow", "reinit": "create_new", "settings": settings}
        self._server = self._wandb.setup().settings.base_url if mode == "online" else ""
        run = self._wandb.init(**self._run, mode=mode, **how)
        # A training that ends with an exception: before wandb's own hook, which may wait for ever.
        atexit.register(self.finish, {}, 1)
        for axis in self._known:
            run.define_metric(axis, hidden=True)
        if mode == "online":
            self._upload = f"wandb sync --include-online {shlex.quote(str(Path(run.dir).parent))}"
            self._say(f"wandb: {run.url}")
            (self._folder / "url").write_text(f"{run.url}\n", "utf-8")  # for tables of runs
        else:
            self._upload = f"wandb sync {shlex.quote(str(self._folder))}/offline-run-*"
            self._say(f"wandb: offline ({why}); `{self._upload}` uploads it")
        return run

    def _turn_off(self, reason: str) -> None:
        """Say why, once, and end wandb's own process, which frees a thread that waits for it."""
        if self.off:
            return
        self.off = True
        self._say(f"wandb: off from here ({_line(reason)}); the run folder has every row")
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.name().startswith("wandb-core"):
                    child.kill()
                    child.wait(FREED_SECONDS)


def _report(run: Any, title: str, markdown: str) -> str:
    """Make a Report; a line on what came of it. A failure stops no other job."""
    if run.offline:
        return "no report (offline)"
    try:
        import wandb_workspaces.reports.v2 as reports

        page = reports.Report(project=run.project, entity=run.entity, title=title)
        page.blocks = [reports.MarkdownBlock(text=markdown)]
        page.save()
    except ImportError:
        return "no report; `pip install wandb-workspaces` makes it possible"
    except Exception as error:
        return f"no report ({_line(str(error))})"
    return f"report {page.url}"


def _places(folder: Path) -> dict[str, str]:
    """The variables by which wandb looks for nothing at home, and leaves nothing there."""
    names = ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "XDG_DATA_HOME", "NETRC")
    return {name: str(folder.absolute() / name.lower()) for name in names}


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def fitted(name: str, ascii: bool = False) -> str:
    """A name that wandb takes: of 128 letters at most, and in ASCII; what is cut becomes a hash."""
    kept = name.encode("ascii", "replace").decode().replace("?", "-") if ascii else name
    if len(kept) <= 128 and kept == name:
        return name
    return f"{kept[:119]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def run_id(run: Path, name: str) -> str:
    """The id of a run folder at wandb, drawn once and kept there: in a project that a class shares,
    two runs of one name are two runs. Of a run that was sent before ids were drawn: its name."""
    kept, sent = run / "wandb" / "id", run / "wandb" / _BOOKMARK
    with suppress(OSError):
        return kept.read_text("utf-8").strip()
    found = f"{fitted(name, ascii=True)[:119]}-{secrets.token_hex(4)}"
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = str(json.loads(sent.read_text("utf-8"))["run"])
    write_text(make_folder(kept.parent) / "id", f"{found}\n")
    return found


def make_tracker(mode: str, *, folder: Path, say: Callable[[str], None], **run: Any) -> Tracker:
    """The tracker for a run; call it on rank 0 only, and again with the same `id` at a resume.

    `run`: `entity`, `project`, `name`, `id`, `config`, `tags`, `group`, `notes`, of `wandb.init`.
    `mode` auto follows WANDB_DISABLED, WANDB_MODE and wandb's settings, else it is online if there
    is a key and the server answers, else offline. `config` must be free of secrets. UserError for
    an unknown mode.
    """
    if mode not in _MODES:
        raise UserError(unknown("wandb mode", mode, _MODES))
    if mode == "auto":
        mode = _OWN_MODES.get(os.environ.get("WANDB_MODE", "").lower(), mode)
        if os.environ.get("WANDB_DISABLED", "").lower() in _TRUE:
            mode = "disabled"
    if mode == "disabled":
        return Tracker()
    temporary = Path(os.environ.get("TMPDIR") or "/tmp")
    if os.name == "posix" and not os.access(temporary, os.W_OK | os.X_OK):  # for wandb's tables
        with suppress(OSError):
            (folder / "wandb").mkdir(parents=True, exist_ok=True)
            os.environ["TMPDIR"] = tempfile.tempdir = str((folder / "wandb").absolute())
    if os.path.expanduser("~") == "~":  # where it would look for its settings, and then be off
        for name, place in _places(folder / "wandb").items():
            os.environ.setdefault(name, place)
    try:
        import wandb  # here and not on the thread: a fork amid an import can hang the child
    except Exception as error:
        say(f"wandb: off (cannot be imported: {error}); the run folder has every row")
        return Tracker()
    return Tracker(wandb, mode, run | {"dir": str(folder)}, say)
