"""Which formats a plan may ask for: those of what its family makes, refused before anything runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from difftool.errors import RecipeError
from difftool.media.save import WRITERS
from difftool.planning import make
from difftool.planning.make import make_plan
from difftool.planning.outputs import FORMATS, RunOptions
from difftool.recipe.load import load_recipe


def plan(run=None, fps=None, **output):
    sampling = {"prompt": "x"} | ({"fps": fps} if fps else {})
    recipe = {"model": "builtin:shapes-image", "sampling": sampling, "output": output}
    return make_plan(load_recipe(recipe), run=run or RunOptions())


def problems(**arguments):
    with pytest.raises(RecipeError) as error:
        plan(**arguments)
    return [problem.message for problem in error.value.problems]


@pytest.fixture
def of_a_family(monkeypatch):
    """`of_a_family(num_frames=..., makes=...)` plans as if the built-in model's family made something else."""
    find = make.find_checkpoint

    def pretend(*, makes, num_frames=None):
        def found(*arguments):
            checkpoint = find(*arguments)
            pipelines = {name: replace(facts, makes=makes) for name, facts in checkpoint.family.pipelines.items()}
            sampling = {**checkpoint.family.sampling, "fps": 16, **({"num_frames": 9} if num_frames else {})}
            family = replace(
                checkpoint.family, title="Other", num_frames=num_frames, pipelines=pipelines, sampling=sampling
            )
            return replace(checkpoint, family=family)

        monkeypatch.setattr(make, "find_checkpoint", found)

    return pretend


def test_every_format_of_a_plan_has_a_writer():
    ranks = {"image": 3, "video": 4, "audio": 2}
    assert {made: set(WRITERS[rank]) for made, rank in ranks.items()} == {m: set(f) for m, f in FORMATS.items()}


@pytest.mark.parametrize("kind", ["mp4", "gif", "wav"])
def test_a_family_of_pictures_refuses_video_and_sound(kind):
    way_out = "FLUX.1 makes single pictures; use png, jpg, webp or npz"
    assert problems(format=kind) == [f"output.format={kind}: {way_out}"]
    assert problems(run=RunOptions(output_file=Path(f"x.{kind}"))) == [f"-o x.{kind}: {way_out}"]


def test_a_suffix_that_nobody_knows_is_refused():
    assert problems(run=RunOptions(output_file=Path("x.txt")))[0].startswith("-o x.txt: FLUX.1 makes single pictures")


@pytest.mark.parametrize(
    ("makes", "num_frames", "chosen", "refused", "way_out"),
    [
        ("image", None, "png", "mp4", "single pictures; use png, jpg, webp or npz"),
        ("video", (4, 1), "mp4", "png", "videos; use mp4, gif or npz"),
        ("audio", None, "wav", "mp4", "sound; use wav or npz"),
    ],
)
def test_auto_is_the_first_format_of_what_a_family_makes(of_a_family, makes, num_frames, chosen, refused, way_out):
    of_a_family(makes=makes, num_frames=num_frames)
    assert plan().output.format == chosen
    assert problems(format=refused) == [f"output.format={refused}: Other makes {way_out}"]


def test_a_gif_has_no_quality_and_a_highest_speed(of_a_family):
    of_a_family(makes="video", num_frames=(4, 1))
    assert plan(format="gif", fps=50).output.format == "gif"
    assert problems(format="gif", quality=50) == ["output.quality: gif has none; it is for jpg, webp, mp4"]
    assert problems(format="gif", fps=60) == ["sampling.fps: a gif shows 50 frames a second at most"]
