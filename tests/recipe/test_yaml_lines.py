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

SCALARS = {
    "1e-3": 1e-3,  # PyYAML: text
    "0777": 777,  # PyYAML: octal
    "1_000": "1_000",  # PyYAML: 1000
    "1:30": "1:30",  # PyYAML: 90
    "on": "on",  # PyYAML: true
    "TRUE": True,
    "": None,
    ".inf": ".inf",
    "'1'": "1",
    "12345678901234567890": 12345678901234567890.0,
    "[5., a, {b: ~}]": [5.0, "a", {"b": None}],
}


def test_scalars_follow_yaml_1_2():
    for text, value in SCALARS.items():
        found = parse_value(text, "x")
        assert found == value and type(found) is type(value), text


def test_every_key_and_item_knows_its_line():
    document = parse("a: 1\n\nb:\n  - x\n  - {c: 2,\n     1: 3}\n", "r.yaml")
    assert document.values == {"a": 1, "b": ["x", {"c": 2, "1": 3}]}  # a key is a word
    assert document.places == {
        (): "r.yaml:1",
        ("a",): "r.yaml:1",
        ("b",): "r.yaml:3",
        ("b", 0): "r.yaml:4",
        ("b", 1): "r.yaml:5",
        ("b", 1, "c"): "r.yaml:5",
        ("b", 1, "1"): "r.yaml:6",
    }


REFUSED = [  # text, line, what is said
    ("a: 1\nb: &x 2", 2, "anchors, aliases and tags are not part of recipes"),
    ("\na: *x", 2, "anchors, aliases"),
    ("a: 1\n\nb: !!python/object/apply:os.system [id]", 3, "anchors, aliases and tags"),
    ("1: a\n'1': b", 2, '"1" is given twice (first on line 1)'),
    ("? [a]\n: 1", 1, "a key must be a word"),
    ("a: [1\nb: 2", 2, "not valid YAML"),
    ("a: [1\n", 1, "not valid YAML"),
    ("a: 1\n---\nb: 2", 2, "another document begins"),
    ('a: 1\nb: "\\0"', 2, "holds a control character (U+0000)"),
    ('"a\\e": 1', 1, "control character (U+001B)"),
    ("a: 1\nb: 1e999", 2, '"1e999" is too large a number'),
    ("a: " + "[" * 60_000, 1, f"nested deeper than {MAX_DEPTH} levels"),
    ("\n".join("  " * n + "a:" for n in range(100)), MAX_DEPTH + 1, "nested deeper than"),
]


def test_what_is_refused_says_file_and_line():
    for text, line, said in REFUSED:
        with pytest.raises(UserError) as caught:
            parse(text, "r.yaml")
        message = str(caught.value)
        assert message.startswith(f"r.yaml:{line}: ") and said in message, message
        assert "\n" not in message


def test_depth_up_to_the_limit_is_read():
    text = "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse(text, "r").values["a"] is not None


def test_files(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes("\ufeffname: 가\r\nseed: 1\r\n".encode())  # as Windows' Notepad saves it
    document = read_document(path)
    assert document.values == {"name": "가", "seed": 1}
    assert document.places[("seed",)] == f"{path}:2"
    path.write_bytes(b"# only a comment\n")
    assert read_document(path).values == {}
    for content, said in (
        (b"[a, b]", "r.yaml: holds a list; a recipe is `key: value`"),
        (b"#" * (MAX_BYTES + 1), "r.yaml: 65,537 bytes; a recipe has at most 65,536"),
        (b"name: caf\xe9\n", "r.yaml: cannot be read as UTF-8 text .*0xe9"),
        (b"a: \x07", "r.yaml: not valid YAML"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            read_document(path)
    with pytest.raises(UserError, match="none.yaml: cannot be read .No such file .*Name another"):
        read_document(tmp_path / "none.yaml")


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_document(path).values == {"a": 1, "b": 2}
