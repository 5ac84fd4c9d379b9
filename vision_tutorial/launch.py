"""Makes `torchrun --nproc N` work: torch 2 spells the option in two ways and so finds it unclear.

`allow_nproc` is an entry point of torch's `torch.backends` group, so it runs at the end of every
`import torch`. It therefore imports nothing but `sys`, never raises, and acts only in a torchrun
process. `TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns it off.
"""

import sys

# The options of torchrun that take no value; a test holds the list equal to torchrun's own parser.
FLAGS = (
    "--help",
    "--module",
    "--no-python",
    "--no_python",
    "--run-path",
    "--run_path",
    "--standalone",
    "--virtual-local-rank",
    "--virtual_local_rank",
)


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
    result = list(arguments)
    i = 0
    while i < len(result) and result[i].startswith("-") and result[i] != "--":
        name, equals, value = result[i].partition("=")
        if name == "--nproc":
            result[i] = f"--nproc-per-node{equals}{value}"
        i += 2 if takes_next(result[i]) else 1
    return result


def takes_next(option: str) -> bool:
    """Whether the value of torchrun's `option` is the argument after it."""
    if option.startswith("--"):  # argparse takes the beginning of a name for the name
        return "=" not in option and not any(flag.startswith(option) for flag in FLAGS)
    return option.lstrip("-").lstrip("mh") in ("r", "t")  # -r 3, but -r3, -m and -h stand alone
