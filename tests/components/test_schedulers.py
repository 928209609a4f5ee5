"""The time shift for a length is that of the pipelines of diffusers, to the bit."""

import pytest
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from difftool.components.schedulers import shift_by_length

OTHER = {"base_image_seq_len": 1024, "max_image_seq_len": 9000, "base_shift": 0.95, "max_shift": 2.05}


@pytest.mark.parametrize("tokens", [16, 256, 1517, 4096, 40_000])
def test_a_length_has_the_shift_that_diffusers_gives_it(tokens):
    assert shift_by_length({}, tokens) == calculate_shift(tokens)
    assert shift_by_length({}, tokens, max_shift=1.16) == calculate_shift(tokens, max_shift=1.16)
    assert shift_by_length(OTHER, tokens, max_shift=1.16) == calculate_shift(tokens, *OTHER.values())
