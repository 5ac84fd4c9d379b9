"""The words of a command: overrides in both spellings; what is said of words it does not know."""

import importlib
import sys
from types import SimpleNamespace

import pytest

from vision_tutorial import __main__ as program
from vision_tutorial.commands import evaluate, predict
from vision_tutorial.commands.of_recipes import explain
from vision_tutorial.core import cli_types
from vision_tutorial.core.errors import UserError, counted
from vision_tutorial.recipe.loading import load
from vision_tutorial.recipe.synonyms import _SYNONYMS, advised

TYPED = {  # by people who know another program
    "lr=0.1": "write optimizer.sgd.lr=0.1",
    "learning_rate=1e-3": "write optimizer.sgd.lr=0.001",
    "lr0=0.1": "write optimizer.sgd.lr=0.1",
    "wd=0.05": "write optimizer.sgd.weight_decay=0.05",
    "batch=64": "write batch_size=64",
    "epoch=3": "write epochs=3",
    "opt=adamw": "write optimizer=adamw",
    "smoothing=0.1": "write loss.cross_entropy.label_smoothing=0.1",
    "min_lr=0": "write schedule.cosine.min_lr=0",
    "pretrained=true": "write model.resnet50.pretrained=true",
    "warmup_epochs=5": "write warmup.epochs=5",
    "patience=3": "write early_stopping.patience=3",
    "mixup=0.2": "write mix.mixup.alpha=0.2",
    "amp=true": "write precision=fp16",
    "imgsz=64": "the size is that of augment",
    "device=0": "CUDA_VISIBLE_DEVICES",
    "sede=1": "did you mean 'seed'?",
}


@pytest.mark.parametrize(("word", "said"), TYPED.items())
def test_a_value_by_the_name_that_another_program_gives_it(word: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load("r1", [word])
    text = str(caught.value)
    assert said in text and f"no key called '{word.partition('=')[0]}'" in text
    if "write " in text:  # what it says to write is right
        todo = text.partition("write ")[2].removesuffix(".")
        assert load("r1", [todo.replace("=adamw", "={adamw: {lr: 0.1}}")]).recipe


def test_every_synonym_leads_to_a_value(tmp_path) -> None:
    values = {"optimizer": "adamw", "model": "resnet18", "loss": "cross_entropy"}
    values |= {"schedule": "cosine", "dataset": "cifar100"}
    for name in _SYNONYMS:
        assert advised(name, "1", values).startswith("write "), name
    assert advised("lr", "1", {}) == "write optimizer.NAME.lr=1"
    assert advised("lr", "1", {"optimizer": 3, "loss": [], "model": {1: 2}})
    (tmp_path / "a.yaml").write_text("extends: r1.yaml\nlearning_rate: 0.1\n")
    with pytest.raises(UserError, match=r"a.yaml:2: .*; write optimizer.sgd.lr=0.1"):
        load(tmp_path / "a.yaml")


def line(capsys: pytest.CaptureFixture, *words: str) -> str:
    """What a command says of wrong words: one line."""
    assert program.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_options_that_are_values_of_the_recipe(capsys) -> None:
    for words, said in {
        "train r1 --epochs 3": "without dashes: write epochs=3.",
        "train r1 --lr=0.1": "write optimizer.sgd.lr=0.1.",
        "train --lr 0.1 r1 optimizer=adamw": "write optimizer.adamw.lr=0.1.",
        "explain r1 --batch-size 64": "write batch_size=64.",
        "evaluate somewhere --device 0": "no option --device; a GPU is taken",
        "train r1 --resum=1 --foo": "no option called '--foo'. Known: --help, --id",
        "compare runs --lr 1": "no option called '--lr'; did you mean",
    }.items():
        assert said in line(capsys, *words.split()), words


@pytest.mark.parametrize("command", program.COMMANDS)
def test_an_unknown_option_is_named_before_a_missing_word(command, capsys) -> None:
    assert f"vision-tutorial {command}: no option called '--qqq'" in line(capsys, command, "--qqq")
    place = program.MODULES.get(command, f".commands.{command}")
    parser = importlib.import_module(place, "vision_tutorial").parser()
    needed = any(action.required and action.nargs != "*" for action in parser._actions)
    if needed:
        assert f"is missing; write vision-tutorial {command} " in line(capsys, command)


def test_overrides_are_positional_and_set_is_another_spelling(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["r1", "epochs=3", "--set", "seed=4", "--world", "2", "batch_size=64", "--set=ema=null"]
    found = explain.parser().parse_intermixed_args(words).overrides
    assert found == ["seed=4", "ema=null", "epochs=3", "batch_size=64"]
    for command in (evaluate, predict):
        words = ["runs/a", "refine=[]", "runs/b", "--set", "seed=4"]
        words += ["--on", "x.png", "--set", "seed=5", "-o", "out"] if command is predict else []
        made = command.parser().parse_intermixed_args(words)
        assert made.runs == ["runs/a", "runs/b"] and made.set == [
            "seed=4",
            *["seed=5"] * (command is predict),
            "refine=[]",
        ]
    (tmp_path / "a=b").mkdir()
    assert evaluate.parser().parse_intermixed_args(["a=b"]).runs == ["a=b"]
    with pytest.raises(UserError, match="RUN is missing"):
        evaluate.parser().parse_intermixed_args(["epochs=1"])


def test_a_terminal_hears_that_torch_loads(monkeypatch) -> None:
    for terminal, rank, loaded in ((1, 0, 0), (0, 0, 0), (1, 1, 0), (1, 0, 1)):
        written: list[str] = []
        stream = {"write": written.append, "flush": lambda: None, "isatty": lambda t=terminal: t}
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", SimpleNamespace(**stream))
            patch.setenv("RANK", str(rank))
            patch.delitem(sys.modules, "torch", raising=False)
            if loaded:
                patch.setitem(sys.modules, "torch", SimpleNamespace())
            with cli_types.loading():
                before = "".join(written)
        if (terminal, rank, loaded) == (1, 0, 0):
            assert before == "\rloading torch …"
            assert "".join(written) == before + "\r" + " " * len(before) + "\r"
        else:
            assert not written


def test_one_is_no_plural() -> None:
    assert counted(1, "epoch") == "1 epoch" and counted(0, "epoch") == "0 epochs"
    assert counted(2, "class") == "2 classes" and counted(1, "process") == "1 process"
    assert counted(50_000, "image") == "50,000 images" and counted(2, "micro-batch")[-2:] == "es"
