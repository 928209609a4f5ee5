"""From recipe to plan: every value resolved, with where it came from; what would do nothing is refused."""

import json

import pytest
import yaml

from difftool.errors import RecipeError, WeightsError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.render import render_plan, render_resolved
from difftool.recipe.load import Override, load_recipe

SHAPES = "builtin:shapes-image"
DEV = "black-forest-labs/FLUX.1-dev"
SCHNELL = "black-forest-labs/FLUX.1-schnell"


def plan(model=SHAPES, run=None, **sections):
    sections.setdefault("sampling", {"prompt": "a red circle"})
    return make_plan(load_recipe({"model": model, **sections}), run=run or RunOptions())


def problems(model=SHAPES, run=None, **sections):
    with pytest.raises(RecipeError) as error:
        plan(model, run, **sections)
    return [problem.message for problem in error.value.problems]


def by_keys(value):
    return "-".join(value) if isinstance(value, dict) else ""


def sampling(**values):
    return {"prompt": "x", **values}


def test_a_revision_of_what_is_on_this_disk_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    for path in (SHAPES, str(tmp_path)):
        message = f"model.revision: it is for a hub repository, and {path} is on this disk; leave it out"
        assert problems({"path": path, "revision": "abc"}) == [message]
    assert plan({"path": DEV, "revision": "abc"}).model.revision == "abc"


@pytest.mark.parametrize(
    ("repeats", "value", "why"),
    [
        (1, "none", "28 denoising steps: compiling pays on CUDA, from 1000 on; a session keeps its first choice"),
        (36, "regional", "1008 denoising steps pay for it; a session keeps its first choice"),
    ],
)
def test_the_plan_says_whether_a_run_is_compiled_and_that_a_session_keeps_it(repeats, value, why):
    choices = plan(DEV, perf={"repeats": repeats}, launch={"device": "cuda"}).choices
    assert [(c.value, c.reason) for c in choices if c.key == "stages.denoising.compile"] == [(value, why)]


def test_kernels_of_our_own_are_not_available_yet():
    message = "stages.denoising.kernels=none: not available yet; use auto"
    assert problems(stages={"denoising": {"kernels": "none"}}) == [message]


def test_a_checkpoint_s_own_defaults_win_over_the_family_s():
    values = plan().items[0].sampling
    assert (values["height"], values["num_inference_steps"], values["true_cfg_scale"]) == (64, 20, 2.5)
    values = plan(DEV).items[0].sampling
    assert (values["height"], values["num_inference_steps"], values["guidance_scale"]) == (1024, 28, 3.5)
    values = plan(SCHNELL).items[0].sampling
    assert (values["num_inference_steps"], values["guidance_scale"], values["max_sequence_length"]) == (4, None, 256)


def test_every_value_says_where_it_came_from(tmp_path):
    (tmp_path / "r.yaml").write_text(f"model: {SHAPES}\nsampling:\n  prompt: x\n  height: 32\n")
    overrides = [Override("sampling.width", 32, "--width", parse=False)]
    origins = make_plan(load_recipe(tmp_path / "r.yaml", overrides), run=RunOptions()).provenance
    assert origins["sampling.height"] == f"{tmp_path}/r.yaml:4:11"
    assert origins["sampling.width"] == "--width"
    assert origins["sampling.num_inference_steps"] == "the checkpoint"
    assert origins["sampling.max_sequence_length"] == "the checkpoint"
    assert origins["parallel.cfg"] == "solved"
    assert origins["output.dir"] == "default"
    assert plan(DEV).provenance["sampling.height"] == "family FLUX.1"
    assert plan(SCHNELL).provenance["sampling.num_inference_steps"] == f"model {SCHNELL}"


@pytest.mark.parametrize("model", [SHAPES, DEV, SCHNELL])
def test_the_resolved_recipe_makes_the_same_plan(model, tmp_path):
    first = plan(model, sampling={"prompt": ["a: b", "yes", "1e3", "ü"], "seed": "random", "num_outputs_per_prompt": 2})
    (tmp_path / "again.yaml").write_text(render_resolved(first))
    second = make_plan(load_recipe(tmp_path / "again.yaml"), run=RunOptions())
    assert second.model_copy(update={"provenance": first.provenance}) == first
    assert render_resolved(first, origins=False).count("#") == 0


def test_resolved_text_is_plain_yaml_for_any_reader():
    made = plan(sampling={"prompt": "no", "extra": {"prompt_2": "a # b: c"}, "seed": 5})
    read = yaml.safe_load(render_resolved(made))
    assert read["sampling"]["prompt"] == "no" and read["sampling"]["extra"] == {"prompt_2": "a # b: c"}
    assert json.loads(json.dumps(read)) == json.loads(json.dumps(dict(made.recipe)))


def test_seeds_count_over_prompts_and_outputs():
    items = plan(sampling={"prompt": ["a", "b"], "seed": 10, "num_outputs_per_prompt": 3}).items
    assert [(item.index, item.output, item.seed) for item in items] == [
        (0, 0, 10),
        (0, 1, 11),
        (0, 2, 12),
        (1, 0, 13),
        (1, 1, 14),
        (1, 2, 15),
    ]


def test_prompt_entries_override_what_they_name(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "id": "one"}\n{"prompt": "b", "seed": 7, "height": 96}\n')
    items = plan(sampling={"prompts": {"file": str(tmp_path / "p.jsonl")}, "seed": 3}).items
    assert [(item.id, item.seed, item.sampling["height"]) for item in items] == [("one", 3, 64), ("1", 7, 96)]


def test_a_random_seed_is_drawn_and_recorded():
    made = plan(sampling={"prompt": "x", "seed": "random"})
    assert made.recipe["sampling"]["seed"] == made.items[0].seed


def test_the_hash_covers_what_changes_pictures_and_nothing_else():
    base = plan()
    assert plan(output={"dir": "elsewhere"}, launch={"threads": 2}).recipe_sha256 == base.recipe_sha256
    assert plan(sampling={"prompt": "a red circle", "seed": 1}).recipe_sha256 != base.recipe_sha256
    fp16 = plan(stages={"denoising": {"precision": "fp16"}})
    assert fp16.recipe_sha256 != base.recipe_sha256 and fp16.workload_sha256 == base.workload_sha256


def test_threads_are_the_checkpoint_s_wish_or_a_small_fixed_number():
    assert plan().threads == 1
    assert 1 <= plan(DEV).threads <= 4
    assert plan(launch={"threads": 3}).threads == 3


BAD_SAMPLING = [
    (SHAPES, {"height": 100}, "sampling.height=100 is not a multiple of 16; nearest: 96, 112"),
    (SHAPES, {"width": 8}, "sampling.width=8 is not a multiple of 16; nearest: 16"),
    (DEV, {"max_sequence_length": 600}, "sampling.max_sequence_length=600: FLUX.1 takes 512 at most"),
    (
        SHAPES,
        {"guidance_scale": 3.5},
        "sampling.guidance_scale=3.5: this checkpoint has no guidance_embeds and ignores it; use true_cfg_scale with a "
        "negative prompt",
    ),
    (
        DEV,
        {"true_cfg_scale": 2.0},
        "sampling.true_cfg_scale=2.0 needs a negative prompt to guide away from; give one ('' will do)",
    ),
    (
        DEV,
        {"negative_prompt": "x"},
        "sampling.negative_prompt: ignored at true_cfg_scale=1.0; set true_cfg_scale above 1",
    ),
    (DEV, {"num_frames": 9}, "sampling.num_frames: FLUX.1 makes single pictures; leave num_frames out"),
    (DEV, {"image": "x.png"}, "sampling.image: FLUX.1 makes pictures from text alone and takes no image"),
    (DEV, {"guidance_scale_2": 2.0}, "sampling.guidance_scale_2: FLUX.1 has one transformer; use guidance_scale"),
    (
        DEV,
        {"scheduler": {"sigmas": [1.0, 0.5]}, "num_inference_steps": 3},
        "sampling.scheduler.sigmas: 2 sigmas for num_inference_steps=3",
    ),
    (DEV, {"extra": {"promt_2": "x"}}, "sampling.extra.promt_2: unknown argument, did you mean 'prompt_2'?"),
    (DEV, {"extra": {"prompt_2": 3}}, "sampling.extra.prompt_2: 3 is not a str"),
    (
        DEV,
        {"extra": {"negative_prompt_2": "x"}},
        "sampling.extra.negative_prompt_2: ignored at true_cfg_scale=1.0; set true_cfg_scale above 1",
    ),
]


@pytest.mark.parametrize(("model", "values", "message"), BAD_SAMPLING, ids=by_keys)
def test_requests_that_a_model_cannot_honour_are_refused(model, values, message):
    assert problems(model, sampling=sampling(**values)) == [message]


def test_given_sigmas_set_the_number_of_steps():
    values = plan(DEV, sampling=sampling(scheduler={"sigmas": [1.0, 0.6, 0.3]})).items[0].sampling
    assert values["num_inference_steps"] == 3


NOT_YET = [
    ({"serve": {"port": 8000}}, "serve.port=8000: not available yet"),
    (
        {"sweep": {"matrix": {"sampling.seed": [1, 2]}}},
        "sweep: only `difftool bench` runs it, an arm for each point; sweep=null leaves it out",
    ),
]


@pytest.mark.parametrize(("sections", "message"), NOT_YET, ids=by_keys)
def test_keys_without_an_effect_are_refused(sections, message):
    assert problems(**sections) == [message]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "builtin:shapes",
            "model.path: no built-in model is named 'shapes'; there is builtin:shapes-image, builtin:shapes-video",
        ),
        (
            "black-forest-labs/FLUX1-dev",
            "model.path: no known model is named 'black-forest-labs/FLUX1-dev'; did you mean "
            "black-forest-labs/FLUX.1-dev or ",
        ),
        (
            {"path": SHAPES, "id": "FLUX"},
            "model.id: no known model is named 'FLUX'; known: black-forest-labs/FLUX.1-dev, ",
        ),
    ],
)
def test_an_unknown_model_is_answered_with_known_ones(model, message):
    (said,) = problems(model)
    assert said.startswith(message)


def test_a_pipeline_that_nobody_runs_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipelin"}')
    of_none = "of which the installed diffusers has no pipeline that makes pictures or videos"
    assert problems(str(tmp_path)) == [f"model.path: {tmp_path} is a FluxPipelin, {of_none}"]


def test_a_folder_that_is_not_a_model_is_a_weights_error(tmp_path):
    with pytest.raises(WeightsError, match="has no model_index.json"):
        plan(str(tmp_path))
    with pytest.raises(WeightsError, match="no model folder at"):
        plan(str(tmp_path / "nowhere"))


def test_a_renamed_folder_takes_the_defaults_of_a_known_model(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    made = plan({"path": str(tmp_path), "id": SCHNELL})
    assert made.items[0].sampling["num_inference_steps"] == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"sampling": {"height": "big"}}', "difftool.json: height: "),
        ('{"sampling": {"heigth": 64}}', "difftool.json: heigth: "),
        ('{"launch": {"threads": 0}}', "difftool.json: threads: "),
        ("[]", "does not hold a mapping"),
    ],
)
def test_a_checkpoint_s_own_defaults_are_checked_as_strictly_as_a_recipe(tmp_path, content, words):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "difftool.json").write_text(content)
    with pytest.raises(WeightsError, match=words):
        plan(str(tmp_path))


def test_a_model_in_the_hub_cache_is_planned_from_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--their-flux"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    made = plan("someone/their-flux")
    assert made.model.hub_id == "someone/their-flux" and made.model.folder is None


def test_nothing_to_make_is_said_with_the_flag_to_type():
    assert problems(sampling={}) == ["sampling.prompt: there is nothing to make; give a prompt with -p"]


@pytest.mark.parametrize("name", ["{promt}", "{", "{0}"])
def test_unknown_placeholders_are_refused(name):
    assert problems(output={"name": name})[0].startswith(f"output.name: {name!r} has an unknown placeholder")


@pytest.mark.parametrize("name", ["/tmp/x", "../x", "a/../../x"])
def test_a_name_may_not_leave_its_folder(name):
    assert problems(output={"name": name}) == [f"output.name: {name!r} leaves output.dir"]


def test_layers_and_encoders_are_dealt_to_the_ranks_of_a_replica():
    made = plan(SHAPES, parallel={"dp": 2, "tp": 2}, stages={"text_encoding": {"tp": 2}})
    assert (made.degrees.num_gpus, made.degrees.tp, made.stages["text_encoding"]["tp"]) == (4, 2, 2)


CONFLICTING = [
    (
        {"stages": {"decoding": {"parallel": "tiled"}}, "parallel": {"num_gpus": 2, "dp": 2}},
        "stages.decoding.parallel=tiled deals tiles to the ranks that make an item, and one makes it; use none, or "
        "split items by cfg, ulysses, ring or tp",
    ),
    (
        {"stages": {"decoding": {"parallel": "tiled", "tiling": "none"}}, "parallel": {"num_gpus": 2, "ulysses": 2}},
        "stages.decoding.parallel=tiled deals tiles out, and stages.decoding.tiling=none makes none; leave one of them "
        "out",
    ),
    ({"output": {"quality": 80}}, "output.quality: png has none; it is for jpg, webp, mp4"),
    (
        {"quality": {"tier": "near"}},
        "quality.tier=near needs something to compare with; give quality.reference: {without: [keys]} or {dir: folder}",
    ),
    (
        {"cache": "dbcache", "stages": {"denoising": {"compile": "full"}}},
        "stages.denoising.compile=full makes one graph of a forward, and a cache decides at every step which of its "
        "blocks run; use regional, or cache=none",
    ),
    (
        {"parallel": {"num_gpus": 2, "hsdp": "all"}, "stages": {"denoising": {"quantization": "fp8"}}},
        "parallel.hsdp=all puts a block together from shares of its weights, and knows none of quantized ones; leave "
        "stages.denoising.quantization out, or use hsdp=none",
    ),
    (
        {"parallel": {"num_gpus": 2, "tp": 2, "hsdp": "all"}},
        "parallel.hsdp=all shards over the ranks that tensor parallel splits; use tp=1 or hsdp=none",
    ),
    (
        {"stages": {"text_encoding": {"tp": 2}}},
        "stages.text_encoding.tp=2, and 1 ranks make an item together; use 1",
    ),
    (
        {"stages": {"text_encoding": {"tp": 4}}, "parallel": {"dp": 2, "tp": 2}},
        "stages.text_encoding.tp=4, and 2 ranks make an item together; use 1 or 2",
    ),
    (
        {"stages": {"text_encoding": {"tp": 2, "offload": "after_use"}}, "parallel": {"tp": 2}},
        "stages.text_encoding.tp=2 leaves a part of each encoder on every rank, and stages.text_encoding.offload moves "
        "whole ones; use one of them",
    ),
]


@pytest.mark.parametrize(("sections", "message"), CONFLICTING, ids=by_keys)
def test_settings_that_exclude_each_other_are_named(sections, message):
    assert message in problems(sections.pop("model", SHAPES), **sections)


def test_tiles_that_are_dealt_out_are_tiles():
    dealt = plan(stages={"decoding": {"parallel": "tiled"}}, parallel={"num_gpus": 2, "ulysses": 2, "cfg": 1})
    assert [(c.value, c.reason) for c in dealt.choices if c.key == "stages.decoding.tiling"] == [
        ("on", "stages.decoding.parallel deals them out")
    ]


def test_all_problems_come_at_once_in_file_order(tmp_path):
    (tmp_path / "wan.yaml").write_text(
        f"model: {SHAPES}\nparallel: {{num_gpus: 8, cfg: 2, ulysses: 3}}\nsampling:\n  prompt: x\n  height: 50\n"
        "serve: {port: 8000}\n"
    )
    with pytest.raises(RecipeError) as error:
        make_plan(load_recipe(tmp_path / "wan.yaml"), run=RunOptions())
    lines = str(error.value).replace(f"{tmp_path}/", "").splitlines()
    assert lines == [
        "wan.yaml:2:42: error: parallel.ulysses=3 does not divide 4 attention heads; valid: 1, 2, 4",
        "wan.yaml:5:11: error: sampling.height=50 is not a multiple of 16; nearest: 48, 64",
        "wan.yaml:6:15: error: serve.port=8000: not available yet",
    ]


def test_the_product_of_degrees_is_checked_against_the_real_number_of_heads(tmp_path):
    (tmp_path / "r.yaml").write_text(
        f"model: {DEV}\nsampling: {{prompt: x, true_cfg_scale: 2.0, negative_prompt: ''}}\n"
        "parallel: {num_gpus: 8, cfg: 2, ulysses: 3}\n"
    )
    with pytest.raises(RecipeError, match=r"r.yaml:3:11: error: parallel: num_gpus=8 but cfg·ulysses = 2·3 = 6"):
        make_plan(load_recipe(tmp_path / "r.yaml"), run=RunOptions())


def test_the_output_file_of_the_command_line_decides_the_format(tmp_path):
    made = plan(run=RunOptions(output_file=tmp_path / "x.jpeg"))
    assert (made.output.format, made.output.file, made.output.dir) == ("jpg", "x.jpeg", str(tmp_path))


def test_the_printed_plan_is_a_page_a_person_can_read(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    page = render_plan(plan(launch={"device": "cpu"}, stages={"denoising": {"precision": "bf16"}}))
    assert page.startswith(
        "plan      shapes-image\n"
        "model     builtin:shapes-image (FLUX.1, t2i, FluxPipeline)\n"
        "weights   ship with difftool\n"
        "device    cpu, 1 CPU threads a process\n"
        "ranks     1 = dp 1 x cfg 1 x ring 1 x ulysses 1 x tp 1\n"
        "runs      1 item, 0 warm-up, 1 measured run each\n"
        f"output    {tmp_path}/outputs/{{prompt}}-{{seed}}.png\n"
    )
    assert "items\n  0        seed 42           64x64, 20 steps  a red circle\n" in page
    assert "  stages.denoising.precision         bf16                             argument\n" in page
    assert "stages.denoising.attention         torch_sdpa" in page
