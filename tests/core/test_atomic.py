"""What an output may name, what is left there, and what is read: nodes of our own only."""

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import pytest
from run_folders import make_run

from vision_tutorial.commands import compare, note, report
from vision_tutorial.commands.of_recipes import explain
from vision_tutorial.core import atomic
from vision_tutorial.core.errors import UserError
from vision_tutorial.runs import run_folder

COMMANDS = {"compare": (compare.main, "# |recipe|run"), "report": (report.main, "<!doctype html")}


@pytest.fixture(params=COMMANDS)
def write(request, tmp_path):
    """Runs a command with this output: its exit code. And how what it writes begins."""
    run = make_run(tmp_path / "runs")
    main, begins = COMMANDS[request.param]
    more = ["--format", "markdown"] if request.param == "compare" else []
    return lambda path: main([str(run), "-o", str(path), *more]), begins


def begins_with(text, begins):
    return any(text.lower().startswith(word) for word in ("|", "<!doctype"))


def test_a_device_and_a_fifo_are_written_to_and_stay(write, tmp_path, monkeypatch):
    write, begins = write
    null, fifo = tmp_path / "null", tmp_path / "fifo"
    os.mkfifo(fifo)
    read = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    assert write(fifo) == 0
    reader.join(10)
    assert begins_with(read[0], begins) and stat.S_ISFIFO(fifo.stat().st_mode)
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.close(os.open(null, os.O_WRONLY))
    except OSError:
        pytest.skip("no right to make a device here")
    assert write(null) == 0 and stat.S_ISCHR(null.lstat().st_mode)
    (tmp_path / "link").symlink_to(null)
    assert write(tmp_path / "link") == 0
    assert stat.S_ISCHR(null.lstat().st_mode) and (tmp_path / "link").is_symlink()
    assert set(os.listdir(tmp_path)) == {"runs", "null", "fifo", "link"}


def test_standard_output_holds_the_output_alone(write, tmp_path, capfd, monkeypatch):
    write, begins = write
    monkeypatch.chdir(tmp_path)
    assert write("-") == 0
    assert begins_with(capfd.readouterr().out, begins) and os.listdir() == ["runs"]


def test_a_links_target_is_replaced_or_made(write, tmp_path):
    write, begins = write
    (tmp_path / "a").mkdir()
    for name in ("there", "dangling"):
        target, link = tmp_path / "a" / name, tmp_path / f"to-{name}"
        link.symlink_to(Path("a", name))
        if name == "there":
            target.write_text("old")
            target.chmod(0o640)
        assert write(link) == 0
        assert link.is_symlink() and begins_with(target.read_text(), begins)
    assert set(os.listdir(tmp_path / "a")) == {"there", "dangling"}


def test_folders_sockets_and_circles_of_links_are_refused_in_one_line(write, tmp_path, capsys):
    write, _ = write
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(tmp_path / "socket"))
        for name in ("folder", "socket", "circle", "x" * 300):
            assert write(tmp_path / name) in (2, 5)
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and str(tmp_path / name) in err
    assert (tmp_path / "circle").is_symlink() and (tmp_path / "socket").is_socket()


def fill_folder(path):
    with atomic.new_folder(path):
        pass


@pytest.mark.parametrize("make", [atomic.make_folder, fill_folder])
def test_an_output_folder_may_be_a_link_and_nothing_else(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("file").write_text("kept")
    for name in ("-", "fifo", "file"):
        with pytest.raises(UserError, match="a folder is expected"):
            make(Path(name))
    assert sorted(os.listdir()) == ["fifo", "file"]
    Path("link").symlink_to("target")
    make(Path("link"))
    assert Path("link").is_symlink() and Path("target").is_dir()


def test_only_files_are_read(tmp_path, capsys):
    """Reading a FIFO would wait for ever."""
    run = make_run(tmp_path)
    for name in ("recipe.yaml", "status.json", "summary.json"):
        (run / name).rename(run / "kept")
        os.mkfifo(run / name)
        code, err = compare.main([str(run)]), capsys.readouterr().err
        assert code == (2 if name == "recipe.yaml" else 0) or f"{name} is a FIFO" in err
        (run / name).unlink()
        (run / "kept").rename(run / name)
    os.mkfifo(run / "notes.jsonl")  # which is added to
    assert note.main([str(run), "seen"]) == 2 and "is a FIFO" in capsys.readouterr().err
    os.mkfifo(tmp_path / "x.yaml")
    assert explain.main([str(tmp_path / "x.yaml")]) == 2
    with pytest.raises(UserError, match="is a FIFO; a file is expected"):
        atomic.regular(tmp_path / "x.yaml")


def test_processes_that_write_one_file_do_not_meet_and_the_dead_leave_nothing(tmp_path):
    """One of them is killed while it writes."""
    path = tmp_path / "status.json"

    def started(work):
        child = os.fork()
        if child == 0:
            try:
                work()
            except BaseException:
                os._exit(1)
            os._exit(0)
        return child

    def killed():
        with atomic.replacing(path) as temporary:
            temporary.write_text("half")
            os._exit(9)

    def wrote():
        for n in range(100):
            run_folder.set_status(tmp_path, "failed", error=str(n))

    children = [started(work) for work in (killed, wrote, wrote, wrote)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [9, 0, 0, 0]
    atomic._tidy.cache_clear()
    run_folder.set_status(tmp_path, "done")
    assert sorted(os.listdir(tmp_path)) == ["log.txt", "status.json"]


def test_a_closed_pipe_is_the_end_of_an_output_not_an_error(tmp_path):
    with pytest.raises(BrokenPipeError), atomic.storage(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "")
