"""What is no picture is found, and what is one is left alone."""

import pytest
import torch

from difftool.builtin import shapes, shapes_video
from difftool.profiling.tripwires import find_tripwires

SIZE = {"height": 64, "width": 64}


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def drawn(scene: shapes.Scene) -> torch.Tensor:
    return torch.from_numpy(shapes.render(scene)).movedim(-1, 0) / 255


def with_a_nan() -> torch.Tensor:
    pixels = drawn(shapes.scenes(held_out=True)[0])
    pixels[1, 3, 5] = torch.nan
    return pixels


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (with_a_nan(), ["nan"]),
        (torch.full((3, 64, 64), torch.inf), ["nan"]),
        (torch.zeros(3, 64, 64), ["black"]),
        (torch.rand(3, 64, 64) / 255, ["black"]),
        (torch.full((3, 64, 64), 0.5), ["constant"]),
        (torch.tensor([0.9, 0.1, 0.4])[:, None, None].expand(3, 64, 64), ["constant"]),
        (noise(3, 64, 64), ["noise"]),
        (noise(3, 48, 64), ["size", "noise"]),
    ],
)
def test_what_is_no_picture_is_found(made, found):
    assert find_tripwires(made, SIZE) == found


def test_every_picture_of_the_built_in_world_passes():
    assert [scene for scene in shapes.scenes(held_out=True) if find_tripwires(drawn(scene), SIZE)] == []


def test_faint_grain_on_a_plain_picture_is_no_noise():
    assert find_tripwires(0.8 + 0.05 * noise(3, 64, 64), SIZE) == []


def test_stripes_are_no_noise_though_one_way_every_pixel_differs():
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(3, 64, 64)
    assert find_tripwires(stripes, SIZE) == []


def test_a_video_has_the_frames_that_were_asked_for_and_most_of_them_show_something():
    clip = torch.from_numpy(shapes_video.render(shapes_video.motions(held_out=True)[0])).movedim(-1, 0) / 255
    size = {"height": 32, "width": 32, "num_frames": 9}
    assert find_tripwires(clip, size) == []
    assert find_tripwires(clip[:, :8], size) == ["frames"]
    clip[:, :4] = 0
    assert find_tripwires(clip, size) == []
    clip[:, :5] = 0
    assert find_tripwires(clip, size) == ["black"]
    clip[:] = noise(*clip.shape)
    assert find_tripwires(clip, size) == ["noise"]


def test_without_a_size_asked_for_any_is_right():
    assert find_tripwires(drawn(shapes.scenes(held_out=True)[0]), {"height": None, "num_frames": None}) == []


def test_sound_has_no_size_and_may_be_noise_but_not_silent():
    assert find_tripwires(noise(2, 1000), SIZE) == []
    assert find_tripwires(torch.zeros(2, 1000), SIZE) == ["constant"]
