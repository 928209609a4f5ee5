"""The trainer of the built-in models: a stage that was interrupted goes on exactly, and its exports run."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from difftool.builtin.shapes_video import motions, render

SCRIPTS = Path(__file__).parents[2] / "scripts"
MODULES = ("evaluate_shapes", "shapes_image_model", "shapes_text", "shapes_training", "shapes_video_model")
SHORT = {
    "vae_crop_steps": 1, "vae_crop_batch": 2, "vae_steps": 1, "vae_batch": 2, "latent_samples": 50, "steps": 1,
    "batch": 4, "decoder_steps": 1, "decoder_batch": 2, "compose_steps": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in ("train_shapes", *MODULES):
        sys.modules.pop(name, None)


@pytest.fixture
def trainer():
    import train_shapes

    return train_shapes


@pytest.fixture
def training():
    import shapes_training

    return shapes_training


def train_line(training, folder, *, stop_at=None):
    """Fits a small network to noise that depends on the step alone; the final weights."""
    torch.manual_seed(3)
    model = nn.Linear(4, 4)
    rank = training.Rank(0, 1)
    optimisers = [training.Muon([model.weight], 1e-2, rank), torch.optim.AdamW([model.bias], 1e-2)]

    def loss_at(step):
        if step == stop_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(step)
        return (model(torch.randn(8, 4, generator=generator)) - torch.randn(8, 4, generator=generator)).square().mean()

    folder.mkdir(exist_ok=True)
    training.fit(
        "line", folder, rank, steps=12, modules=model, optimisers=optimisers,
        rate=training.linear_decay(12, warmup=3), loss_at=loss_at, decay=0.9,
    )  # fmt: skip
    return torch.load(folder / "line.pt", weights_only=True)


def test_an_interrupted_stage_goes_on_to_the_same_weights(training, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_S", 0)
    whole = train_line(training, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_line(training, tmp_path / "parts", stop_at=7)
    resumed = train_line(training, tmp_path / "parts")
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert not (tmp_path / "parts" / "line.ckpt").exists()


def test_muon_steps_are_orthogonal_and_of_the_stated_size(training):
    weight = nn.Parameter(torch.zeros(8, 32))
    weight.grad = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    training.Muon([weight], 1.0, training.Rank(0, 1)).step()
    singular = torch.linalg.svdvals(weight.detach() / (0.2 * 32**0.5))
    assert singular.min() > 0.5 and singular.max() < 1.5  # four Newton-Schulz steps: near one, not at it


def test_words_are_left_out_closed_up_and_padded(trainer, training):
    model = trainer.MODELS["shapes-video"]()
    caption, without = "a red circle moving left", "a circle moving left"
    ids = model.tokenise([caption])["t5"].repeat(400, 1)
    kept = training.omit_words(ids, model.tokenizers["t5"], [["red", "blue"]], 0.25, np.random.default_rng(0))
    left_out = (kept != ids).any(1)
    assert 70 < left_out.sum() < 130
    assert torch.equal(kept[left_out].unique(dim=0), model.tokenise([without])["t5"])


@pytest.mark.parametrize("name", ["shapes-image", "shapes-video"])
def test_a_short_training_exports_a_checkpoint_that_stock_diffusers_runs(trainer, tmp_path, name):
    from diffusers import DiffusionPipeline

    model = trainer.MODELS[name]
    trainer.run(0, 1, name, tmp_path, replace(model.settings, **SHORT), list(trainer.STAGES))
    folder = tmp_path / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8_000_000
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}
    values = {key: value for key, value in model.sampling.items() if key != "fps"} | {"num_inference_steps": 1}
    made = pipe("a red circle", output_type="np", return_dict=False, **values)[0]
    assert made.shape[-3:] == (model.sampling["height"], model.sampling["width"], 3)


def test_clips_are_coded_in_one_pass_as_the_stock_class_codes_them(trainer):
    model = trainer.MODELS["shapes-video"]()
    torch.manual_seed(0)
    vae, clips = model.build_vae().eval(), torch.rand(2, 3, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        stock, whole = vae.encode(clips).latent_dist, model.encode(vae, clips)
        torch.testing.assert_close(whole.parameters, stock.parameters)
        decoded = model.decode(vae, 100 * stock.mean)  # far enough to see the clamp
        assert decoded.abs().max() > 1
        torch.testing.assert_close(decoded.clamp(-1, 1), vae.decode(100 * stock.mean).sample)


def test_clips_are_measured_as_they_are():
    import evaluate_shapes

    pairs = evaluate_shapes.draw_pairs(motions(held_out=True), 8, 1)
    assert len({seed for _, seed in pairs}) == 8
    clips = [render(motion) for motion, _ in pairs]
    found = evaluate_shapes.measure_clips(pairs, clips)
    assert (found["colour_shape_and_direction"], found["direction"], found["wrong"]) == (1, 1, {})
    back = evaluate_shapes.measure_clips(pairs, [*clips[:6], *(clip[::-1] for clip in clips[6:])])
    assert (back["colour_shape_and_direction"], back["direction"], back["colour"]) == (0.75, 0.75, 1)
    assert sum(back["wrong"].values()) == 2
