"""Reading prompts from the recipe, from files and from standard input."""

import io
import sys
from types import SimpleNamespace

import pytest

from difftool.errors import RecipeError
from difftool.recipe import prompts as prompts_module
from difftool.recipe.load import load_recipe
from difftool.recipe.prompts import read_prompts


@pytest.fixture
def read(tmp_path, monkeypatch):
    """`read(name, content)`: the prompts of a recipe beside that file."""
    monkeypatch.chdir(tmp_path)

    def from_file(name, content):
        data = content if isinstance(content, bytes) else content.encode()
        if name == "-":
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        elif content is not None:
            (tmp_path / name).write_bytes(data)
        loaded = load_recipe({"model": "a/b", "sampling": {"prompts": {"file": name}}})
        return read_prompts(loaded.recipe.sampling.prompts, loaded.base)

    return from_file


def refusal(read, name, content):
    with pytest.raises(RecipeError) as caught:
        read(name, content)
    return str(caught.value)


def test_a_text_file_is_a_prompt_a_line_and_only_blank_lines_are_skipped(read):
    found = read("p.txt", "\ufeffa red circle\n\n  # not a comment  \r\n{braces}\n\t\n")
    assert found == [{"prompt": "a red circle"}, {"prompt": "# not a comment"}, {"prompt": "{braces}"}]


def test_a_jsonl_file_is_a_mapping_a_line_with_any_sampling_key(read, tmp_path):
    found = read("p.jsonl", '{"prompt": "a", "id": "one", "seed": 3, "image": "cat.png", "scheduler": "Euler"}\n\n'
                            '{"prompt": "b \\u2028", "height": null, "extra": {"x": null}}\n')
    assert found == [
        {"image": str(tmp_path / "cat.png"), "scheduler": {"name": "Euler"}, "seed": 3, "id": "one", "prompt": "a"},
        {"prompt": "b \u2028", "extra": {"x": None}},
    ]


def test_standard_input_is_text_or_mappings_by_its_first_character(read):
    assert read("-", "one\ntwo\n") == [{"prompt": "one"}, {"prompt": "two"}]
    assert read("-", '\n {"prompt": "one"}\n') == [{"prompt": "one"}]


def test_a_list_in_the_recipe_gives_what_each_entry_sets():
    prompts = [{"prompt": "a", "id": "x"}, {"prompt": "b"}]
    recipe = load_recipe({"model": "a/b", "sampling": {"prompts": prompts}}).recipe
    assert read_prompts(recipe.sampling.prompts) == [{"id": "x", "prompt": "a"}, {"prompt": "b"}]


REFUSALS = {
    ("p.jsonl", '{"prompt": "a", "heigth": 3}\n{"prompt": "b", "height": "big", "steps": 3}\n{"id": "c"}\n'): [
        "p.jsonl:1: error: heigth: unknown field, did you mean 'height'?",
        "p.jsonl:2: error: steps: unknown field; difftool says sampling.num_inference_steps",
        "p.jsonl:2: error: height: 'big' is not a whole number",
        "p.jsonl:3: error: prompt: missing",
    ],
    ("p.jsonl", '{"prompt": "a"\n[1]\n{"prompt": "a", "prompt": "b"}\n{"prompt": "a", "fps": NaN}\n'): [
        "p.jsonl:1: error: not a JSON mapping: Expecting ',' delimiter",
        'p.jsonl:2: error: not a JSON mapping: write {"prompt": "…"} on each line',
        "p.jsonl:3: error: not a JSON mapping: the key 'prompt' is given twice",
        "p.jsonl:4: error: not a JSON mapping: NaN is not a finite number",
    ],
    ("p.jsonl", '{"prompt": "a", "id": "x"}\n{"prompt": "b"}\n{"prompt": "c", "id": "x"}\n'): [
        "p.jsonl:3: error: id: 'x' is already the id of line 1",
    ],
    ("p.jsonl", '{"prompt": "a", "guidance_scale": 1e999}\n'): [
        "p.jsonl:1: error: guidance_scale: inf is not a finite number",
    ],
    ("p.jsonl", '{"prompt": "a", "extra": ' + '{"x": ' * 40 + "1" + "}" * 41 + "\n"): [
        "p.jsonl:1: error: nested deeper than 32 levels",
    ],
    ("p.txt", "\n \n"): ["p.txt: error: there is no prompt in it"],
    ("p.txt", b"a\nb\xff\n"): ["p.txt:2: error: byte 0xff is not UTF-8; save the file as UTF-8 text"],
    ("p.csv", "a\n"): ["p.csv: error: a prompts file ends in .txt (a prompt a line) or .jsonl (a mapping a line)"],
}


@pytest.mark.parametrize(("case", "lines"), REFUSALS.items())
def test_wrong_prompts_are_answered_with_their_line(read, case, lines):
    assert refusal(read, *case).split("\n") == lines


def test_a_missing_file_and_a_folder_are_named(read, tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for name, reason in (("none.txt", "No such file or directory"), ("folder.txt", "Is a directory")):
        loaded = load_recipe({"model": "a/b", "sampling": {"prompts": {"file": name}}})
        with pytest.raises(RecipeError) as caught:
            read_prompts(loaded.recipe.sampling.prompts, loaded.base)
        assert str(caught.value) == f"{name}: error: cannot be read: {reason}"


def test_a_line_of_brackets_is_no_way_to_stop_the_program(read):
    assert refusal(read, "p.jsonl", '{"prompt": ' + "[" * 100_000).startswith("p.jsonl:1: error: not a JSON mapping: ")


def test_the_same_mistake_on_every_line_is_cut_short(read):
    lines = refusal(read, "p.jsonl", '{"promt": "a"}\n' * 50).split("\n")
    assert len(lines) == 21
    assert lines[0] == "p.jsonl:1: error: promt: unknown field, did you mean 'prompt'?"
    assert lines[-1] == "error: 30 more problems in this file"


def test_sizes_are_limited(read, monkeypatch):
    monkeypatch.setattr(prompts_module, "MAX_BYTES", 2**20)
    assert refusal(read, "p.txt", "x" * (2**20 + 1)) == "p.txt: error: longer than 1 MiB"
    monkeypatch.setattr(prompts_module, "MAX_PROMPTS", 3)
    assert refusal(read, "p.txt", "a\n" * 4) == "p.txt: error: more than 3 prompts"


def test_two_entries_of_a_recipe_may_not_share_an_id():
    recipe = load_recipe({"model": "a/b", "sampling": {"prompts": [{"prompt": "a", "id": "x"}] * 2}}).recipe
    with pytest.raises(RecipeError) as caught:
        read_prompts(recipe.sampling.prompts)
    assert str(caught.value) == "error: id: 'x' is already the id of sampling.prompts.0"
    assert caught.value.problems[0].key == "sampling.prompts.1.id"
