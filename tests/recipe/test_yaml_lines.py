"""YAML text -> values and places; and what is refused, with file and line."""

import pytest

from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.yaml_lines import (
    MAX_BYTES,
    MAX_DEPTH,
    parse,
    parse_value,
    read_document,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),  # PyYAML: text
        ("1E+2", 100.0),
        ("-1.5e3", -1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0", 0),
        ("+7", 7),
        ("0777", 777),  # PyYAML: octal
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),  # PyYAML: 1000
        ("1:30", "1:30"),  # PyYAML: 90
        ("2024-01-31", "2024-01-31"),  # PyYAML: a date
        ("on", "on"),  # PyYAML: true
        ("no", "no"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("tRue", "tRue"),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
        ("12345678901234567890", 12345678901234567890.0),
        ("[1, a, {b: ~}]", [1, "a", {"b": None}]),
        ("{a: {b: [c]}}", {"a": {"b": ["c"]}}),
        ("=", "="),
        ("<<", "<<"),
        ("한글", "한글"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    found = parse_value(text, "x")
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_item_knows_its_line():
    document = parse("a: 1\n\nb:\n  - x\n  - {c: 2,\n     d: 3}\n", "r.yaml")
    assert document.values == {"a": 1, "b": ["x", {"c": 2, "d": 3}]}
    assert document.places == {
        (): "r.yaml:1",
        ("a",): "r.yaml:1",
        ("b",): "r.yaml:3",
        ("b", 0): "r.yaml:4",
        ("b", 1): "r.yaml:5",
        ("b", 1, "c"): "r.yaml:5",
        ("b", 1, "d"): "r.yaml:6",
    }


def test_keys_are_words_whatever_they_look_like():
    assert parse("1: a\n~: b\ntrue: c\n1e-3: d", "r").values == {
        "1": "a",
        "~": "b",
        "true": "c",
        "1e-3": "d",
    }


@pytest.mark.parametrize("text", ["", "   \n", "# only a comment\n", "---\n", "null\n"])
def test_nothing_is_an_empty_recipe(text):
    assert parse(text, "r").values == {}


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: &x 2", 2, "anchors, aliases and tags are not part of recipes"),
        ("a: &x [1]\nb: *x", 1, "anchors, aliases"),
        ("\na: *x", 2, "anchors, aliases"),
        ("a: 1\n\nb: !!python/object/apply:os.system [id]", 3, "anchors, aliases and tags"),
        ("a: !!float 1", 1, "tags"),
        ("!x {a: 1}", 1, "tags"),
        ("a: 1\nb: 2\na: 3", 3, '"a" is given twice (first on line 1)'),
        ("x: {a: 1, a: 1}", 1, '"a" is given twice'),
        ("x:\n  a: 1\n  'a': 1", 3, '"a" is given twice (first on line 2)'),
        ("1: a\n'1': b", 2, '"1" is given twice'),
        ("? [a]\n: 1", 1, "a key must be a word"),
        ("{? {a: 1} : 2}", 1, "a key must be a word"),
        ("a: [1\nb: 2", 2, "not valid YAML"),
        ("a: 1\n\tb: 2", 2, "not valid YAML: found"),
        ("a: b: c", 1, "mapping values are not allowed in"),
        ("a: 1\n---\nb: 2", 2, "not valid YAML: but found another document"),
        ("%YAML 3.0\n---\na: 1", 1, "not valid YAML"),
        ("a: 1\nb: \x07", 2, "a letter that YAML has not (U+0007)"),
        ('a: 1\nb: "\\0"', 2, "holds a control character (U+0000)"),
        ('a: "\\ud800"', 1, "invalid Unicode character"),
        ('"a\\e": 1', 1, "control character (U+001B)"),
        ("a: 1\nb: 1e999", 2, '"1e999" is too large a number'),
        ("a: -1e999", 1, "too large"),
        ("a: " + "[" * 40 + "]" * 40, 1, f"nested deeper than {MAX_DEPTH} levels"),
        ("a: " + "[" * 60_000, 1, f"nested deeper than {MAX_DEPTH} levels"),
        ("\n".join("  " * n + "a:" for n in range(100)), MAX_DEPTH + 1, "nested deeper than"),
        ("- " * 5000, 1, "nested deeper"),
        ("? " * 5000, 1, "nested deeper"),
        ("{a: " * 8000, 1, "nested deeper"),
    ],
)
def test_what_is_refused_says_file_and_line(text, line, said):
    with pytest.raises(UserError) as caught:
        parse(text, "r.yaml")
    message = str(caught.value)
    assert message.startswith(f"r.yaml:{line}: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "kind"), [("just words", "str"), ("[a, b]", "list"), ("3", "int"), ("- a", "list")]
)
def test_a_recipe_is_a_mapping(text, kind):
    with pytest.raises(UserError, match=rf"r.yaml: holds a {kind}; a recipe is `key: value`"):
        parse(text, "r.yaml")


def test_depth_up_to_the_limit_is_read():
    text = "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse(text, "r").values["a"] is not None


def test_files(tmp_path):
    good = tmp_path / "good.yaml"
    good.write_bytes("\ufeffname: 가\r\nseed: 1\r\n".encode())  # as Windows' Notepad saves it
    document = read_document(good)
    assert document.values == {"name": "가", "seed": 1}
    assert document.places[("seed",)] == f"{good}:2"

    big = tmp_path / "big.yaml"
    big.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match=r"big.yaml: 65,537 bytes; a recipe has at most 65,536"):
        read_document(big)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match="latin.yaml: not UTF-8 text"):
        read_document(latin)
    with pytest.raises(UserError, match="none.yaml: cannot be read .No such file.*Check the path"):
        read_document(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_document(tmp_path)


def test_the_command_line_has_the_same_limit():
    with pytest.raises(UserError, match="at most 65,536 are read"):
        parse_value("1" * (MAX_BYTES + 1), "command line")
