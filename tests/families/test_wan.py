"""What Wan's own facts say: sizes, frames, experts, pictures, and keys that would do nothing."""

import json

import pytest
from families.cases.case import picture
from families.cases.wan import OF_EXPERTS
from families.planned import refusals, sampled
from families.running import assemble_case, batch_for

from difftool.families.wan.facts import FACTS
from difftool.planning.checkpoint import find_checkpoint
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.render import render_plan
from difftool.recipe.load import load_recipe

SMALL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
EXPERTS = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
TI2V = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
I2V = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
FRAMES = "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers"
FAST = "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers"


@pytest.fixture
def square(tmp_path):
    path = tmp_path / "square.png"
    picture(100, 100).image.save(path)
    return str(path)


@pytest.fixture
def distilled(tmp_path):
    """A folder of FastWan's class, without and with the flag that tells 2.2 from 2.1."""

    def make(**index):
        folder = tmp_path / "fast"
        folder.mkdir(exist_ok=True)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanDMDPipeline", **index}))
        return str(folder)

    return make


@pytest.mark.parametrize("known", FACTS.checkpoints, ids=lambda known: known.hub_id)
def test_every_checkpoint_is_planned_from_its_id_and_a_prompt(known, square):
    pictures = {"image": square} if FACTS.pipelines[known.pipeline_class].images[0] else {}
    last = {"last_image": square} if known.hub_id == FRAMES else {}
    values = sampled(known.hub_id, **pictures, **last)
    width = known.transformer["num_attention_heads"] * known.transformer["attention_head_dim"]
    assert width % 128 == 0 and values["num_frames"] % 4 == 1
    assert (values.get("guidance_scale") is None) == (known.hub_id == FAST)


def test_the_defaults_are_those_of_the_model_cards():
    base, experts, small = sampled(SMALL), sampled(EXPERTS), sampled(TI2V)
    assert (base["height"], base["width"], base["fps"], base["guidance_scale"]) == (480, 832, 16, 5.0)
    assert base["negative_prompt"].startswith("Bright tones")
    assert (experts["guidance_scale"], experts["guidance_scale_2"], experts["boundary_ratio"]) == (4.0, 3.0, 0.875)
    assert (small["height"], small["width"], small["num_frames"], small["fps"]) == (704, 1280, 121, 24)


@pytest.mark.parametrize(("model", "multiple"), [(SMALL, 16), (TI2V, 32), (FAST, 32)])
def test_a_size_is_a_multiple_of_the_checkpoint_s_patches(model, multiple):
    assert sampled(model, height=10 * multiple)["height"] == 10 * multiple
    (message,) = refusals(model, height=10 * multiple + 8)
    assert f"not a multiple of {multiple}" in message


def test_frames_come_in_fours_and_one():
    assert refusals(SMALL, num_frames=80) == ["sampling.num_frames=80 is not 4k + 1; nearest: 77, 81"]


@pytest.mark.parametrize("key", ["guidance_scale_2", "boundary_ratio"])
def test_what_only_a_second_expert_reads_is_refused_without_one(key):
    (message,) = refusals(SMALL, **{key: 0.5})
    assert message.startswith(f"sampling.{key}=0.5: ") and "boundary_ratio" in message and "ignores it" in message


def test_sigmas_are_refused_as_the_scheduler_makes_its_own():
    (message,) = refusals(SMALL, scheduler={"sigmas": [1.0, 0.5]})
    assert "scheduler makes its own" in message


@pytest.mark.parametrize(("ratio", "expected"), [(0.99, 1), (0.8, 2), (0.75, 3), (0.01, 4)])
def test_the_expert_is_chosen_by_the_time_of_the_step(ratio, expected):
    assembled = assemble_case("wan22-t2v")
    batch = batch_for(assembled, **{**OF_EXPERTS, "boundary_ratio": ratio})
    scheduler, timesteps = assembled.config.prepare_timesteps(assembled.components, batch, "cpu")
    batch = type(batch)(**{**vars(batch), "scheduler": scheduler, "times": timesteps.tolist()})
    # at 999, 900, 750 and 500 of 1000
    chosen = [assembled.config.select_transformer(assembled.components, batch, i) for i in range(4)]
    assert [model is assembled.components.transformer for model in chosen] == [i < expected for i in range(4)]


def test_pictures_go_where_they_have_a_place(square):
    assert refusals(SMALL, image=square) == ["sampling.image: Wan takes no image"]
    assert refusals(I2V) == ["sampling.image: Wan (WanImageToVideoPipeline) needs a picture; give one with --image"]
    made = sampled(TI2V, image=square)
    assert made["height"] == made["width"] and made["height"] % 32 == 0


def test_a_last_frame_goes_where_it_has_a_place(square):
    assert sampled("Wan-AI/Wan2.2-I2V-A14B-Diffusers", image=square, last_image=square)["last_image"] == square
    (message,) = refusals(I2V, image=square, last_image=square)
    assert "sees one picture" in message
    (message,) = refusals(FRAMES, image=square)
    assert "from a first frame to a last" in message
    assert refusals(TI2V, image=square, last_image=square) == ["sampling.last_image: Wan takes no last_image"]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"num_inference_steps": 4}, "was distilled to 3 steps"),
        ({"scheduler": {"flow_shift": 5.0}}, "steps are fixed, at the times 1000, 757, 522"),
        ({"guidance_scale": 5.0}, "ignores it"),
        ({"negative_prompt": "blurry"}, "ignores it"),
        ({"boundary_ratio": 0.5}, "ignores it"),
    ],
)
def test_a_distilled_checkpoint_s_steps_are_its_own(sampling, expected):
    (message,) = refusals(FAST, **sampling)
    assert expected in message


def test_a_sparse_checkpoint_is_refused_by_name_and_by_its_folder(distilled):
    for model in ("FastVideo/FastWan2.1-T2V-1.3B-Diffusers", distilled()):
        (message,) = refusals(model)
        assert "trained with sparse attention" in message and FAST in message
    assert sampled(distilled(expand_timesteps=True))["num_inference_steps"] == 3


def test_a_folder_s_boundary_is_its_default(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", "boundary_ratio": 0.4}))
    assert sampled(str(tmp_path))["boundary_ratio"] == 0.4
    assert sampled(str(tmp_path), boundary_ratio=0.6)["boundary_ratio"] == 0.6
    assert find_checkpoint(SMALL).family.configured_sampling({"index": {}}) == {}


def test_a_printed_plan_says_how_many_frames():
    loaded = load_recipe({"model": SMALL, "sampling": {"prompt": "x"}})
    assert "832x480x81, 50 steps" in render_plan(make_plan(loaded, run=RunOptions()))
