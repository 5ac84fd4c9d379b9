"""The words of a command: its options, and `key=value` for values of its recipe."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os.path import exists
from pathlib import Path
from typing import Any, NoReturn

from ..core.errors import UserError, unknown
from .fields import to_plain
from .loading import load, package_recipes, recipe_path
from .synonyms import advised

_OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")
_COMPLETE = "_vision_tutorial_recipe"  # a function of the shell
_OPTION = re.compile(r"--?[A-Za-z][^ ]*$")


class Parser(argparse.ArgumentParser):
    """argparse's, with one line for a mistake; an option that is unknown is named before a word
    that is missing, and with what to write where it is a value of the recipe."""

    takes_overrides = False

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """The words of the command, with its overrides as `overrides`, or `set` where they stand
        among runs. `--set key=value` is an override too; some commands had no other form."""
        words, given = list(sys.argv[1:] if args is None else args), list[str]()
        for at in reversed(range(len(words))) if self.takes_overrides else ():
            if words[at] == "--set":
                given = [*words[at + 1 : at + 2], *given]
                del words[at : at + 2]
            elif words[at].startswith("--set="):
                given.insert(0, words.pop(at).removeprefix("--set="))
        self._refuse_unknown(words)
        made = super().parse_intermixed_args(words, namespace)
        if self.takes_overrides and hasattr(made, "overrides"):
            made.overrides = [*given, *made.overrides]
        elif self.takes_overrides:
            made.set = [*given, *filter(is_override, made.runs)]
            made.runs = [word for word in made.runs if not is_override(word)]
            if not made.runs:
                self.error("the following arguments are required: RUN")
        return made

    def error(self, message: str) -> NoReturn:
        """A UserError in place of argparse's lines and exit."""
        text = message.replace(", key.sub=value", "").replace("the following arguments are ", "")
        if found := re.fullmatch(r"required: (.*)|one of the arguments (.*) is required", text):
            what = found[1] or found[2].replace(" ", " or ")
            text = f"{what} is missing; write {self.prog} {self._written()}"
        raise UserError(f"{self.prog}: {text.removeprefix('argument ')}.")

    def _written(self) -> str:
        """The words that are needed, and those that may be there without a dash."""
        words = []
        for action in self._actions:
            name = str(action.metavar or "|".join(action.choices or [action.dest.upper()]))
            many = " …" * (action.nargs in ("*", "+"))
            if not action.option_strings:
                words += [f"[{name}{many}]" if action.nargs in ("*", "?") else name + many]
            elif action.required:
                words += [f"{action.option_strings[-1]} {name}"]
        for group in self._mutually_exclusive_groups:
            if group.required:
                words += ["|".join(action.option_strings[0] for action in group._group_actions)]
        return " ".join(words)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        known = self._option_string_actions
        for number, word in enumerate(words):
            if word == "--":
                return
            name, equals, value = word.partition("=")
            begins = name if word[:2] == "--" else name[:2]  # -ofile, but --output=file
            if not _OPTION.match(name) or any(option.startswith(begins) for option in known):
                continue
            if not equals and (following := words[number + 1 : number + 2]):
                value = following[0] * (following[0][0:1] != "-" and not is_override(following[0]))
            text = unknown("option", name, [option for option in known if option[:2] == "--"])
            if name[1] != "-":  # a letter is near to everything
                text = re.sub(r"; did you mean '.*?'\?", ".", text)
            if self.takes_overrides and (todo := advised(name.lstrip("-"), value, _recipe(words))):
                dashes = "values of the recipe stand without dashes: "
                text = f"no option {name}; {dashes * todo.startswith('write ')}{todo}."
            raise UserError(f"{self.prog}: {text}")


def add_overrides(parser: Parser, text: str = "set one value of the recipe") -> None:
    """Let the command change its recipe, by words `key.sub=value` after its other ones."""
    parser.takes_overrides = True
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help=text)


def completion(shell: str, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """A script by which `shell` (bash, zsh) completes commands, options, recipes, files.

    parsers: of each command. UserError for another shell.
    """
    import shtab

    names = " ".join(package_recipes())
    preamble = {
        "bash": f'{_COMPLETE}() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
        "zsh": f"{_COMPLETE}() {{ compadd -- {names}; _files; }}",
    }
    if shell not in preamble:
        raise UserError(f"--print-completion: {unknown('shell', shell, preamble)}")
    whole = argparse.ArgumentParser(prog="vision-tutorial")
    commands = whole.add_subparsers()
    kinds = {"recipe": dict.fromkeys(preamble, _COMPLETE), "sweep": shtab.FILE, "file": shtab.FILE}
    kinds |= {"runs": shtab.DIRECTORY, "run": shtab.DIRECTORY, "output": shtab.FILE}
    for name, parser in parsers.items():
        text = parser.description and parser.description.partition(".")[0]
        one = commands.add_parser(name, parents=[parser], add_help=False, help=text)
        for action in one._actions:
            if action.dest in kinds and action.choices is None:
                action.complete = kinds[action.dest]
    return shtab.complete(whole, shell, preamble=preamble)


def is_override(word: str) -> bool:
    """Whether a word is `key.sub=value`, and no file's name."""
    return bool(_OVERRIDE.match(word)) and not exists(word)


def _recipe(words: Sequence[str]) -> dict[str, Any]:
    """The plain values of the first recipe or run among the words; {} if there is none."""
    pairs = (word.split("=", 1) for word in words if is_override(word))
    named = {key: value for key, value in pairs if value.isidentifier()}  # such as optimizer=adamw
    for word in words:
        folder = Path(word)
        with suppress(UserError, OSError, ValueError):
            file = folder / "recipe.yaml" if folder.is_dir() else recipe_path(word)
            return to_plain(load(file).recipe) | named
    return named
