"""Makes `torchrun --nproc N` work: torch 2 spells the option in two ways and so finds it unclear.

`allow_nproc` is an entry point of torch's `torch.backends` group, so it runs at the end of every
`import torch`. It therefore imports nothing but `sys`, never raises, and acts only in a torchrun
process. `TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns it off. `./torchrun.sh` needs no hook: it runs this
file, whose `main` makes the same change and becomes torchrun.
"""

import sys

# The options of torchrun that take no value; a test holds the list equal to torchrun's own parser.
FLAGS = "--help --module --no-python --run-path --standalone --virtual-local-rank".split()


def allow_nproc() -> None:
    """In a torchrun process, rewrite `--nproc` in `sys.argv`; anywhere else, do nothing."""
    try:
        if is_torchrun(sys.argv, sys.orig_argv):
            sys.argv[1:] = spell_out(sys.argv[1:])
    except Exception:  # an `import torch` must not fail because of us
        pass


def is_torchrun(argv: list[str], orig_argv: list[str]) -> bool:
    """Whether this process is torchrun, under whichever name it was started."""
    program = argv[0].replace("\\", "/")
    if program == "-m":  # runpy is still looking for the module; only orig_argv names it
        return orig_argv[len(orig_argv) - len(argv)].removeprefix("-m") == "torch.distributed.run"
    name = program.rpartition("/")[2].partition(".")[0].removesuffix("-script")
    return name == "torchrun" or program.endswith("torch/distributed/run.py")


def spell_out(arguments: list[str]) -> list[str]:
    """`arguments` of torchrun with `--nproc` as `--nproc-per-node`; the script's own stay as is."""
    end = script_at(arguments)
    ours = (option.partition("=") for option in arguments[:end])
    spelled = [("--nproc-per-node" if o == "--nproc" else o) + is_ + v for o, is_, v in ours]
    return spelled + arguments[end:]


def script_at(arguments: list[str]) -> int:
    """The index of the script or module, which ends torchrun's options; the length without one."""
    i = 0
    while i < len(arguments) and arguments[i].startswith("-") and arguments[i].strip("-"):
        i += 2 if takes_next(arguments[i]) else 1
    return min(i, len(arguments))


def takes_next(option: str) -> bool:
    """Whether the value of torchrun's `option` is the argument after it."""
    if option.startswith("--"):  # argparse takes the beginning of a name for the name
        option = option.replace("_", "-")
        return "=" not in option and not any(flag.startswith(option) for flag in FLAGS)
    return option.lstrip("-").lstrip("mh") in ("r", "t")  # -r 3, but -r3, -m and -h stand alone


def one_machine(arguments: list[str]) -> list[str]:
    """`arguments` with `--standalone`, unless they say themselves where the processes meet."""
    meeting = ("--standalone", "--nnodes", "--rdzv", "--master", "--node")
    placed = any(option.startswith(meeting) for option in arguments[: script_at(arguments)])
    return arguments if placed else ["--standalone", *arguments]


def threads_each(arguments: list[str], cores: int) -> int | None:
    """CPU threads for each process; None where only torch can count the processes."""
    processes, options = "1", arguments[: script_at(arguments)]
    for option, following in zip(options, [*arguments[1:], ""], strict=False):
        if option.startswith("--nproc"):
            processes = option.partition("=")[2] or following
    return max(1, cores // int(processes)) if processes.isdecimal() and int(processes) else None


def main() -> None:
    """What torchrun.sh runs: become torchrun, with what a single machine needs added."""
    import os

    arguments = one_machine(spell_out(sys.argv[1:]))
    bound = hasattr(os, "sched_getaffinity")  # the cores we may use, where the system tells
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    if threads := threads_each(arguments, cores):
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *arguments])


if __name__ == "__main__":
    main()
