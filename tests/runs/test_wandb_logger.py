import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
from wandb_file import history, items, read

from vision_tutorial.core.errors import UserError
from vision_tutorial.runs import wandb_logger
from vision_tutorial.runs.wandb_logger import Tracker, make_tracker

KEY = "fakekey0" * 5
ROWS = [
    {"epoch": n // 10, "step": n, "lr": 0.1 / n, "train/loss": 4.0, "val/top1": n / 3, "best": None}
    for n in range(10, 60, 10)
]
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path_factory):
    """No key, no settings, no proxy and no home of the machine's; no process of wandb's after."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower() in PROXIES or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("START", "FINISH"):  # a busy machine is no failure
        monkeypatch.setattr(wandb_logger, f"{name}_SECONDS", 60.0)
    yield
    if hasattr(sys.modules.get("wandb"), "teardown"):
        sys.modules["wandb"].teardown()
    assert not services()


def services():
    return [c for c in psutil.Process().children() if c.name().startswith("wandb-core")]


def track(folder, mode="offline", said=None, **options):
    options = {"project": "vision", "name": "r4", "id": "r4-1", "config": {"seed": 1}} | options
    say = print if said is None else said.append
    return make_tracker(mode, folder=folder, say=say, **options)


# A real run, read back


def test_an_offline_run_holds_row_by_row_what_was_logged(tmp_path):
    said = []
    config = {"model": {"resnet50": {"stem": "cifar"}}, "seed": 1}
    tracker = track(tmp_path, said=said, tags=["r4", "ddp"], group="g", notes="n", config=config)
    rows = [*ROWS, {"epoch": 6, "step": 60, "train/loss": float("inf"), "val/top1": 1e-9}]
    for row in rows:
        tracker.log(row)
    tracker.table("per_class", ["class", "top1"], [["apple", 81.5], ["자동차", None]])
    tracker.finish({"best": 82.13, "expects": {"top1": 82.13}}, exit_code=3)

    *logged, table = history(tmp_path)
    assert logged == rows
    assert table["per_class/nrows"] == 2
    (file,) = tmp_path.glob("wandb/*run-*/files/media/table/*.json")
    assert json.loads(file.read_text()) == {
        "columns": ["class", "top1"],
        "data": [["apple", 81.5], ["자동차", None]],
    }
    kept = read(tmp_path)
    (run,) = [r.run for r in kept if r.HasField("run")]
    assert (run.run_id, run.project, run.display_name) == ("r4-1", "vision", "r4")
    assert (list(run.tags), run.run_group, run.notes) == (["r4", "ddp"], "g", "n")
    assert items(run.config.update) == config
    axes = {r.metric.name: r.metric.step_metric for r in kept if r.HasField("metric")}
    assert axes == {"step": "", "epoch": "", "val/top1": "epoch"} | dict.fromkeys(
        ["lr", "train/loss", "best"], "step"
    )
    summary = {}
    for record in kept:
        summary |= items(record.summary.update)
    assert summary["best"] == 82.13 and summary["expects"] == {"top1": 82.13}
    assert [r.exit.exit_code for r in kept if r.HasField("exit")] == [3]
    (line,) = said
    assert (
        line == f"wandb: offline (as asked); `wandb sync {tmp_path}/wandb/offline-run-*` uploads it"
    )


def test_two_trainings_of_one_process_are_two_runs(tmp_path):
    for name in ("a", "b"):
        tracker = track(tmp_path / name, id=name)
        tracker.log(ROWS[0] | {"lr": ord(name)})
        tracker.finish({})
    assert [row["lr"] for row in history(tmp_path / "a")] == [97]
    assert [row["lr"] for row in history(tmp_path / "b")] == [98]


def leaks(folder, secret):
    """The files under a folder in which a secret stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("private", [True, False])
def test_no_secret_reaches_the_folder(tmp_path, monkeypatch, capfd, private):
    """The same run without our settings does leak: the test can fail."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    monkeypatch.setattr(sys, "argv", ["train.py", "--password", "argv_secret"])
    if not private:
        soon = {"x_transaction_log_flush_interval": 0.1}
        monkeypatch.setattr(wandb_logger, "PRIVATE", {"silent": True} | soon)
    tracker = track(tmp_path, said=[])
    print("console_secret")
    tracker.log(ROWS[0])
    time.sleep(1.5)  # what wandb finds out about the machine comes late
    for _ in range(200):
        if private or leaks(tmp_path, "argv_secret"):
            break
        time.sleep(0.1)
    tracker.finish({})
    capfd.readouterr()
    for secret in (KEY, "hf_secret_token", "console_secret"):
        assert not leaks(tmp_path, secret)
    assert bool(leaks(tmp_path, "argv_secret")) != private
    assert bool(list(tmp_path.rglob("requirements.txt"))) != private


# Resume


def test_a_resumed_run_sends_only_what_is_new(tmp_path):
    first = track(tmp_path)
    for row in ROWS[:3]:
        first.log(row)
    first.finish({})
    second = track(tmp_path)
    for row in ROWS:  # as if the last checkpoint were older than the last row
        second.log(row)
    second.finish({})
    assert history(tmp_path) == ROWS
    assert {r.run.run_id for r in read(tmp_path) if r.HasField("run")} == {"r4-1"}


def test_two_rows_of_one_step_are_two_rows(tmp_path):
    bookmark = wandb_logger.Bookmark(tmp_path / "sent.json", "a")
    assert [bookmark.passes(step) for step in (1, 1, 2)] == [True, True, True]
    bookmark = wandb_logger.Bookmark(tmp_path / "sent.json", "a")
    assert [bookmark.passes(step) for step in (1, 1, 2, 2, 3)] == [False, False, False, True, True]
    assert wandb_logger.Bookmark(tmp_path / "sent.json", "b").passes(1), "of another run"
    for damaged in ("{", "[]", '{"run": "a", "step": "x", "row": 1}'):
        (tmp_path / "sent.json").write_text(damaged)
        assert wandb_logger.Bookmark(tmp_path / "sent.json", "a").passes(0)


TRAINING = """
import sys, time
import psutil
from pathlib import Path
from vision_tutorial.runs import wandb_logger as tracking
tracker = tracking.make_tracker("offline", project="vision", name="r4", id="r4-1", config={},
                                folder=Path(sys.argv[1]), say=lambda line: None)
for step in range(100_000):
    tracker.log({"step": step, "epoch": 0, "train/loss": 1.0 / (step + 1)})
    time.sleep(0.002)
    if step == 10:
        exec(sys.argv[2])
"""


def start_training(folder, at_step_ten=""):
    """A training in a process of its own."""
    command = [sys.executable, "-c", TRAINING, str(folder)]
    return subprocess.Popen(
        [*command, at_step_ten],
        cwd=Path(wandb_logger.__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_goes_on_without_a_row_twice(tmp_path):
    with start_training(tmp_path) as killed:
        sent = tmp_path / "wandb" / "sent.json"
        while not sent.exists() or json.loads(sent.read_text())["step"] < 300:
            assert killed.poll() is None
            time.sleep(0.05)
        core = psutil.Process(killed.pid).children()
        killed.send_signal(signal.SIGKILL)
    psutil.wait_procs(core, timeout=20)
    assert not any(process.is_running() for process in core)
    before = [row["step"] for row in history(tmp_path)]
    last = json.loads(sent.read_text())["step"]
    assert before == list(range(len(before))) and 0 < len(before) <= last + 1

    resumed = track(tmp_path)
    for step in range(last - 100, last + 100):
        resumed.log({"step": step, "epoch": 0, "train/loss": 1.0 / (step + 1)})
    resumed.finish({})
    assert [row["step"] for row in history(tmp_path)] == before + list(range(last + 1, last + 100))


def test_a_training_that_breaks_off_closes_its_run(tmp_path):
    with start_training(tmp_path, "raise ValueError('no finish')") as broken:
        _, errors = broken.communicate(timeout=50)
    assert errors.count("Traceback") == 1 and "wandb" not in errors
    assert [row["step"] for row in history(tmp_path)] == list(range(11))
    assert [r.exit.exit_code for r in read(tmp_path) if r.HasField("exit")] == [1]


def test_a_training_that_breaks_off_is_not_held_up_by_wandb(tmp_path):
    freeze = "tracking.FINISH_SECONDS = 0.5; psutil.Process().children()[0].suspend(); 1 / 0"
    with start_training(tmp_path, freeze) as broken:
        _, errors = broken.communicate(timeout=50)
    assert errors.count("Traceback") == 1 and "ZeroDivisionError" in errors


# Online, offline or not at all


@pytest.fixture
def hosts():
    """Addresses on this machine: one that answers, one that refuses, one that never answers."""
    open_server = socket.create_server(("127.0.0.1", 0))
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    for _ in range(8):  # fill its queue, so that the next connection hangs
        waiting.append(socket.socket())
        waiting[-1].setblocking(False)
        waiting[-1].connect_ex(full.getsockname())
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refusing = unused.getsockname()[1]
    yield {
        "answers": f"http://127.0.0.1:{open_server.getsockname()[1]}",
        "refuses": f"http://127.0.0.1:{refusing}",
        "hangs": f"http://127.0.0.1:{full.getsockname()[1]}",
    }
    for connection in (open_server, full, *waiting):
        connection.close()


@pytest.mark.parametrize(
    "mode, key, host, settled",
    [
        ("auto", True, "answers", "online"),
        ("auto", True, "hangs", "offline"),
        ("auto", False, "answers", "offline"),
        ("online", True, "hangs", "online"),
        ("offline", True, "answers", "offline"),
    ],
)
def test_the_mode_that_is_settled_on(monkeypatch, hosts, mode, key, host, settled):
    monkeypatch.setattr(wandb_logger, "PROBE_SECONDS", 0.2)
    monkeypatch.setenv("WANDB_BASE_URL", hosts[host])
    if key:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    import wandb

    found, why = wandb_logger.decide_mode(mode, wandb)
    assert found == settled and bool(why) == (settled == "offline")


@pytest.mark.parametrize("proxy, reached", [("answers", True), ("refuses", False)])
def test_behind_a_proxy_the_proxy_must_answer(monkeypatch, hosts, proxy, reached):
    monkeypatch.setenv("https_proxy", hosts[proxy])
    assert wandb_logger.answers("https://no-such-host.invalid") == reached
    monkeypatch.setenv("https_proxy", hosts[proxy].removeprefix("http://"))
    assert wandb_logger.answers("https://no-such-host.invalid") == reached
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert wandb_logger.answers(hosts["answers"].replace("http:", "https:"))
    assert not wandb_logger.answers("http://127.0.0.1:port"), "no address"


@pytest.mark.parametrize(
    "text, found",
    [
        (f"machine api.wandb.ai login user password {KEY}", True),
        (f"machine other.host login user password {KEY}", False),
        ("machine machine machine", False),
    ],
)
def test_a_key_in_the_netrc_file(monkeypatch, tmp_path, text, found):
    import wandb

    for name, place in (("HOME", ".netrc"), ("HOME", "_netrc"), ("NETRC", "elsewhere")):
        home = tmp_path / place
        home.mkdir()
        monkeypatch.setenv(name, str(home if name == "HOME" else home / place))
        (home / place).write_text(text)
        (home / place).chmod(0o600)
        assert wandb_logger.decide_mode("online", wandb)[0] == ("online" if found else "offline")
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "/a/file")
    assert wandb_logger.has_key("https://api.wandb.ai")


def test_the_key_is_looked_for_under_the_server_that_wandb_would_take(monkeypatch, tmp_path):
    import wandb

    monkeypatch.setattr(wandb_logger, "answers", lambda url: True)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))

    def settled(machine):
        wandb.teardown()  # it reads its settings once
        (tmp_path / "netrc").write_text(f"machine {machine} login user password {KEY}")
        return wandb_logger.decide_mode("auto", wandb)[0]

    assert settled("api.wandb.ai") == "online"
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.school.kr\n")
    assert settled("api.wandb.ai") == "offline"
    assert settled("wandb.school.kr") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:8080")
    assert settled("wandb.school.kr") == "offline"
    assert settled("localhost:8080") == "online"


def test_online_without_a_key_asks_nobody_and_records_offline(tmp_path, monkeypatch):
    terminal = SimpleNamespace(isatty=lambda: True, readline=boom, read=boom)
    monkeypatch.setattr("sys.stdin", terminal)
    said = []
    tracker = track(tmp_path, "online", said)
    tracker.log(ROWS[0])
    tracker.finish({})
    assert history(tmp_path) == ROWS[:1]
    assert len(said) == 1 and "no key" in said[0] and "wandb sync" in said[0]


def test_an_unknown_mode_names_the_known():
    with pytest.raises(UserError, match="'onlin'; did you mean 'online'?.*disabled"):
        make_tracker("onlin", project="", name="", id="", config={}, folder=Path(), say=print)


# Failures, on a wandb that fails on purpose


class Run:
    """A run of a fake wandb: keeps what it is given, or does what a test has it do."""

    url = "https://wandb.ai/r4-1"
    dir = "runs/r4/wandb/run-1-r4-1/files"

    def __init__(self):
        self.rows, self.summary, self.exit_code = [], {}, None

    def define_metric(self, name, **options):
        pass

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def fake(monkeypatch):
    """A fake wandb of an old version that knows few settings; its run is `fake.run`."""
    wandb = ModuleType("wandb")
    wandb.run, wandb.given, wandb.teardowns = Run(), {}, 0
    known = {"silent", "console"}

    def settings(**options):
        assert options.keys() <= known
        return options

    def init(**options):
        wandb.given.update(options)
        return wandb.run

    def teardown():
        wandb.teardowns += 1

    url = SimpleNamespace(default="https://api.wandb.ai", base_url="https://api.wandb.ai")
    settings.model_fields = dict.fromkeys(known) | {"base_url": url}
    wandb.setup = lambda settings=None: SimpleNamespace(settings=url)
    wandb.Settings, wandb.init, wandb.teardown = settings, init, teardown
    wandb.Table = lambda columns, data: (columns, data)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb_logger, "FREED_SECONDS", 0.1)
    return wandb


@pytest.fixture
def stuck():
    """A call that hangs until the test is over."""
    over = threading.Event()
    yield lambda *_, **__: over.wait(60) and None
    over.set()


def boom(*_, **__):
    raise RuntimeError("the server\nis on fire")


boom.model_fields = {}  # as wandb.Settings


def leave(*_, **__):
    sys.exit("the server is on fire")


leave.model_fields = {}


def train(tracker):
    """A training of 500 steps as the loop would do it, which nothing may hold up."""
    began = time.monotonic()
    for step in range(500):
        tracker.log({"step": step, "epoch": 0, "train/loss": 1.0})
    tracker.table("per_class", ["class"], [["apple"]])
    tracker.finish({"best": 1.0})
    tracker.finish({"best": 1.0})  # a second time does no harm
    tracker.log({"step": 501})
    assert time.monotonic() - began < 20


def test_a_fake_that_works_gets_everything(tmp_path, monkeypatch, fake):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said = []
    train(track(tmp_path, "online", said))
    assert [row["step"] for row in fake.run.rows[:-1]] == list(range(500))
    assert fake.run.rows[-1] == {"per_class": (["class"], [["apple"]])}
    assert (fake.run.summary, fake.run.exit_code) == ({"best": 1.0}, 0)
    assert said == ["wandb: https://wandb.ai/r4-1"]
    expected = {"mode": "online", "resume": "allow", "id": "r4-1", "dir": str(tmp_path)}
    assert expected.items() <= fake.given.items()
    assert fake.given["settings"]["console"] == "off"
    assert fake.teardowns == 1


@pytest.mark.parametrize("chosen", ["offline", "disabled", "nonsense"])
def test_auto_follows_wandbs_own_variable(tmp_path, monkeypatch, fake, chosen):
    monkeypatch.setenv("WANDB_MODE", chosen)
    tracker = track(tmp_path, "auto", said=[])
    tracker.finish({})
    assert fake.given.get("mode") == (None if chosen == "disabled" else "offline")


@pytest.mark.parametrize("mode", ["disabled", "auto"])
def test_a_wandb_that_is_missing(tmp_path, monkeypatch, mode):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = []
    tracker = track(tmp_path, mode, said)
    assert type(tracker) is Tracker
    train(tracker)
    assert not list(tmp_path.iterdir())
    assert ["cannot be imported" in line for line in said] == [True] * (mode == "auto")


@pytest.mark.parametrize("error", [boom, leave])
@pytest.mark.parametrize("place", ["Settings", "init", "log", "finish"])
def test_a_failure_is_one_line(tmp_path, monkeypatch, fake, place, error):
    started = place in ("log", "finish")
    monkeypatch.setattr(fake.run if started else fake, place, error)
    said = []
    train(track(tmp_path, said=said))
    assert said.pop().startswith("wandb: off from here (the server is on fire)")
    assert len(said) == started and fake.teardowns == 1


def test_a_server_that_answers_too_late_starts_nothing(tmp_path, monkeypatch, fake):
    answer = threading.Event()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_logger, "answers", lambda url: answer.wait(60))
    monkeypatch.setattr(wandb_logger, "START_SECONDS", 0.1)
    monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 0.1)
    said = []
    tracker = track(tmp_path, "auto", said)
    train(tracker)
    answer.set()
    tracker._thread.join(20)
    assert not fake.given and len(said) == 1


@pytest.mark.parametrize(
    "place, mode, upload",
    [
        ("init", "offline", ""),
        ("log", "offline", "; `wandb sync {}/wandb/offline-run-*`"),
        ("finish", "online", "; `wandb sync --include-online runs/r4/wandb/run-1-r4-1`"),
    ],
)
def test_what_hangs_does_not_stop_the_training(
    tmp_path, monkeypatch, fake, stuck, place, mode, upload
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_logger, "START_SECONDS", 0.1)
    monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 0.1)
    monkeypatch.setattr(fake if place == "init" else fake.run, place, stuck)
    said = []
    train(track(tmp_path, mode, said))
    assert f"not done after 0 s{upload.format(tmp_path)}" in said.pop()
    assert len(said) == bool(upload)


def test_a_wandb_that_falls_behind_is_left_behind(tmp_path, monkeypatch, fake, stuck):
    monkeypatch.setattr(wandb_logger, "QUEUE_ROWS", 100)
    monkeypatch.setattr(fake.run, "log", stuck)
    said = []
    tracker = track(tmp_path, said=said)
    train(tracker)
    assert len(said) == 2 and "100 rows behind" in said[1]


# Failures of the real wandb


def test_wandbs_process_frozen(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 1.0)
    said = []
    tracker = track(tmp_path, said=said)
    (core,) = services()
    core.suspend()
    train(tracker)
    assert len(said) == 2 and "not done after" in said[1]
    assert not services()
    assert capfd.readouterr() == ("", "")


# Reports


@pytest.mark.parametrize("works", [True, False])
def test_a_report(tmp_path, monkeypatch, fake, works):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fake.run.offline, fake.run.entity, fake.run.project = False, "school", "vision"
    pages, said = [], []

    class Report(SimpleNamespace):
        url = "https://wandb.ai/report"

        def save(self):
            pages.append(self) if works else boom()

    module = SimpleNamespace(Report=Report, MarkdownBlock=lambda text: text)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", ModuleType("wandb_workspaces"))
    reports = SimpleNamespace(v2=module)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports", reports)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", module)
    tracker = track(tmp_path, "online", said)
    tracker.report("a title", "| a |")
    tracker.log(ROWS[0])  # whatever became of the report
    tracker.finish({})
    expected = dict(project="vision", entity="school", title="a title", blocks=["| a |"])
    assert [vars(page) for page in pages] == [expected] * works
    line = f"report {Report.url}" if works else "no report (the server is on fire)"
    assert said[-1] == f"wandb: {line}"
    assert fake.run.rows == ROWS[:1]
    assert (tmp_path / "wandb" / "url").read_text() == f"{fake.run.url}\n"


@pytest.mark.parametrize("offline, reason", [(True, "(offline)"), (False, "pip install")])
def test_why_there_is_no_report(tmp_path, monkeypatch, fake, offline, reason):
    fake.run.offline = offline
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    said = []
    tracker = track(tmp_path, "offline", said)
    tracker.report("a title", "| a |")
    tracker.finish({})
    assert len(said) == 2 and said[-1].startswith("wandb: no report") and reason in said[-1]
    assert not (tmp_path / "wandb" / "url").exists()
