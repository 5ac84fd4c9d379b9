"""`vision-tutorial COMMAND …`; with no command: the commands and some examples."""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from . import __version__
from .core.errors import UserError, run_main, run_process, unknown
from .core.names import restart_in_utf8

COMMANDS = {
    "train": "train what a recipe says",
    "evaluate": "a checkpoint's numbers on a split",
    "predict": "labels, masks, a submission, pseudo labels",
    "export": "a run's network as ONNX, TorchScript, safetensors, timm's",
    "explain": "what a recipe means, before anything runs",
    "find-lr": "a good learning rate, by a short training in which it rises",
    "bench": "how fast a recipe runs here, and beside what",
    "compare": "many runs as one table, honest about noise",
    "leaderboard": "the best of each person of a class, for each task",
    "sweep": "many points of a recipe, each once: grid, list, greedy stages",
    "reproduce": "the Week-3 table, r0 … r5: in full, or scaled down to a budget",
    "rerun": "a run once more, and whether it came out the same",
    "report": "runs as one HTML page",
    "gallery": "a run's images, right and wrong, for its report",
    "import": "the recipe that a run of timm's train.py meant",
    "recipes": "the package's recipes; copy one to begin your own",
    "components": "losses, optimizers, models, …: what a recipe can name",
    "note": "a remark about a run, kept in its folder",
    "pack": "a data set as mapped files",
    "doctor": "is this machine ready?",
}

# Where each is, if not in a file of its own name.
MODULES = {name: f".commands.of_recipes.{name}" for name in ("explain", "recipes", "components")}
MODULES |= {"train": ".train", "import": ".commands.of_recipes.import_recipe"}
MODULES |= {"find-lr": ".commands.of_recipes.find_lr"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial` and `python -m vision_tutorial`."""
    if argv is None:
        restart_in_utf8()
    return run_main(lambda: dispatch(argv))


def script() -> None:
    """What `vision-tutorial` runs."""
    run_process(main)


def dispatch(argv: Sequence[str] | None) -> int:
    """Hand the words to their command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if words[0] == "--print-completion":
        from .recipe.command_line import completion

        print(completion((words + [""])[1], {name: module(name).parser() for name in COMMANDS}))
        return 0
    if words[0] not in COMMANDS:
        raise UserError(unknown("command", words[0], COMMANDS))
    return module(words[0]).main(words[1:])


def module(command: str) -> ModuleType:
    """Where a command is."""
    return importlib.import_module(MODULES.get(command, f".commands.{command}"), __package__)


EXAMPLES = {
    "train recipes/quickstart.yaml": "a first run, a minute",
    "compare runs": "all runs as one table",
    "explain r4 epochs=10": "a value changed",
}


def overview() -> str:
    """The commands and some examples, on one screen."""
    examples = {f"vision-tutorial {words}": text for words, text in EXAMPLES.items()}
    lines = [
        f"vision-tutorial {__version__}",
        "usage: vision-tutorial COMMAND …   (COMMAND --help)",
    ]
    for texts in (COMMANDS, examples):
        width = max(map(len, texts))
        lines += ["", *(f"  {name:<{width}}  {text}" for name, text in texts.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    script()
