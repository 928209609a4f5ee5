"""Wrong recipes, and every line of what difftool says of them: `bad_recipes.txt` and `bad_yaml.txt` are the manual."""

from pathlib import Path

import pytest
from recipe.goldens import read_cases

from difftool.errors import RecipeError
from difftool.recipe.load import load_recipe

BAD_RECIPES, BAD_YAML = read_cases("bad_recipes.txt"), read_cases("bad_yaml.txt")


def message_of(folder, monkeypatch, text, name="wan.yaml"):
    monkeypatch.chdir(folder)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    return str(caught.value)


@pytest.mark.parametrize(("title", "text", "message"), BAD_RECIPES, ids=[case[0] for case in BAD_RECIPES])
def test_every_problem_of_a_recipe_is_named_with_its_place_and_a_way_out(tmp_path, monkeypatch, title, text, message):
    assert message_of(tmp_path, monkeypatch, text) == message


@pytest.mark.parametrize(("title", "text", "message"), BAD_YAML, ids=[case[0] for case in BAD_YAML])
def test_what_yaml_cannot_read_is_answered_with_advice(tmp_path, monkeypatch, title, text, message):
    assert message_of(tmp_path, monkeypatch, text) == message


def test_the_goldens_are_many_and_differ():
    assert len({case[1] for case in BAD_RECIPES}) >= 70
    assert len({case[1] for case in BAD_YAML}) >= 30


def test_json_gets_the_same_words(tmp_path, monkeypatch):
    text = '{\n\t"model": "a/b",\n\t"sampling": {"height": "big"}\n}'
    expected = "wan.json:3:25: error: sampling.height: 'big' is not a whole number"
    assert message_of(tmp_path, monkeypatch, text, "wan.json") == expected


def test_json_without_a_comma_is_answered_with_its_line(tmp_path, monkeypatch):
    expected = "wan.json:3:2: error: the '{' opened on line 1 is not closed, or a ',' is missing"
    assert message_of(tmp_path, monkeypatch, '{\n "model": "a/b"\n "name": "x"}', "wan.json") == expected


def test_a_long_value_is_shortened(tmp_path, monkeypatch):
    message = message_of(tmp_path, monkeypatch, f"model: a/b\nsampling: {{height: {'x' * 500}}}\n")
    assert message == f"wan.yaml:2:20: error: sampling.height: '{'x' * 55}...' is not a whole number"


def test_bytes_that_are_not_utf_8_are_named_with_their_line(tmp_path, monkeypatch):
    expected = "wan.yaml:2: error: byte 0xe9 is not UTF-8; save the file as UTF-8 text"
    assert message_of(tmp_path, monkeypatch, b"model: a/b\nname: caf\xe9\n") == expected


def test_a_control_character_is_named_with_its_place(tmp_path, monkeypatch):
    expected = "wan.yaml:2:8: error: the control character U+0007 is not allowed; write \"\\u0007\" in double quotes"
    assert message_of(tmp_path, monkeypatch, "model: a/b\nname: x\x07\n") == expected


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", "---\n", "null\n"])
def test_an_empty_file_is_told_the_shortest_recipe(tmp_path, monkeypatch, text):
    message = message_of(tmp_path, monkeypatch, text)
    assert message == "wan.yaml: error: the file is empty; the shortest recipe is 'model: NAME'"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "wan.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: a/b\n")
    assert load_recipe(path).recipe.model.path == "a/b"


def test_a_missing_file_and_a_folder_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    for name, reason in (("none.yaml", "no such file"), ("folder.yaml", "a folder, not a recipe file")):
        with pytest.raises(RecipeError) as caught:
            load_recipe(Path(name))
        assert str(caught.value) == f"{name}: error: {reason}"


def test_problems_carry_their_dotted_key_and_end_the_command_with_2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wan.yaml").write_text("model: a/b\nsampling: {height: big}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe("wan.yaml")
    assert [problem.key for problem in caught.value.problems] == ["sampling.height"]
    assert caught.value.exit_code == 2
