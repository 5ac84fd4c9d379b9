"""Rows to wandb: complete, once, without secrets, and never in the way of a training."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import psutil
import pytest
from wandb_file import KEY, forget, history, items, read

from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import wandb_logger
from vision_tutorial.runs.wandb_logger import make_tracker

ROWS = [
    {"epoch": n // 10, "step": n, "lr": 0.1 / n, "train/loss": 4.0, "val/top1": n / 3, "best": None}
    for n in range(10, 60, 10)
]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path_factory):
    """Nothing of the machine's; no process of wandb's after."""
    forget(monkeypatch, tmp_path_factory.mktemp("home"))
    for name in ("START", "FINISH"):  # a busy machine is no failure
        monkeypatch.setattr(wandb_logger, f"{name}_SECONDS", 60.0)
    yield
    if hasattr(sys.modules.get("wandb"), "teardown"):
        sys.modules["wandb"].teardown()
    services = [c.name() for c in psutil.Process().children()]
    assert not any(name.startswith("wandb-core") for name in services)


def track(folder, mode="offline", said=None, **options):
    options = {"project": "vision", "name": "r4", "id": "r4-1", "config": {"seed": 1}} | options
    say = print if said is None else said.append
    return make_tracker(mode, folder=folder, say=say, **options)


def test_an_offline_run_holds_what_was_logged_and_no_secret(tmp_path, monkeypatch, capfd):
    secrets = {"WANDB_API_KEY": KEY, "HF_TOKEN": "hf_secret_token"}
    for name, secret in secrets.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setattr(sys, "argv", ["train.py", "--password", "argv_secret"])
    said = []
    config = {"model": {"resnet50": {"stem": "cifar"}}, "seed": 1}
    tracker = track(tmp_path, said=said, tags=["r4", "ddp"], group="g", notes="n", config=config)
    rows = [*ROWS, {"epoch": 6, "step": 60, "train/loss": float("inf"), "val/top1": 1e-9}]
    for row in rows:
        tracker.log(row)
    tracker.table("per_class", ["class", "top1"], [["apple", 81.5], ["자동차", None]])
    tracker.report("a title", "| a |")
    print("console_secret")
    time.sleep(1.5)  # what wandb finds out about the machine comes late
    tracker.finish({"best": 82.13, "expects": {"top1": 82.13}}, exit_code=3)

    *logged, table = history(tmp_path)
    assert logged == rows
    assert table["per_class/nrows"] == 2
    (file,) = tmp_path.glob("wandb/*run-*/files/media/table/*.json")
    data = [["apple", 81.5], ["자동차", None]]
    assert json.loads(file.read_text()) == {"columns": ["class", "top1"], "data": data}
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
    upload = f"`wandb sync {tmp_path}/wandb/offline-run-*` uploads it"
    assert said == [f"wandb: offline (as asked); {upload}", "wandb: no report (offline)"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not {"url", "requirements.txt"} & {path.name for path in files}
    everything = b"".join(path.read_bytes() for path in files)
    for secret in (*secrets.values(), "console_secret", "argv_secret"):
        assert secret.encode() not in everything


TRAINING = """
import sys, time
import psutil
from contextlib import ExitStack, suppress
from pathlib import Path
from vision_tutorial.runs import wandb_logger as tracking
tracking.START_SECONDS = 60.0  # a busy machine is no failure
tracker = tracking.make_tracker("offline", project="vision", name="r4", id="r4-1", config={},
                                folder=Path(sys.argv[1]), say=lambda line: None)
for step in range(100_000):
    tracker.log({"step": step, "epoch": 0, "train/loss": 1.0 / (step + 1)})
    time.sleep(0.002)
    if step == 10:
        exec(sys.argv[2])
"""
FREEZE = "tracking.FINISH_SECONDS = 0.5; psutil.Process().children()[0].suspend(); "


def start_training(folder, at_step_ten=""):
    """A training in a process of its own."""
    command = [sys.executable, "-c", TRAINING, str(folder), at_step_ten]
    root = Path(wandb_logger.__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)


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


@pytest.mark.parametrize("before", ["", FREEZE])
def test_a_training_that_breaks_off_closes_its_run_and_never_hangs(tmp_path, before):
    with start_training(tmp_path, f"{before}raise ValueError('no finish')") as broken:
        _, errors = broken.communicate(timeout=50)
    assert errors.count("Traceback") == 1 and "ValueError: no finish" in errors
    if not before:
        assert "wandb" not in errors
        assert [row["step"] for row in history(tmp_path)] == list(range(11))
        assert [r.exit.exit_code for r in read(tmp_path) if r.HasField("exit")] == [1]


FIRE = RuntimeError("the server\nis on fire")


@pytest.fixture
def fake(monkeypatch):
    """A fake wandb of an old version that knows few settings; with a key. Its run is `fake.run`."""
    url = "https://api.wandb.ai"
    wandb = MagicMock()
    wandb.run = wandb.init.return_value
    wandb.run.url, wandb.run.dir = "https://wandb.ai/r4-1", "runs/r4/wandb/run-1-r4-1/files"
    wandb.setup.return_value.settings.base_url = url
    wandb.Settings.model_fields = {"silent": 0, "console": 0, "base_url": MagicMock(default=url)}
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setattr(wandb_logger, "FREED_SECONDS", 0.1)
    monkeypatch.setattr(wandb_logger, "serves", lambda url: True)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return wandb


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


def rows_sent(fake):
    return [call.args[0] for call in fake.run.log.call_args_list]


def test_online_a_fake_of_an_old_version_gets_everything(tmp_path, fake):
    said = []
    train(track(tmp_path, "online", said))
    *rows, table = rows_sent(fake)
    assert [row["step"] for row in rows] == list(range(500))
    assert table == {"per_class": fake.Table.return_value}
    fake.run.finish.assert_called_once_with(exit_code=0)
    assert said == [f"wandb: {fake.run.url}"]
    assert (tmp_path / "wandb" / "url").read_text() == f"{fake.run.url}\n"
    expected = {"mode": "online", "resume": "allow", "id": "r4-1", "dir": str(tmp_path)}
    assert expected.items() <= fake.init.call_args.kwargs.items()
    fake.Settings.assert_called_once_with(silent=True, console="off")
    fake.teardown.assert_called_once_with()


def test_the_bookmark_counts_the_rows_of_a_step(tmp_path, fake):
    def sent(*steps, id="a"):
        fake.run.log.reset_mock()
        tracker = track(tmp_path, said=[], id=id)
        for step in steps:
            tracker.log({"step": step})
        tracker.finish({})
        return [row["step"] for row in rows_sent(fake)]

    assert sent(1, 1, 2) == [1, 1, 2]
    assert sent(1, 1, 2, 2, 3) == [2, 3]
    assert sent(1, id="b") == [1], "of another run"
    for damaged in ("{", "[]", '{"run": "a", "step": "x", "row": 1}'):
        (tmp_path / "wandb" / "sent.json").write_text(damaged)
        assert sent(0) == [0]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WANDB_MODE", "offline", "offline"),
        ("WANDB_MODE", "disabled", None),
        ("WANDB_MODE", "nonsense", "offline"),
        ("WANDB_MODE", "dryrun", "offline"),
        ("WANDB_DISABLED", "true", None),
        ("settings", "offline", "offline"),
        ("settings", "disabled", None),
        ("settings", "online", "online"),
    ],
)
def test_auto_follows_wandbs_own_switches(tmp_path, monkeypatch, fake, name, value, expected):
    monkeypatch.setattr(wandb_logger, "serves", lambda url: name == "settings")
    if name == "settings":
        fake.setup.return_value.settings.mode = value
    else:
        monkeypatch.setenv(name, value)
    track(tmp_path, "auto", said=[]).finish({})
    modes = [call.kwargs["mode"] for call in fake.init.call_args_list]
    assert modes == [expected] * bool(expected)


def test_a_server_that_fails_at_the_start_makes_the_run_an_offline_one(tmp_path, fake):
    def init(mode, **_):
        if mode == "online":
            raise RuntimeError("500 Internal Server Error")
        return fake.run

    fake.init.side_effect, said = init, []
    train(track(tmp_path, "online", said))
    assert len(rows_sent(fake)) == 501 and "offline (500 Internal Server Error)" in said[0]


def test_the_end_does_not_wait_for_a_server_that_is_gone(tmp_path, monkeypatch, fake):
    over = threading.Event()
    fake.run.finish.side_effect = lambda **_: over.wait(60)
    serving = iter([True, False])
    monkeypatch.setattr(wandb_logger, "serves", lambda url: next(serving))
    said = []
    tracker = track(tmp_path, "online", said)
    began = time.monotonic()
    tracker.finish({})
    over.set()
    assert time.monotonic() - began < 5 and "uploads the rest" in said[-1]


def test_names_that_wandb_refuses(tiny, tmp_path):
    with pytest.raises(UserError, match="'onlin'; did you mean 'online'?.*disabled"):
        track(tmp_path, "onlin")
    assert wandb_logger.fitted("r4-1") == "r4-1" == wandb_logger.fitted("r4-1", ascii=True)
    long = wandb_logger.fitted("x" * 129)
    assert len(long) == 128 and long != wandb_logger.fitted("x" * 130)
    assert wandb_logger.fitted("나-1") == "나-1"
    assert wandb_logger.fitted("나-1", ascii=True) != wandb_logger.fitted("너-1", ascii=True)
    for bad in ("{project: team/x}", "{project: ''}", f"{{tags: [{'x' * 65}]}}", "{tags: ['']}"):
        with pytest.raises(UserError, match=r"wandb\.(project|tags)"):
            load(tiny, [f"wandb={bad}"])


def test_a_temporary_folder_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr(wandb_logger.tempfile, "tempdir", None)
    tracker = track(tmp_path, said=[])
    tracker.log(ROWS[0])
    tracker.finish({})
    assert wandb_logger.tempfile.gettempdir() == str(tmp_path / "wandb")
    assert len(history(tmp_path)) == 1


@pytest.mark.parametrize(
    "odd",
    ["HOME=~", "WANDB_MODE=Nonsense", "WANDB_PROJECT=a/b", "WANDB_BASE_URL=x", "WANDB_RUN_ID=:"],
)
def test_no_variable_turns_it_off(odd, tmp_path, monkeypatch):
    """Of an account without a home, too, where wandb would look for its settings."""
    monkeypatch.chdir(tmp_path)
    for name in wandb_logger._places(tmp_path):
        monkeypatch.setenv(name, "set, to be put back")
        monkeypatch.delenv(name)
    monkeypatch.setenv(*odd.split("="))
    said: list[str] = []
    tracker = track(tmp_path, "auto", said)
    tracker.log(ROWS[0])
    tracker.table("classes", ["class"], [["a"]])  # for whose file it has a folder of its own
    tracker.finish({})
    assert len(history(tmp_path)) == 2 and said[0].startswith("wandb: offline (")
    name, value = odd.split("=")
    assert len(said) == 1 and os.environ[name] == value and not Path("~").exists()


def test_a_wandb_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = []
    train(track(tmp_path, "auto", said))
    assert not list(tmp_path.iterdir())
    assert len(said) == 1 and "cannot be imported" in said[0]


@pytest.mark.parametrize(
    "place, error",
    [("Settings", FIRE), ("init", SystemExit(str(FIRE))), ("run.log", FIRE), ("run.finish", FIRE)],
)
def test_a_failure_is_one_line(tmp_path, fake, place, error):
    fake.configure_mock(**{f"{place}.side_effect": error})
    said = []
    train(track(tmp_path, said=said))
    assert said.pop().startswith("wandb: off from here (the server is on fire)")
    assert len(said) == place.startswith("run")
    assert fake.teardown.call_count == 1 + (place == "Settings")  # it is tried again, offline


@pytest.mark.parametrize(
    "place, mode, queued, reason",
    [
        ("init", "offline", 10_000, "not done after 0 s)"),
        ("run.log", "offline", 10_000, "not done after 0 s; `wandb sync {}/wandb/offline-run-*`"),
        ("run.finish", "online", 10_000, "not done after 0 s; `wandb sync --include-online runs/"),
        ("run.log", "offline", 100, "100 rows behind"),
    ],
)
def test_what_hangs_does_not_stop_the_training(
    tmp_path, monkeypatch, fake, place, mode, queued, reason
):
    over = threading.Event()
    for name, value in {"START_SECONDS": 0.1, "FINISH_SECONDS": 0.1, "QUEUE_ROWS": queued}.items():
        monkeypatch.setattr(wandb_logger, name, value)
    fake.configure_mock(**{f"{place}.side_effect": lambda *_, **__: over.wait(60)})
    said = []
    train(track(tmp_path, mode, said))
    over.set()
    assert reason.format(tmp_path) in said.pop() and len(said) == place.startswith("run")


@pytest.mark.parametrize(
    "error, line",
    [
        (None, "report https://wandb.ai/report"),
        (FIRE, "no report (the server is on fire)"),
        (ImportError(), "no report; `pip install wandb-workspaces` makes it possible"),
    ],
)
def test_a_report(tmp_path, monkeypatch, fake, error, line):
    fake.run.configure_mock(offline=False, entity="school", project="vision")
    reports = MagicMock()
    reports.Report.return_value = page = SimpleNamespace(url="https://wandb.ai/report")
    page.save = MagicMock(side_effect=error)
    package = MagicMock(reports=MagicMock(v2=reports))
    for name, module in (("", package), (".reports", package.reports), (".reports.v2", reports)):
        monkeypatch.setitem(sys.modules, f"wandb_workspaces{name}", module)
    said = []
    tracker = track(tmp_path, "online", said)
    tracker.report("a title", "| a |")
    tracker.log(ROWS[0])  # whatever became of the report
    tracker.finish({})
    reports.Report.assert_called_once_with(project="vision", entity="school", title="a title")
    reports.MarkdownBlock.assert_called_once_with(text="| a |")
    assert said[-1] == f"wandb: {line}" and rows_sent(fake) == ROWS[:1]
