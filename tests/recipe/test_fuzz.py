"""10,000 damaged recipes and overrides: each is a recipe or one line; no traceback, no hang."""

import json
import random
import re
import time
from functools import cache, partial
from itertools import islice
from pathlib import Path

import pytest

from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe import loading
from vision_tutorial.recipe.fields import changes, to_plain, to_yaml
from vision_tutorial.recipe.loading import load, typed
from vision_tutorial.recipe.yaml_lines import Document, parse, read_document

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))
LONGEST = 500  # letters of a complaint
SLOWEST = 2.0  # seconds of CPU for one mutant; the mean is under a millisecond

SCALARS = """
0 -1 1e-3 1e999 -1e308 99999999999999999999 0777 1:30 .nan .inf on no true null ~ '' '1' x 가나다
resnet50 sgd focal cosine hflip r0.yaml ../r0.yaml / "\\ud800" "\\0" "\\e[31m" *a | > [] {} [[]]
!!python/name:os.system
""".split()
SCALARS += ["\u202e", "🙂" * 9, "\x00", "\x85", "x" * 300, "&a x", "|\n a", "{a: {b: c}}"]
SCALARS += ["[1, 2, 3]", "{weight: 1}", "{lr: 0.1}", "[" * 99, "{" * 99]
TOKENS = [*" :,-#?!&*|>'\"%@`[]{}\n\t\r\\", ": ", "- ", "\n  ", "---\n", "...\n", "<<: ", "? "]
VALUES = json.loads(r"""[
    null, true, false, 0, 1, -1, 9007199254740993, 1000000000000000000, 1e-3, 1e300, -0.0, "", "x",
    "1e-3", "on", "null", "resnet18", "sgd", "focal", "hflip", "a\nb", "한글", "\u2028", "#", ": ",
    [], {}, [null], [[]], ["hflip"], [1, "a"], {"": null}, {"sgd": 1}, {"lr": 0.1}, {"epochs": 1},
    {"focal": 0.5, "bce": {"weight": 1}}, {"mean": [0, 0, 0], "std": [1, 1, 1]}, {"sgd": {"lr": 1}}
]""")
VALUES.append("x" * 300)


@pytest.fixture(scope="module", autouse=True)
def shipped():
    """Each shipped file is read once; only the mutants are read again and again."""
    cached = cache(read_document)
    with pytest.MonkeyPatch.context() as patch:
        inside = RECIPES.resolve()
        patch.setattr(
            loading,
            "read_document",
            lambda path: (cached if path.resolve().parent == inside else read_document)(path),
        )
        yield


@pytest.fixture(scope="module")
def originals():
    return {name: load(RECIPES / name).recipe for name in NAMES}


def judge(mutants, count: int, place: str) -> None:
    """Each of (call, original) gives a recipe that reads back the same, or a UserError of one line.

    Only what differs from the original is written as YAML and read again.
    """
    seen, loaded, refused = set(), 0, 0
    for call, original in islice(mutants, count):
        start = time.process_time()
        try:
            recipe = call().recipe
        except UserError as error:
            message = str(error).replace(place, "")
            assert message.isprintable() and len(message) <= LONGEST, repr(message)
            refused += 1
        else:
            loaded += 1
            written = to_yaml({key: new for key, (_, new) in changes(recipe, original).items()})
            if written not in seen:
                seen.add(written)
                own = {"name": recipe.name, "expects": dict(recipe.expects)}
                values = to_plain(original) | parse(written, "again").values | own
                again = typed(Document(values), Path("again"))[0]
                assert again == recipe, (changes(again, recipe), written)
        assert time.process_time() - start < SLOWEST
    assert loaded > count / 20 and refused > count / 4


def damage_text(text: str, draw: random.Random) -> str | bytes:
    lines = text.split("\n")
    at, line = draw.randrange(len(text)), draw.randrange(len(lines))
    match draw.randrange(8):
        case 0:
            return text[:at] + draw.choice(TOKENS) + text[at:]
        case 1:
            letters = draw.choice(["", chr(draw.randrange(128)), chr(draw.randrange(0xD800))])
            return text[:at] + letters + text[at + draw.randrange(1, 9) :]
        case 2:
            return "\n".join(lines[:line] + lines[line + 1 :])
        case 3:  # given twice, or somewhere else
            where = draw.randrange(len(lines) + 1)
            return "\n".join([*lines[:where], lines[line], *lines[where:]])
        case 4:
            word = draw.choice(list(re.finditer(r"[\w.+-]+", text)) or [re.match("", text)])
            return text[: word.start()] + draw.choice(SCALARS) + text[word.end() :]
        case 5:
            raw = bytearray(text.encode())
            raw[draw.randrange(len(raw))] = draw.randrange(256)
            return bytes(raw)
        case 6:
            base = draw.choice([*NAMES, "mutant.yaml", "circle.yaml", "none.yaml", ".", "[a]", ""])
            return re.sub(r"(?m)^extends:.*\n", "", text) + f"extends: {base}\n"
        case _:
            return text.replace("\n", "\n" + " " * draw.randrange(3), draw.randrange(4))


def damaged_files(folder: Path, originals):
    draw, mutant = random.Random(1), folder / "mutant.yaml"
    for name in NAMES:  # so that bases are found beside the mutant
        (folder / name).symlink_to(RECIPES / name)
    (folder / "circle.yaml").write_text("extends: mutant.yaml\n")
    # without comments, which a mutation would mostly waste itself on
    texts = {n: re.sub(r"(?m)(^|\s+)#.*$", "", (RECIPES / n).read_text("utf-8")) for n in NAMES}
    # a long recipe is dear to parse, and its mutants are no more telling
    likely = [len(text) ** -0.7 for text in texts.values()]
    while True:
        (name,) = draw.choices(NAMES, likely)
        text = texts[name].strip() + "\n"
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            if isinstance(text, str) and text:
                text = damage_text(text, draw)
        mutant.write_bytes(text if isinstance(text, bytes) else text.encode(errors="ignore"))
        yield partial(load, mutant), originals[name]


def test_damaged_files(tmp_path, originals):
    judge(damaged_files(tmp_path, originals), 3000, f"{tmp_path}/")


def damage_tree(value, draw: random.Random):
    """A copy of plain values in which something is another, missing, doubled, or nested."""
    deeper = isinstance(value, dict | list) and value and draw.random() < 0.75
    if deeper and isinstance(value, list):
        i = draw.randrange(len(value))
        middle = draw.choice([[], [value[i]] * 2, *[[damage_tree(value[i], draw)]] * 2])
        return value[:i] + middle + value[i + 1 :]
    if deeper:
        key = draw.choice(list(value))
        others = {k: v for k, v in value.items() if k != key}
        typo = others | {damaged_word(key, draw): value[key]}
        more = value | {draw.choice(["x", "weight", "가", ""]): draw.choice(VALUES)}
        inner = value | {key: damage_tree(value[key], draw)}
        return draw.choice([others, typo, more, *[inner] * 3])
    nested = value
    for _ in range(draw.choice([1, 3, 14])):
        nested = draw.choice([[nested], {"a": nested}])
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    near = [-value, value * 10**9, value / 3, float(value)] if is_number else [str(value)[:40]]
    inside = {draw.choice(["x", "sgd", "weight", "p"]): value}
    return draw.choice([draw.choice(near), inside, nested, *draw.choices(VALUES, k=3)])


def damaged_word(word: str, draw: random.Random) -> str:
    at = draw.randrange(len(word) + 1)
    return draw.choice([word[:at] + word[at + 1 :], word[:at] + "x" + word[at:], word.upper()])


def damaged_override(plain: dict, draw: random.Random) -> str:
    """A path into the recipe (mostly one that is there) with some value."""
    keys, value = [], plain
    while isinstance(value, dict | list) and value and draw.random() < 0.8:
        key = draw.randrange(len(value)) if isinstance(value, list) else draw.choice(list(value))
        by_name = isinstance(value, list) and isinstance(value[key], dict) and draw.random() < 0.5
        value = value[key]
        keys += [] if by_name else [str(key)]
    if draw.random() < 0.3:
        words = ["weight", "lr", "x", "0", "9" * 99, "", "mixup", "a.b", "²", "가", "adam"]
        keys.insert(draw.randrange(len(keys) + 1), draw.choice(words))
    if keys and draw.random() < 0.15:
        keys[-1] = damaged_word(keys[-1], draw)
    new = draw.choice(SCALARS)
    if draw.random() < 0.6:
        new = json.dumps(damage_tree(value, draw) if draw.random() < 0.7 else value)
    text = f"{'.'.join(keys)}={new}"
    return draw.choice([text] * 76 + [text[1:], text.replace("=", ""), "=", "."])


def damaged_overrides(originals):
    draw = random.Random(3)
    plains = {name: to_plain(recipe) for name, recipe in originals.items()}
    while True:
        name = draw.choice(NAMES)
        texts = [damaged_override(plains[name], draw) for _ in range(draw.choice([1, 1, 1, 2]))]
        yield partial(load, RECIPES / name, texts), originals[name]


def test_damaged_overrides(originals):
    judge(damaged_overrides(originals), 7000, f"{RECIPES}/")
