"""`scripts/tap.py` compares every value with diffusers, and marks the first that differs."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from difftool.families.flux1.model import Flux1Config

SHORT = ["builtin:shapes-image", "-p", "a red circle", "--set", "sampling.num_inference_steps=2"]


@pytest.fixture
def main(monkeypatch):
    """The script's main, with the thread count put back afterwards."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    before = torch.get_num_threads()
    yield importlib.import_module("tap").main
    torch.set_num_threads(before)


def test_a_family_at_parity_differs_nowhere(main, tmp_path, capsys):
    assert main([*SHORT, "--save", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("values compared, 0 differ")
    for place in ("text_encoder[0].in.0", "transformer[3].out.0", "scheduler.step[1].out.0", "vae.decode[0].out.0"):
        assert any(place in line and "0.0e+00" in line for line in lines), place
    with np.load(tmp_path / "ours.npz") as ours, np.load(tmp_path / "diffusers.npz") as theirs:
        assert set(ours.files) == set(theirs.files) and np.array_equal(ours["pixels[0].out"], theirs["pixels[0].out"])


def test_the_first_difference_is_where_the_arithmetic_is_wrong(main, monkeypatch, capsys):
    def forgets_the_scale(self, found, batch, i):
        return found["positive"]

    monkeypatch.setattr(Flux1Config, "combine", forgets_the_scale)
    assert main(SHORT) == 1
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("->"))
    assert "scheduler.step[0].in.0" in first


def test_a_recipe_that_diffusers_runs_itself_has_nothing_to_compare(main, capsys):
    assert main([*SHORT, "--set", "model.backend=diffusers"]) == 1
    assert "is run by diffusers itself" in capsys.readouterr().err
