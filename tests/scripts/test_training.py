"""The trainer of the built-in model: a stage that was interrupted goes on exactly, and its export runs."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def trainer(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import train_shapes

    yield train_shapes
    for name in ("train_shapes", "shapes_model", "shapes_training"):
        sys.modules.pop(name, None)


def train_line(trainer, folder, *, stop_at=None):
    """Fits a small network to noise that depends on the step alone; the final weights."""
    torch.manual_seed(3)
    model = nn.Linear(4, 4)
    optimisers = [trainer.Muon([model.weight], 1e-2, trainer.Rank(0, 1)), torch.optim.AdamW([model.bias], 1e-2)]

    def loss_at(step):
        if step == stop_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(step)
        return (model(torch.randn(8, 4, generator=generator)) - torch.randn(8, 4, generator=generator)).square().mean()

    folder.mkdir(exist_ok=True)
    trainer.fit(
        "line", folder, trainer.Rank(0, 1), steps=12, modules=model, optimisers=optimisers,
        rate=trainer.linear_decay(12, warmup=3), loss_at=loss_at, decay=0.9,
    )  # fmt: skip
    return torch.load(folder / "line.pt", weights_only=True)


def test_an_interrupted_stage_goes_on_to_the_same_weights(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_S", 0)
    whole = train_line(trainer, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_line(trainer, tmp_path / "parts", stop_at=7)
    resumed = train_line(trainer, tmp_path / "parts")
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert not (tmp_path / "parts" / "line.ckpt").exists()


def test_muon_steps_are_orthogonal_and_of_the_stated_size(trainer):
    weight = nn.Parameter(torch.zeros(8, 32))
    weight.grad = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    trainer.Muon([weight], 1.0, trainer.Rank(0, 1)).step()
    singular = torch.linalg.svdvals(weight.detach() / (0.2 * 32**0.5))
    assert singular.min() > 0.5 and singular.max() < 1.5  # four Newton-Schulz steps: near one, not at it


def test_a_short_training_exports_a_checkpoint_that_stock_diffusers_runs(trainer, tmp_path):
    from diffusers import FluxPipeline

    settings = trainer.Settings(
        vae_crop_steps=1, vae_crop_batch=2, vae_steps=1, vae_batch=2, latent_images=50, steps=1, batch=4,
        decoder_steps=1, decoder_batch=2, compose_steps=1,
    )  # fmt: skip
    trainer.run(0, 1, tmp_path, settings, list(trainer.STAGES))
    folder = tmp_path / "shapes-image"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8_000_000
    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert {module.dtype for module in (pipe.transformer, pipe.vae, pipe.text_encoder_2)} == {torch.float32}
    picture = pipe("a red circle", height=64, width=64, num_inference_steps=1, max_sequence_length=12).images[0]
    assert picture.size == (64, 64)
