"""YAML 1.2 scalars, and the limits that are checked before anything is built."""

import json
import math
import sys
from pathlib import Path

import pytest
import yaml

from difftool.errors import RecipeError
from difftool.recipe import document
from difftool.recipe.document import MAX_ALIASES, MAX_BYTES, MAX_NODES, read_document
from difftool.recipe.nodes import MAX_DEPTH, plain

SCALARS = {
    "1e-3": 0.001,
    "1E5": 100000.0,
    "1.": 1.0,
    ".5": 0.5,
    "+3": 3,
    "012": 12,
    "0x1F": 31,
    "0o17": 15,
    "0b11": "0b11",
    "1_000": "1_000",
    "no": "no",
    "off": "off",
    "yes": "yes",
    "y": "y",
    "true": True,
    "False": False,
    "~": None,
    "null": None,
    "": None,
    "nil": "nil",
    "2020-01-01": "2020-01-01",
    "12:30:45": "12:30:45",
    "1:2": "1:2",
    ".inf": math.inf,
    "-.INF": -math.inf,
    "'12'": "12",
    '"no"': "no",
    "!!str 12": "12",
    "!!float 12": 12.0,
    "! 12": "12",
    "0.1.2": "0.1.2",
    "a # b": "a",
    "a#b": "a#b",
}


def read(text, name="f.yaml"):
    found = read_document(text, name)
    assert not found.faults
    return plain(found.root)


def refusal(text):
    with pytest.raises(RecipeError) as caught:
        read_document(text, "f.yaml")
    return str(caught.value)


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_plain_scalars_follow_the_yaml_1_2_core_schema(text, value):
    found = read(f"key: {text}")["key"]
    assert (found, type(found)) == (value, type(value))


def test_nan_is_read_as_nan():
    assert math.isnan(read("a: .nan")["a"])


def test_keys_are_texts_whatever_they_look_like():
    assert read("1: a\nno: b\ntrue: c\n~: d\n0x1: e") == {"1": "a", "no": "b", "true": "c", "~": "d", "0x1": "e"}


@pytest.mark.parametrize("value", ["é ✓ 😀", 'quote " and \\ and /', "tab\tand\nline", ""])
def test_what_json_writes_is_read_back(value):
    data = {"text": value, "list": [1, -2.5, 1e300, True, None, {"nested": {}}], value or "empty": []}
    for text in (json.dumps(data), json.dumps(data, ensure_ascii=False), json.dumps(data, indent="\t")):
        assert read(text, "f.json") == data


def test_positions_are_those_of_keys_and_values():
    root = read_document("a:\n  b: [10, {c: x}]\n", "f.yaml").root
    inner = root.mapping["a"].mapping["b"]
    marks = [inner.key, inner.mark, inner.items[1].mapping["c"].mark]
    assert [str(mark) for mark in marks] == ["f.yaml:2:3", "f.yaml:2:6", "f.yaml:2:15"]


def test_an_alias_repeats_a_value_and_keeps_its_own_key():
    root = read_document("a: &x {k: 1}\nb: *x\n", "f.yaml").root
    assert plain(root) == {"a": {"k": 1}, "b": {"k": 1}}
    assert (str(root.mapping["b"].key), str(root.mapping["b"].mark)) == ("f.yaml:2:1", "f.yaml:1:4")


def bomb(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 5)}]" for n in range(1, levels)]
    return "\n".join(lines)


def test_an_alias_bomb_is_refused_by_counting_and_not_by_building(monkeypatch):
    taken = count_events(monkeypatch)
    expected = f"f.yaml:7:10: error: more than {MAX_NODES} values, counting what aliases repeat"
    assert [refusal(bomb(levels)) for levels in (7, 9)] == [expected, expected]
    assert len(taken) < 200


def test_an_alias_below_the_limit_may_repeat_much():
    assert len(str(read(bomb(5)))) > 10_000


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029"])
def test_a_character_that_ends_a_line_in_one_yaml_and_not_in_the_other_is_refused(character):
    code = f"{ord(character):04x}"
    expected = f'f.yaml:2:5: error: the control character U+{code} is not allowed; write "\\u{code}" in double quotes'
    assert refusal(f"a: 1\nb: x{character}y\n") == expected
    assert read(f'b: "x\\u{code}y"') == {"b": f"x{character}y"}


def test_many_aliases_are_refused():
    text = "a: &a x\nb: [" + ", ".join(["*a"] * (MAX_ALIASES + 1)) + "]"
    assert refusal(text) == f"f.yaml:2:{5 + 4 * MAX_ALIASES}: error: more than {MAX_ALIASES} aliases"


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused_at_the_limit(monkeypatch, opening):
    taken = count_events(monkeypatch)
    column = 1 + len(opening) * MAX_DEPTH
    assert refusal(opening * 100_000) == f"f.yaml:1:{column}: error: nested deeper than {MAX_DEPTH} levels"
    assert len(taken) < 3 * MAX_DEPTH + 5


def test_aliases_cannot_add_up_to_deep_nesting():
    text = "a: &a " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 20 + "*a" + "]" * 20
    assert refusal(text) == f"f.yaml:2:24: error: nested deeper than {MAX_DEPTH} levels"


def test_a_recursive_alias_is_refused_where_it_stands():
    assert refusal("a: &a {b: [*a]}") == "f.yaml:1:12: error: *a stands inside its own &a: it would never end"


def test_more_values_than_a_recipe_can_need_are_refused(monkeypatch):
    monkeypatch.setattr(document, "MAX_NODES", 100)
    assert refusal("[" + "x, " * 200 + "]") == "f.yaml:1:299: error: more than 100 values, counting what aliases repeat"


def test_a_file_beyond_the_limit_is_not_read_further(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError) as caught:
        document.read_text(path, "long.yaml")
    assert str(caught.value) == "long.yaml: error: longer than 256 KiB; a recipe is a page of text"


def test_an_endless_device_is_not_read_to_its_end():
    if sys.platform == "win32":
        pytest.skip("no /dev/zero")
    with pytest.raises(RecipeError, match="longer than 256 KiB"):
        document.read_text(Path("/dev/zero"), "zero")


def test_every_duplicate_and_merge_key_is_found_in_one_reading():
    found = read_document("a: 1\na: 2\nb: {c: 1, c: 2, <<: {d: 1}}\n", "f.yaml")
    assert [str(fault.problem()) for fault in found.faults] == [
        "f.yaml:2:1: error: a: duplicate key, first on line 1",
        "f.yaml:3:11: error: b.c: duplicate key, first on line 3",
        "f.yaml:3:17: error: b.<<: merge keys are not supported; use extends, or write the lines out",
    ]
    assert plain(found.root) == {"a": 1, "b": {"c": 1}}


def test_a_quoted_merge_sign_is_an_ordinary_key():
    assert read("'<<': 1") == {"<<": 1}


def count_events(monkeypatch):
    """The events that the parser has been asked for."""
    taken = []
    parse = yaml.parse

    def counting(*args, **kwargs):
        for event in parse(*args, **kwargs):
            taken.append(event)
            yield event

    monkeypatch.setattr(yaml, "parse", counting)
    return taken
