"""The names of a run are decided before its first item is made, and belong to one item each."""

import pytest
from launch.conftest import small_plan

from difftool.errors import OutputError
from difftool.planning.naming import reserve


def plan(folder, *, prompts=("a", "a", "b"), **output):
    made = small_plan(folder)
    items = [
        made.items[0].model_copy(update={"index": i, "id": str(i), "prompt": prompt, "seed": 7})
        for i, prompt in enumerate(prompts)
    ]
    changed = made.output.model_copy(update={"name": "{prompt}-{seed}", **output})
    return made.model_copy(update={"items": tuple(items), "output": changed})


def test_items_of_one_name_are_counted_up(tmp_path):
    assert reserve(plan(tmp_path), "run") == ("a-7.png", "a-7-1.png", "b-7.png")


def test_a_file_that_is_there_is_not_taken(tmp_path):
    (tmp_path / "a-7.png").touch()
    (tmp_path / "b-7.png").symlink_to("nowhere")
    assert reserve(plan(tmp_path), "run") == ("a-7-1.png", "a-7-2.png", "b-7-1.png")


def test_raw_values_count_with_their_picture(tmp_path):
    (tmp_path / "a-7.npz").touch()
    assert reserve(plan(tmp_path, return_frames=True), "run") == ("a-7-1.png", "a-7-2.png", "b-7.png")


def test_overwrite_takes_files_of_others_and_never_its_own(tmp_path):
    (tmp_path / "a-7.png").touch()
    assert reserve(plan(tmp_path, on_collision="overwrite"), "run") == ("a-7.png", "a-7-1.png", "b-7.png")


@pytest.mark.parametrize("prompts", [("a", "a"), ("a", "b")])
def test_error_refuses_before_anything_is_made(tmp_path, prompts):
    (tmp_path / "b-7.png").touch()
    with pytest.raises(OutputError, match=rf"{prompts[1]}-7.png exists"):
        reserve(plan(tmp_path, prompts=prompts, on_collision="error"), "run")


def test_the_one_file_is_numbered_where_there_are_several_items(tmp_path):
    assert reserve(plan(tmp_path, file="x.png"), "run") == ("x-0-0.png", "x-1-0.png", "x-2-0.png")


def test_a_thousand_items_of_one_name_have_a_thousand_names(tmp_path):
    assert len(set(reserve(plan(tmp_path, prompts=["a"] * 1000), "run"))) == 1000


def test_the_run_id_may_be_part_of_a_name(tmp_path):
    assert reserve(plan(tmp_path, name="{run_id}/{id}"), "20261121T110559Z-9f3a1c")[1] == (
        "20261121T110559Z-9f3a1c/1.png"
    )
