"""The folder of a run holds its recipe and its plan, whole."""

import os
import re

import pytest

from difftool import launch
from difftool.errors import OutputError
from difftool.launch.records import new_run_id
from difftool.planning.plan import Plan


def test_records_hold_the_recipe_and_the_plan(tmp_path, make_small_plan):
    plan = make_small_plan(tmp_path / "new" / "folder")
    folder = launch.open_records(plan)
    assert folder.parent == tmp_path / "new" / "folder" / ".difftool"
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "recipe.yaml", "todo.json"]
    assert Plan.model_validate_json((folder / "plan.json").read_text()) == plan
    assert (folder / "recipe.yaml").read_text() == (
        "schema: difftool/v1\nmodel:\n  path: builtin:shapes-image\nstages: {}\ncache:\n  backend: none\n"
        'sampling:\n  prompt: ["a red circle", "a blue circle"]\n'
    )


def test_two_runs_of_one_second_have_two_folders(tmp_path, make_small_plan):
    plan = make_small_plan(tmp_path)
    assert launch.open_records(plan) != launch.open_records(plan)


def test_a_run_id_is_a_time_that_sorts():
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", new_run_id())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_output_error(tmp_path, make_small_plan):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        launch.open_records(make_small_plan(tmp_path / "outputs"))


def test_a_file_where_the_folder_should_be_is_an_output_error(tmp_path, make_small_plan):
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(OutputError) as caught:
        launch.open_records(make_small_plan(tmp_path / "outputs"))
    assert "outputs/.difftool" in caught.value.message and caught.value.hint
