"""Scores by models, beside other ways to compute them."""

import numpy as np
import pytest
import torch
from PIL import Image
from profiling.tiny_judges import CHANNELS, KERNELS, SIDE, TOKENS, write_clip, write_lpips
from safetensors.numpy import load_file
from transformers import AutoTokenizer, CLIPModel

from difftool.errors import WeightsError
from difftool.planning.plan import QualityPlan
from difftool.profiling.judges import open_judges

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIP


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    return write_lpips(tmp_path_factory.mktemp("lpips") / "lpips.safetensors")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def judge(**files):
    (found,) = open_judges(QualityPlan(**{name: str(file) for name, file in files.items()}))
    return found


def pictures(height, width, seed=0):
    """Two that differ by noise."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(3, height, width, generator=generator)
    return first, (first + 0.2 * torch.randn(first.shape, generator=generator)).clamp(0, 1)


def windows(values, kernel, stride):
    """[C, H, W] -> [C, h, w, kernel, kernel]."""
    found = np.lib.stride_tricks.sliding_window_view(values, (kernel, kernel), axis=(1, 2))
    return found[:, ::stride, ::stride]


def features(weights, pixels):
    """What AlexNet has behind each of its five ReLUs, computed in double precision without torch."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    values = ((2 * pixels.double().numpy() - 1) - shift[:, None, None]) / scale[:, None, None]
    for number, (name, kernel) in enumerate(KERNELS.items()):
        if number in (1, 2):
            values = windows(values, 3, 2).max(axis=(3, 4))
        margin = 2 if number < 2 else 1
        padded = np.pad(values, ((0, 0), (margin, margin), (margin, margin)))
        seen = windows(padded, kernel, 1 if number else 4)
        made = np.einsum("chwij,ocij->ohw", seen, weights[f"{name}.weight"], optimize=True)
        values = np.maximum(made + weights[f"{name}.bias"][:, None, None], 0)
        yield values


def by_hand(file, made, reference):
    """The definition: squared differences of unit features, weighted by channel, averaged over the picture, summed."""
    weights = {name: tensor.astype(np.float64) for name, tensor in load_file(file).items()}
    found = 0.0
    for number, pair in enumerate(zip(features(weights, made), features(weights, reference), strict=True)):
        a, b = (one / (np.sqrt((one**2).sum(0)) + 1e-10) for one in pair)
        layer = weights[f"lin{number}.model.1.weight"].reshape(CHANNELS[number], 1, 1)
        found += ((a - b) ** 2 * layer).sum(0).mean()
    return found


@pytest.mark.parametrize("size", [(31, 31), (47, 64)])
def test_lpips_is_that_of_its_definition(lpips_file, size):
    made, reference = pictures(*size)
    found = judge(lpips=lpips_file).score(made, reference, "")
    assert found.values["lpips"] == pytest.approx(by_hand(lpips_file, made, reference), rel=1e-4)  # float32
    assert found.values["lpips"] > 0.01 and found.missing == ()


def test_equal_pictures_are_no_distance_apart(lpips_file):
    made, _ = pictures(40, 40)
    assert judge(lpips=lpips_file).score(made, made.clone(), "").values == {"lpips": 0.0}


def test_the_linear_layers_have_two_names_in_the_package_and_either_is_read(lpips_file, tmp_path):
    made, reference = pictures(40, 40)
    other = write_lpips(tmp_path / "other.safetensors", linear="lins.{}")
    scores = [judge(lpips=file).score(made, reference, "").values for file in (lpips_file, other)]
    assert scores[0] == scores[1]


def test_a_video_is_as_far_from_its_reference_as_its_frames_are_on_average(lpips_file):
    pairs = [pictures(32, 32, seed=seed) for seed in (1, 2)]
    made, reference = (torch.stack(frames, 1) for frames in zip(*pairs, strict=True))
    one = judge(lpips=lpips_file)
    each = [one.score(*pair, "").values["lpips"] for pair in pairs]
    assert one.score(made, reference, "").values["lpips"] == pytest.approx(sum(each) / 2)
    assert abs(each[0] - each[1]) > 1e-4


def test_what_lpips_cannot_see_is_missing(lpips_file):
    made, reference = pictures(30, 64)
    one = judge(lpips=lpips_file)
    assert one.score(made, reference, "").missing == ["lpips needs sides of 31 pixels"]
    assert one.score(made, None, "").missing == ["lpips has no reference to compare with"]


def test_pictures_of_other_channels_are_seen_by_nobody(lpips_file, clip_folder):
    made = torch.rand(4, 40, 40)
    for name, one in (("lpips", judge(lpips=lpips_file)), ("clip", judge(clip=clip_folder))):
        found = one.score(made, made, "a red cat")
        assert (found.values, found.missing) == ({}, [f"{name} sees pictures of three channels"])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"net.slice3.6.weight": None}, r"net.slice3.6.weight of shape \[384, 192, 3, 3\]"),
        ({"lin2.model.1.weight": torch.zeros(1, 256, 1, 1)}, r"lin2.model.1.weight of shape \[1, 384, 1, 1\]"),
        ({"net.slice1.0.bias": torch.zeros(64, dtype=torch.int8)}, r"net.slice1.0.bias of shape \[64\]"),
    ],
    ids=["missing", "of VGG", "whole numbers"],
)
def test_a_file_of_something_else_is_refused_before_anything_is_read(tmp_path, changes, name):
    file = write_lpips(tmp_path / "x.safetensors", **changes)
    with pytest.raises(WeightsError, match=f"is no LPIPS with AlexNet: it has no {name}"):
        judge(lpips=file)


def cosines(folder, prompt, *pixels):
    """By the whole model at once, of pictures that were made its input by hand: text and each picture, then those."""
    model = CLIPModel.from_pretrained(folder)
    inputs = []
    for one in pixels:
        rgb = (one.movedim(0, -1) * 255).round().byte().numpy()
        height, width = rgb.shape[:2]
        share = SIDE / min(height, width)
        small = Image.fromarray(rgb).resize((int(width * share), int(height * share)), Image.Resampling.BICUBIC)
        left, top = (small.width - SIDE) // 2, (small.height - SIDE) // 2
        cut = np.asarray(small.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
        inputs.append(torch.from_numpy((cut - np.float32(MEAN)) / np.float32(DEVIATION)).movedim(-1, 0))
    tokens = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").input_ids
    if tokens.shape[1] > TOKENS:  # the first ones, and the mark of the end
        tokens = torch.cat([tokens[:, : TOKENS - 1], tokens[:, -1:]], 1)
    with torch.inference_mode():
        seen = model(input_ids=tokens, pixel_values=torch.stack(inputs))
        text = (seen.logits_per_image / model.logit_scale.exp())[:, 0].tolist()
        return text, float(torch.cosine_similarity(*seen.image_embeds, dim=0))


@pytest.mark.parametrize("prompt", ["a red cat", "a prompt of many more characters than it reads"])
def test_clip_compares_with_the_prompt_and_with_the_reference(clip_folder, prompt):
    made, reference = pictures(48, 72)
    made[:, :, :36] = 0.1
    text, alike = cosines(clip_folder, prompt, made, reference)
    found = judge(clip=clip_folder).score(made, reference, prompt).values
    assert found == {"clip": pytest.approx(text[0], abs=1e-5), "clip_image": pytest.approx(alike, abs=1e-5)}
    assert abs(text[0] - text[1]) > 1e-4 and alike < 0.9999


def test_without_a_reference_clip_compares_with_the_prompt_alone(clip_folder):
    made, reference = pictures(32, 32)
    one = judge(clip=clip_folder)
    assert one.score(made, None, "a red cat").values == {"clip": one.score(made, reference, "a red cat").values["clip"]}


def test_clip_of_other_weights_than_its_config_s_is_refused_before_anything_is_read(tmp_path):
    folder = write_clip(tmp_path)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"projection_dim": 16', '"projection_dim": 8'))
    with pytest.raises(WeightsError, match="has shape"):
        judge(clip=folder)
