"""What is LTX-Video's own: an optional first frame, a decoder that may take a timestep, and its sizes."""

import json

import pytest
import torch
from families.branches import joint_and_separate, part_in_a_million
from families.cases.case import picture
from families.planned import refusals, sampled
from families.running import assemble_case, batch_for, run_ours

from difftool.planning.checkpoint import find_checkpoint

LTX = "Lightricks/LTX-Video"


@pytest.mark.parametrize("name", ["ltx", "ltx-from-picture"])
def test_both_branches_in_one_forward_equal_two_forwards(name, monkeypatch):
    assembled = assemble_case(name)
    joint, separate = joint_and_separate(assembled, batch_for(assembled), monkeypatch)
    torch.testing.assert_close(separate, joint, rtol=0, atol=part_in_a_million(joint))


def test_a_first_frame_stays_as_it_is_through_every_step():
    assembled = assemble_case("ltx-from-picture")
    steps = run_ours(assembled, batch_for(assembled))[0]
    tokens = 2 * 2  # of one frame
    assert all(torch.equal(latents[:, :tokens], steps[0][:, :tokens]) for latents in steps)
    assert not torch.equal(steps[1][:, tokens:], steps[0][:, tokens:])


def test_the_shortest_recipe_runs_as_the_reference_does():
    values, checkpoint = sampled(LTX), find_checkpoint(LTX, None, None)
    assert checkpoint.pipeline.task(checkpoint.configs) == "ti2v"
    keys = ("width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale")
    assert [values[key] for key in keys] == [704, 512, 161, 25, 50, 3.0]


def test_without_a_size_the_picture_s_shape_decides(tmp_path):
    picture(300, 600).image.save(tmp_path / "tall.png")
    values = sampled(LTX, image=str(tmp_path / "tall.png"))
    assert (values["width"], values["height"]) == (416, 864)


BAD = [
    ({"height": 500}, "sampling.height=500 is not a multiple of 32; nearest: 480, 512"),
    ({"num_frames": 160}, "sampling.num_frames=160 is not 8k + 1; nearest: 153, 161"),
    (
        {"num_inference_steps": 1},
        "sampling.num_inference_steps=1: the schedule is stretched from its first step to its last; 2 at least",
    ),
    (
        {"extra": {"decode_timestep": 0.05}},
        "sampling.extra.decode_timestep: this checkpoint's VAE has no timestep_conditioning and ignores it",
    ),
    (
        {"extra": {"guidance_rescale": 0.7}, "guidance_scale": 1.0},
        "sampling.extra.guidance_rescale: ignored at guidance_scale=1.0; set guidance_scale above 1",
    ),
    ({"guidance_scale_2": 3.0}, "sampling.guidance_scale_2: LTX-Video has one transformer; use guidance_scale"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda value: "")
def test_what_would_be_ignored_or_fail_is_refused(values, message):
    assert refusals(LTX, **values) == [message]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as planning sees it, and what writes its VAE's config."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LTXPipeline"}))
    (tmp_path / "vae").mkdir()
    return tmp_path


def test_a_decoder_that_takes_a_timestep_takes_its_arguments(folder):
    (folder / "vae" / "config.json").write_text(json.dumps({"timestep_conditioning": True}))
    assert sampled(str(folder), extra={"decode_timestep": 0.05})["extra"] == {"decode_timestep": 0.05}


def test_a_decoder_that_draws_noise_without_a_seed_is_refused(folder):
    config = {"timestep_conditioning": True, "decoder_inject_noise": [False, True, True, True]}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    (message,) = refusals(str(folder))
    assert message.startswith("model.path: its VAE draws noise of its own while it decodes (decoder_inject_noise)")
