"""The hook behind `torchrun --nproc N`, as a function and in real launches; and torchrun.sh."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.run import get_args_parser

from vision_tutorial import torchrun_nproc

ROOT = Path(__file__).parents[1]
# one write, so that the lines of two ranks cannot mingle
WORKER = "import os, sys\nos.write(1, f'rank {os.environ[\"RANK\"]} {sys.argv[1:]}\\n'.encode())\n"
ACTIONS = [a for a in get_args_parser()._actions if a.option_strings]

needs_sh = pytest.mark.skipif(os.name != "posix", reason="a shell script")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--nproc 2 -m pkg.train r.yaml", "--nproc-per-node 2 -m pkg.train r.yaml"),
        ("--nproc=2 train.py r.yaml", "--nproc-per-node=2 train.py r.yaml"),
        ("-m pkg.train --nproc 3", "-m pkg.train --nproc 3"),
        # "5" is a value, not the script
        ("--rdzv-id 5 --nproc 2 x --nproc 3", "--rdzv-id 5 --nproc-per-node 2 x --nproc 3"),
        ("-r3 --nproc 2 train.py", "-r3 --nproc-per-node 2 train.py"),
        # a flag has none
        ("--standal train.py --nproc 3", "--standal train.py --nproc 3"),
        ("-- train.py --nproc 3", "-- train.py --nproc 3"),
        ("--nproc", "--nproc-per-node"),
        ("", ""),
    ],
)
def test_only_torchruns_own_nproc_is_spelled_out(given, expected):
    assert torchrun_nproc.spell_out(given.split()) == expected.split()


def test_flags_are_those_of_torchs_parser():
    flags = {option for a in ACTIONS if a.nargs == 0 for option in a.option_strings}
    assert flags and not any(torchrun_nproc.takes_next(option) for option in flags)
    takes_value = [s for a in ACTIONS if a.nargs != 0 for s in a.option_strings]
    assert takes_value and all(torchrun_nproc.takes_next(option) for option in takes_value)


def spellings(action) -> st.SearchStrategy[list[str]]:
    name = st.sampled_from(action.option_strings)
    if action.nargs == 0:
        return name.map(lambda n: [n])
    value = str(action.choices[0]) if action.choices else "7"
    apart = name.map(lambda n: [n, value])
    joined = name.map(lambda n: [f"{n}={value}"] if n.startswith("--") else [n + value])
    return apart | joined


SAFE = [a for a in ACTIONS if not {"--help", "--print-completion"} & set(a.option_strings)]


@given(
    st.lists(st.one_of(*map(spellings, SAFE)), max_size=5),
    st.sampled_from([["--nproc", "2"], ["--nproc=2"]]),
    st.lists(st.sampled_from(["-m", "x", "3", "--lr=1", "-r", "key=value"]), max_size=4),
)
def test_torchs_parser_agrees_on_where_the_script_begins(options, nproc, script_arguments):
    before = [word for option in options for word in option]
    arguments = [*before, *nproc, "train.py", *script_arguments]
    parsed = get_args_parser().parse_args(torchrun_nproc.spell_out(arguments))
    assert torchrun_nproc.script_at(arguments) == len(before) + len(nproc)
    assert (parsed.nproc_per_node, parsed.training_script) == ("2", "train.py")
    assert parsed.training_script_args == script_arguments


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/env/bin/torchrun", "x"], [], True),
        (["C:\\env\\Scripts\\torchrun-script.pyw"], [], True),
        (["/env/torch/distributed/run.py", "x"], [], True),
        (["-m", "a", "b"], ["python", "-u", "-m", "torch.distributed.run", "a", "b"], True),
        (["-m", "a"], ["python", "-mtorch.distributed.run", "a"], True),
        (["-m", "torch.distributed.run"], ["python", "-m", "x", "torch.distributed.run"], False),
        (["-c"], ["python", "-c", "import torch"], False),
        (["my_torchrun"], [], False),
    ],
)
def test_only_torchrun_is_touched(monkeypatch, argv, orig_argv, expected):
    assert torchrun_nproc.is_torchrun(argv, orig_argv) is expected
    monkeypatch.setattr(sys, "argv", [argv[0], "--nproc", "2", "x"])
    monkeypatch.setattr(
        sys, "orig_argv", [*orig_argv[: len(orig_argv) - len(argv) + 1], *sys.argv[1:]]
    )
    torchrun_nproc.allow_nproc()
    assert sys.argv[1] == ("--nproc-per-node" if expected else "--nproc")


def test_the_hook_never_raises(monkeypatch):
    monkeypatch.setattr(sys, "argv", [None])
    torchrun_nproc.allow_nproc()
    monkeypatch.delattr(sys, "orig_argv")
    torchrun_nproc.allow_nproc()


def test_the_hook_imports_nothing_but_sys():
    code = "import sys; b = {*sys.modules}; from vision_tutorial import torchrun_nproc; "
    code += "torchrun_nproc.allow_nproc(); print(*({*sys.modules} - b))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"vision_tutorial", "vision_tutorial.torchrun_nproc"}


@pytest.mark.parametrize(
    ("given", "standalone", "threads"),
    [
        ("--nproc-per-node 2 x", True, 4),
        ("--nproc_per_node=3 x --nnodes 2", True, 2),
        ("--standalone --nproc-per-node=16 x", False, 1),
        ("--rdzv-backend c10d x --nproc-per-node 2", False, 8),
        ("--master-port 29501 --nproc-per-node gpu x", False, None),
        ("--nproc-per-node 0 x", True, None),
        ("--nproc-per-node", True, None),
    ],
)
def test_what_one_machine_needs(given, standalone, threads):
    words = given.split()
    assert torchrun_nproc.one_machine(words) == ["--standalone"] * standalone + words
    assert torchrun_nproc.threads_each(words, 8) == threads


@pytest.fixture
def run(tmp_path):
    (tmp_path / "shows_rank.py").write_text(WORKER)

    def run(*command, **environment):
        kept = {k: v for k, v in os.environ.items() if k != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**kept, "PATH": path, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


def ranks(done) -> list[str]:
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


TORCHRUN = Path(sys.executable).with_name("torchrun")
hooked = any(e.name == "vision_tutorial" for e in entry_points(group="torch.backends"))


@pytest.mark.skipif(not (hooked and TORCHRUN.exists()), reason="the package is not installed")
def test_torchrun_takes_the_line_letter_for_letter(run):
    line = (TORCHRUN, "--nproc", "2", "-m", "shows_rank", "a", "b c")
    assert ranks(run(*line)) == ["rank 0 ['a', 'b c']", "rank 1 ['a', 'b c']"]


@needs_sh
def test_torchrun_sh_needs_no_hook_and_no_folder(run):
    line = (ROOT / "torchrun.sh", "--nproc", "2", "-m", "shows_rank", "a", "b c")
    done = run(*line, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert ranks(done) == ["rank 0 ['a', 'b c']", "rank 1 ['a', 'b c']"]


@needs_sh
def test_torchrun_sh_helps(run, tmp_path):
    script = ROOT / "torchrun.sh"
    shown = run(script, "--help")
    assert shown.returncode == 0 and "--nproc N -m vision_tutorial.train" in shown.stdout
    assert run(script).returncode == 2
    for name in ("python", "python3"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    script = shutil.copy(script, tmp_path)  # away from a checkout's own .venv
    bare = run(script, "--nproc", "2", "x", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert bare.returncode == 2 and bare.stderr.startswith("torchrun.sh: no Python with torch")
