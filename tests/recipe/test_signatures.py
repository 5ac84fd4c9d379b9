"""Entries read from source text, without running it."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.signatures import (
    REGISTRIES,
    REQUIRED,
    read,
    static_signatures,
    timm_options,
)


@pytest.fixture
def plugin(tmp_path):
    """Writes a plug-in around the given text; gives its path."""

    def plugin(text: str):
        path = tmp_path / "mine.py"
        path.write_text("from vision_tutorial.core.registry import losses, models\n" + text)
        return path

    return plugin


def test_an_entry_is_read_with_its_types_and_defaults(plugin):
    path = plugin('''
def helper(): ...

@other.decorator
@losses.register
def mine(
    logits, target, scale=3, *, a: int, b: float | None = None, c: Literal["x", "y"] = "x",
    d: "list[int]" = [1, -2], e: dict[str, bool] = {"k": True}, f: tuple[float, float] = (0.5, 1.0),
):
    """First line.

    More.
    """

@models.register_fallback()
def any_model(name, n, *, a: int = 1, **options): ...
''')
    entry, fallback = read(path)
    assert (entry.registry, entry.name, entry.doc) == ("losses", "mine", "First line.")
    assert (entry.where, entry.prefix, entry.forwards) == (f"{path}:7", None, False)
    assert entry.options == {
        "a": (int, REQUIRED),
        "b": (float | None, None),
        "c": (Literal["x", "y"], "x"),
        "d": (list[int], [1, -2]),
        "e": (dict[str, bool], {"k": True}),
        "f": (tuple[float, float], (0.5, 1.0)),
    }
    assert entry.signature().startswith("(a, b=None, c=x, d=[1, -2]")
    assert (fallback.prefix, fallback.forwards, fallback.doc) == ("", True, "")
    assert fallback.signature() == "(a=1, …)"


NO_OPTIONS = [
    "a",  # no type
    "a: Tensor = None",
    "a: int = f()",
    "a: float = 1e999",  # a recipe cannot hold it
    # reading runs nothing
    "a: print('executed') or int = 1",
    'a: """print("executed") or int""" = 1',
    "a: int.__class__.__mro__[-1].__subclasses__ = 1",
    "a: 2 ** 99999999 = 1",
]


@pytest.mark.parametrize("parameter", NO_OPTIONS)
def test_options_need_plain_types_and_literal_defaults(plugin, capsys, parameter):
    path = plugin(f"@losses.register\ndef mine(logits, target, *, {parameter}): ...")
    with pytest.raises(UserError, match=r"mine.py:3: option 'a' needs a plain type .int, float"):
        read(path)
    assert capsys.readouterr().out == ""


def test_what_is_no_python(plugin):
    for text in ("def f(:", "x = '\0'", "x" + "(" * 500 + ")" * 500):
        with pytest.raises(UserError, match=r"mine.py: cannot be read as Python .*Correct it."):
            read(plugin(text))
    text = "@models.register_fallback(1)\ndef mine(name, n): ..."
    with pytest.raises(UserError, match=r"mine.py:3: register_fallback takes one text, the pre"):
        read(plugin(text))


def test_a_name_that_is_taken_and_a_fallback_that_is_new(plugin):
    for text, name in (
        ("@losses.register\ndef focal(x, *, a: int = 1): ...", "focal"),
        ("@models.register_fallback()\ndef mine(name, n): ...", "mine"),
    ):
        said = rf"mine.py:\d+: \w+ '{name}' exists already .*choose ano"
        with pytest.raises(UserError, match=said):
            static_signatures([plugin(text)])
    path = plugin("@losses.register_fallback()\ndef any_loss(name, x, y, *, a: int = 1): ...")
    losses = static_signatures([path])["losses"]
    assert losses.find("whatever").name == "any_loss"
    assert losses.outside is None  # nobody can say which names it knows


def test_every_registry_is_there_and_every_entry_says_what_it_is():
    registries = static_signatures()
    assert list(registries) == REGISTRIES and len(REGISTRIES) == 9
    for registry in registries.values():
        for entry in registry.entries.values():
            assert entry.doc.endswith((".", ")")) and len(entry.doc) <= 100, entry.name
    path, _, line = registries["losses"].entries["focal"].where.rpartition(":")
    assert Path(path).read_text("utf-8").splitlines()[int(line) - 1] == "def focal("
    models, optimizers = registries["models"], registries["optimizers"]
    assert models.find("resnet50.a1_in1k").prefix == ""
    assert models.find("resnet5") is None
    assert models.find("hf-hub:timm/resnet50") is None
    assert optimizers.find("lookahead_adamw").prefix == ""
    assert optimizers.find("lookahead_nobody") is None
    assert "sgd" in optimizers.names()


def test_a_typo_is_answered_in_one_line_before_anything_heavy_is_imported(repository):
    program = (
        "import sys; from vision_tutorial import train; code = train.main(sys.argv[1:]); "
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'accelerate', 'wandb', 'PIL', 'rich'}; "
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(repository / "recipes" / "r4.yaml"), "loss=focl"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.stdout.strip() == "2 []"
    assert found.stderr.startswith("error: command line (loss=focl): loss.focl: no loss called")
    assert found.stderr.count("\n") == 1


def test_options_of_timms_optimizers_are_those_of_their_classes():
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

    for name in list_optimizers():
        found = timm_options(name)
        if isinstance(get_optimizer_info(name).opt_class, str):  # of a package that is not here
            assert not found
            continue
        real = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
        assert list(found) == [option for option in real if option != "params"], name
    assert timm_options("nesterov") == timm_options("sgd")
    assert timm_options("adamp")["nesterov"] is bool  # by its default
    assert timm_options("adafactor")["betas"] == list[float] | None
    assert timm_options("kron")["mu_dtype"] is Any
