"""`vision-tutorial` itself: the commands, the registries, consoles of all kinds."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.console import Console
from rich.progress import track

from vision_tutorial import __main__ as program
from vision_tutorial import __version__
from vision_tutorial.core.errors import UserError, run_main
from vision_tutorial.engine.progress import make_display


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_alone_it_lists_commands_and_examples(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert program.main(words) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in program.COMMANDS)
    assert all(example in shown for example in program.EXAMPLES)
    assert len(shown.splitlines()) <= 30, "one screen"
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_components_lists_every_entry(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert program.main(["components"]) == 0
    shown = capsys.readouterr().out
    assert "focal(gamma=2.0, alpha=None)" in shown
    assert "cutmix(alpha=1.0, p=1.0, mode=batch)" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.filterwarnings("error")
def test_a_command_leaves_nothing_open() -> None:
    """Under `python -W error` or `-X dev` it would say so."""
    assert run_main(lambda: None) == 0
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_a_command_that_is_none(capsys: pytest.CaptureFixture) -> None:
    assert program.main(["trian"]) == 2
    assert "no command called 'trian'; did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not here")
def test_bash_completes_commands_recipes_and_options(tmp_path: Path, capsys) -> None:
    assert program.main(["--print-completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "mine.yaml").touch()
    for words, expected in {
        "tr": {"train"},
        "train q": {"quickstart"},
        "explain segmentation/c": {"segmentation/c", "segmentation/camvid"},
        "train m": {"mine.yaml"},
        "train r4 --res": {"--resume"},
        "report --lang ": {"en", "ko"},
    }.items():
        typed = ["vision-tutorial", *words.split(" ")]
        lines = f"""source ./script; COMP_WORDS=({" ".join(typed[:-1])} "{typed[-1]}")
            COMP_CWORD={len(typed) - 1}; _shtab_vision_tutorial
            printf '%s\n' "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", lines], cwd=tmp_path, capture_output=True, text=True)
        assert set(done.stdout.split()) == expected, (words, done)
    assert program.main(["--print-completion", "zsh"]) == 0 and "compadd" in capsys.readouterr().out
    for words in (["--print-completion"], ["--print-completion", "bsh"]):
        assert program.main(words) == 2
        assert "no shell called" in capsys.readouterr().err


def test_its_version(capsys: pytest.CaptureFixture) -> None:
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_consoles_that_lack_letters() -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "vision_tutorial"], env=env, capture_output=True)
    assert done.returncode == 0 and b"leaderboard" in done.stdout and not done.stderr


@pytest.mark.parametrize("command", ["train", "explain", "note", "compare"])
def test_a_name_that_the_system_refuses(command, tmp_path, capsys, monkeypatch) -> None:
    """Too long, or in a folder that this account may not look into."""
    for name in ("x" * 300, str(tmp_path / "closed" / "run")):
        if name[0] != "x":
            refused = PermissionError(errno.EACCES, "Permission denied", name)
            monkeypatch.setattr(Path, "stat", Mock(side_effect=refused))
        assert program.main([command, name]) == 2
        *others, last = capsys.readouterr().err.splitlines()
        assert last.startswith("error: ") and name in last
        assert all(line.startswith("left out ") for line in others)
        monkeypatch.undo()


def bar(name: str) -> None:
    for _ in track([1], "bar", console=Console(stderr=True, force_terminal=True)):
        print(name, file=sys.stderr)


@pytest.mark.parametrize(
    "name", ["\x1b[2J", "a\x1b]0;x\x07", "\x9b2J", "a\rb", "\u202exe.gnp", "\x00"]
)
def test_a_name_cannot_steer_the_terminal(name, capsys):
    def command() -> int:
        print("found", name)
        make_display(True, Console()).say(f"say {name}")
        raise UserError(f"{name}: no such image")

    assert run_main(command) == 2
    said = "".join(capsys.readouterr())
    assert run_main(lambda: bar(name)) == 0
    drawn = capsys.readouterr().err
    assert drawn.count(ascii(name)[1:-1]) == 1 and "\x1b[2K" in drawn and "\\x1b[2K" not in drawn
    assert all(line.isprintable() for line in said.split("\n"))
    assert said.count(ascii(name)[1:-1]) >= 2 and "error: " in said
