"""One output beside its reference, as a worker looks at it."""

import numpy as np
import pytest
import torch
from PIL import Image

from difftool.builtin import shapes
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import QualityPlan
from difftool.profiling.quality import examine
from difftool.recipe.load import load_recipe

RED, BLUE = shapes.Scene("circle", "red", "white", ""), shapes.Scene("star", "blue", "white", "")


def drawn(scene: shapes.Scene) -> torch.Tensor:
    return torch.from_numpy(shapes.render(scene)).movedim(-1, 0) / 255


@pytest.fixture(scope="module")
def plan():
    """A red circle by its caption, and something that is no caption."""
    content = {"model": "builtin:shapes-image", "sampling": {"prompt": [RED.caption(), "a house"], "seed": 7}}
    return make_plan(load_recipe(content), run=RunOptions())


def beside(plan, file, made, position=0):
    return examine(plan.model_copy(update={"quality": QualityPlan(files=(str(file),) * 2)}), position, made)


def npz(folder, pixels):
    np.savez(folder / "r.npz", pixels=pixels.numpy())
    return folder / "r.npz"


def test_raw_values_are_compared_as_they_are(plan, tmp_path):
    made = drawn(RED)
    reference = npz(tmp_path, made)
    assert (beside(plan, reference, made).max_abs, beside(plan, reference, made).psnr) == (0.0, None)
    made = made.clone()
    made[0, 5, 5] -= 1 / 1024
    found = beside(plan, reference, made)
    assert found.max_abs == pytest.approx(1 / 1024, abs=1e-6)
    assert found.psnr == pytest.approx(20 * np.log10(1024) + 10 * np.log10(made.numel()), abs=0.01)


def test_a_png_holds_bytes_and_bytes_are_compared_with_it(plan, tmp_path):
    made = drawn(RED)
    Image.fromarray(shapes.render(RED)).save(tmp_path / "r.png")
    assert beside(plan, tmp_path / "r.png", (made + 0.4 / 255).clamp(0, 1)).max_abs == 0
    assert beside(plan, tmp_path / "r.png", (made - 0.6 / 255).clamp(0, 1)).max_abs == pytest.approx(1 / 255)


def test_what_cannot_be_computed_is_named(plan, tmp_path):
    found = beside(plan, npz(tmp_path, drawn(BLUE)), drawn(RED))
    assert found.ssim < 0.9
    assert (found.ms_ssim, found.missing) == (None, ["ms_ssim needs sides of 161 pixels"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"not a zip", "r.npz cannot be read"),
        ({"audio": np.zeros(3)}, "pixels is not a file"),
        ({"pixels": np.full((3, 64, 64), np.nan)}, "values that are no numbers"),
    ],
    ids=["none", "damaged", "other", "nan"],
)
def test_a_reference_that_cannot_be_read_leaves_no_numbers(plan, tmp_path, content, words):
    if isinstance(content, dict):
        np.savez(tmp_path / "r.npz", **content)
    elif content is not None:
        (tmp_path / "r.npz").write_bytes(content)
    found = beside(plan, tmp_path / "r.npz", drawn(RED))
    assert (found.max_abs, found.psnr, found.ssim) == (None, None, None)
    assert words in found.missing[0]


def test_another_size_than_the_reference_s_fails_a_tripwire(plan, tmp_path):
    found = beside(plan, npz(tmp_path, drawn(RED)[:, :32]), drawn(RED))
    assert (found.tripwires, found.psnr) == (["size"], None)
    video = beside(plan, npz(tmp_path, drawn(RED)[:, None]), drawn(RED))
    assert video.tripwires == ["frames"]


def test_a_nan_is_compared_with_nothing(plan, tmp_path):
    made = drawn(RED)
    reference = npz(tmp_path, made)
    made[0, 0, 0] = torch.nan
    found = beside(plan, reference, made)
    assert (found.tripwires, found.psnr, found.missing) == (["nan"], None, ["it has values that are no numbers"])


def test_the_rules_of_the_world_say_whether_a_picture_shows_its_prompt(plan):
    assert [examine(plan, 0, drawn(scene)).right for scene in (RED, BLUE)] == [True, False]
    assert examine(plan, 1, drawn(RED)).right is None


def test_of_any_other_model_nobody_says_what_a_picture_shows(plan):
    model = plan.model.model_copy(update={"builtin": False})
    assert examine(plan.model_copy(update={"model": model}), 0, drawn(RED)).right is None
