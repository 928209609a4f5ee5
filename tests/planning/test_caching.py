"""What a recipe's cache cannot do for its items is refused by planning, and what it does is said."""

import pytest

from difftool.errors import PlanError, RecipeError
from difftool.planning import caching
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.render import render_plan
from difftool.recipe.flags import flag_overrides
from difftool.recipe.load import lay_over, load_recipe

SHAPES, SD3 = "builtin:shapes-image", "stabilityai/stable-diffusion-3.5-medium"
WAN22 = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"


def plan(model=SHAPES, *, steps=20, parallel=None, extra=None, run=None, **cache):
    sampling = {"prompt": "a red circle", "num_inference_steps": steps, "extra": extra or {}}
    recipe = {"model": model, "sampling": sampling, "cache": {"backend": "dbcache", **cache}}
    return make_plan(load_recipe({**recipe, **({"parallel": parallel} if parallel else {})}), run=run or RunOptions())


REFUSED = [
    (
        {"fn_compute_blocks": 4, "bn_compute_blocks": 2},
        "cache.backend=dbcache: 6 blocks of every list always run, and the longest has 6; lower "
        "cache.fn_compute_blocks or bn_compute_blocks",
    ),
    (
        {"steps": 7, "scm": {"preset": "fast"}},
        "cache.scm: refused for 7 steps, a mask is for 8 or more; leave it out: dbcache stays",
    ),
    (
        {"steps": 28, "scm": {"compute_bins": [8, 3], "cache_bins": [1, 2]}},
        "cache.scm: the bins sum to 14, and sampling.num_inference_steps is 28; make them equal",
    ),
    (
        {"scm": {"compat": "cache-dit"}},
        "cache.scm.compat=cache-dit: it is how a preset is counted; set cache.scm.preset",
    ),
    ({"scm": {"policy": "static"}}, "cache.scm.policy=static: there is no mask to obey; set cache.scm.preset or bins"),
    (
        {"taylorseer": {"order": 2}},
        "cache.taylorseer.order=2: nothing is extrapolated; set cache.taylorseer.enabled",
    ),
    (
        {"secondary": {"fn_compute_blocks": 2}},
        "cache.secondary.fn_compute_blocks: FLUX.1 has one transformer; use cache.fn_compute_blocks",
    ),
    (
        {"steps": 4},
        "cache.max_warmup_steps=4 leaves none of 4 steps to reuse; lower it, or set cache.min_hit_rate=0",
    ),
    (
        {"model": WAN22, "scm": {"compute_bins": [4, 16], "cache_bins": [10, 10]}, "steps": 40},
        "cache.scm.compute_bins: two transformers have steps of their own; use cache.scm.preset",
    ),
    (
        {"model": SD3, "extra": {"skip_guidance_layers": [7]}},
        "sampling.extra.skip_guidance_layers: its branch leaves blocks out, which a cache cannot follow; leave one of "
        "them out",
    ),
    (
        {"parallel": {"num_gpus": 2, "dp": 2, "hsdp": 2}},
        "cache.backend=dbcache: replicas share weights, so all must run the same blocks, and each decides for its own "
        "item; use parallel.hsdp=none, or share within a replica",
    ),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED, ids=[message.partition(":")[0] for _, message in REFUSED])
def test_what_a_cache_cannot_do_is_refused_with_the_way_out(asked, message):
    with pytest.raises(RecipeError) as error:
        plan(**asked)
    assert [problem.message for problem in error.value.problems] == [message]


def test_teacache_is_a_backend_of_its_own_with_settings_of_its_own():
    (choice,) = [c for c in plan(backend="teacache").choices if c.key.startswith("cache")]
    assert choice.value == "teacache" and choice.reason.startswith("first and last steps are computed")
    assert plan(backend="teacache", teacache={"threshold": 0.3, "coefficients": [1, 0]}, steps=4).items


QWEN = "Qwen/Qwen-Image"
UNPUBLISHED = ": nothing is published for this pipeline; give what `difftool calibrate` finds"


@pytest.mark.parametrize(
    ("model", "asked", "keys"),
    [
        (QWEN, {}, "cache.teacache.threshold and cache.teacache.coefficients"),
        (QWEN, {"threshold": 0.3}, "cache.teacache.coefficients"),
        ("builtin:shapes-video", {}, "cache.teacache.threshold and cache.teacache.coefficients"),
        ("black-forest-labs/FLUX.1-Kontext-dev", {"coefficients": [1, 0]}, "cache.teacache.threshold"),
    ],
)
def test_teacache_without_what_is_published_wants_what_calibrate_finds(model, asked, keys):
    with pytest.raises(RecipeError) as error:
        plan(model, backend="teacache", teacache=asked)
    assert [problem.message for problem in error.value.problems] == [keys + UNPUBLISHED]
    found = {"threshold": 0.3, "coefficients": [1, 0]}
    assert plan(model, backend="teacache", teacache=found).recipe["cache"]["teacache"] == found


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"backend": "teacache", "fn_compute_blocks": 2}, "cache.fn_compute_blocks"),
        ({"backend": "teacache", "scm": {"preset": "fast"}}, "cache.scm.preset"),
        ({"backend": "teacache", "secondary": {"bn_compute_blocks": 1}}, "cache.secondary.bn_compute_blocks"),
        ({"teacache": {"threshold": 0.1}}, "cache.teacache.threshold"),
    ],
    ids=str,
)
def test_settings_of_the_other_backend_are_refused(asked, key):
    with pytest.raises(RecipeError) as error:
        plan(**asked)
    backend = asked.get("backend", "dbcache")
    assert [problem.message for problem in error.value.problems] == [
        f"{key}: a setting that {backend} does not have; leave it out"
    ]


def test_fewer_than_eight_steps_keep_the_cache_without_a_mask():
    (choice,) = [c for c in plan(steps=7).choices if c.key.startswith("cache")]
    assert choice.value == "dbcache, by change alone"
    assert choice.reason == (
        "4 of 7 steps are computed first, the rest where change asks for it; a mask (cache.scm) is for 8 steps or more"
    )


def test_the_plan_shows_the_mask():
    page = render_plan(plan(steps=28, scm={"preset": "medium"}))
    line = "cache.scm                          1111010100101001010100101001          computes 14 of 28 steps (50 %)"
    assert line.split("  ")[-1] in page and "  1111010100101001010100101001  " in page
    static = plan(steps=28, scm={"preset": "ultra", "policy": "static"})
    assert "computes 7 of 28 steps (25 %), reuses the others always" in render_plan(static)


def test_a_cache_that_is_off_asks_for_nothing():
    sections = {"cache": {"backend": "none", "scm": {"preset": "fast"}}, "sampling": {"prompt": "x"}}
    made = make_plan(load_recipe({"model": SHAPES, **sections}), run=RunOptions())
    assert not [choice for choice in made.choices if choice.key.startswith("cache")]


def test_settings_of_a_cache_that_nobody_turned_on_are_refused():
    sections = {"cache": {"residual_diff_threshold": 0.1, "scm": {"preset": "fast"}}, "sampling": {"prompt": "x"}}
    loaded = load_recipe({"model": SHAPES, **sections})
    with pytest.raises(RecipeError) as error:
        make_plan(loaded, run=RunOptions())
    keys = "cache.residual_diff_threshold", "cache.scm.preset"
    said = [f"{key}: cache.backend is none; set dbcache or teacache" for key in keys]
    assert [problem.message for problem in error.value.problems] == said
    off = make_plan(lay_over(loaded, flag_overrides({"--cache-backend": "none"})), run=RunOptions())
    assert make_plan(load_recipe(off.recipe), run=RunOptions()).recipe["cache"] == off.recipe["cache"]


def test_a_pipeline_that_diffusers_runs_has_no_cache():
    recipe = {"model": {"path": SHAPES, "backend": "diffusers"}, "sampling": {"prompt": "x"}, "cache": "dbcache"}
    with pytest.raises(RecipeError, match="diffusers runs FluxPipeline by itself; use none"):
        make_plan(load_recipe(recipe), run=RunOptions())


def test_a_missing_package_is_told_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(caching, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match="needs cache-dit, which is not installed here") as error:
        plan()
    assert error.value.hint == "pip install 'difftool[cache]'"


def test_a_cache_changes_pixels_so_it_is_hashed_loaded_and_embedded():
    from difftool.planning.loading import loading

    one, other = plan(), plan(residual_diff_threshold=0.3)
    assert one.recipe_sha256 != other.recipe_sha256 and one.workload_sha256 == other.workload_sha256
    assert loading(one) != loading(other)
    assert one.item_recipe(one.items[0])["cache"]["backend"] == "dbcache"
