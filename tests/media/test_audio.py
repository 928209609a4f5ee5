"""Sound as files: samples, channels and rate read back; the same bytes every time; the recipe inside."""

import io
import wave

import numpy as np
import pytest
import torch
from media.reading import embedded

from difftool.media.audio import WRITERS
from difftool.media.save import save_item
from difftool.media.writer import Details, metadata_text
from difftool.planning.make import make_plan
from difftool.planning.naming import reserve
from difftool.planning.outputs import RunOptions
from difftool.recipe.embedded import read_embedded
from difftool.recipe.load import load_recipe

INSIDE = {"recipe": {"sampling": {"prompt": "ein Ton 音", "seed": 7}}, "versions": {}}
DETAILS = Details(metadata=metadata_text(INSIDE), sample_rate=44100)
STEREO = torch.rand(2, 1001, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("sound", [STEREO, STEREO[:1]])
def test_wav_holds_the_samples_in_16_bits(sound):
    data = WRITERS["wav"].encode(sound, DETAILS)
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (len(sound), 44100, 2)
        values = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, len(sound)).T
    assert np.abs(values / 32767 - sound.numpy()).max() <= 0.5 / 32767 + 1e-6  # half a step of 16 bits
    assert len(data) - 8 == int.from_bytes(data[4:8], "little")


def test_values_beyond_the_range_are_clipped_and_do_not_wrap():
    data = WRITERS["wav"].encode(torch.tensor([[1.5, -1.5, 0.0]]), Details(sample_rate=8000))
    assert np.frombuffer(data[-6:], "<i2").tolist() == [32767, -32767, 0]


def test_sound_is_deterministic_reads_back_and_carries_its_recipe():
    data = WRITERS["wav"].encode(STEREO, DETAILS)
    assert data == WRITERS["wav"].encode(STEREO, DETAILS)
    WRITERS["wav"].check(data, STEREO, DETAILS)
    assert embedded(data) == INSIDE
    assert embedded(WRITERS["wav"].encode(STEREO, Details(sample_rate=44100))) is None


@pytest.mark.parametrize(
    ("sound", "rate", "words"),
    [(STEREO[:, 1:], 44100, "channels and samples"), (STEREO, 48000, "its sample rate is 44100, not 48000")],
)
def test_a_file_that_differs_does_not_pass_the_check(sound, rate, words):
    with pytest.raises(ValueError, match=words):
        WRITERS["wav"].check(WRITERS["wav"].encode(STEREO, DETAILS), sound, Details(sample_rate=rate))


@pytest.mark.parametrize("left", [10, 30, 1000])
def test_a_sound_cut_short_does_not_pass_the_check(left):
    with pytest.raises(ValueError):
        WRITERS["wav"].check(WRITERS["wav"].encode(STEREO, DETAILS)[:left], STEREO, DETAILS)


def test_an_item_that_is_a_sound_is_saved_with_its_recipe_and_raw_values(tmp_path):
    run = RunOptions(output_dir=str(tmp_path), return_frames=True)
    made = make_plan(load_recipe({"model": "builtin:shapes-image", "sampling": {"prompt": "a bell"}}), run=run)
    plan = made.model_copy(update={"output": made.output.model_copy(update={"format": "wav"})})
    path = tmp_path / reserve(plan, "run")[0]
    saved = save_item(plan, plan.items[0], STEREO, path, replace=False, sample_rate=44100)
    assert [(file.path.name, file.width, file.height) for file in saved] == [
        ("a_bell-42.wav", None, None),
        ("a_bell-42.npz", None, None),
    ]
    assert read_embedded(saved[0].path, "x").recipe["sampling"]["prompt"] == "a bell"
    raw = np.load(saved[1].path)
    assert np.array_equal(raw["audio"], STEREO.numpy()) and int(raw["sample_rate"]) == 44100
