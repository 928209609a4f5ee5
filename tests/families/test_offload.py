"""Every family with its weights away while nothing needs them makes what it makes with all of them here."""

import copy
from dataclasses import replace

import pytest
import torch
from families.cases import CASES
from families.running import assemble_case, batch_for, context_for
from families.transformed import compile_denoisers, lists_of, quantize

from difftool.acceleration import offload
from difftool.components.loaded import Components
from difftool.facts import Applied
from difftool.platforms.base import current

QUICK, SLOW = ("flux1-dev", "wan22-t2v"), pytest.mark.slow  # the second has two denoisers
MODES = {
    "after_use": {"text_encoding": "after_use", "image_encoding": "after_use", "denoising": "after_use"},
    "module": {"text_encoding": "module", "image_encoding": "module", "denoising": "module"},
    "layerwise": {"text_encoding": "layerwise", "image_encoding": "layerwise", "denoising": "layerwise"},
}


def with_own_modules(assembled):
    """The case with modules that no other test has."""
    held = assembled.components.modules
    modules = {n: copy.deepcopy(m) if isinstance(m, torch.nn.Module) else m for n, m in held.items()}
    holder = copy.copy(assembled.components.holder)
    taken = {name: module for name, module in modules.items() if name in holder.components}
    holder.register_modules(**taken)
    return replace(assembled, components=Components(modules, holder))


def send_away(assembled, modes, *, decoding="after_use"):
    asked = Applied({role: {"name": name} for role, name in {**modes, "decoding": decoding}.items()})
    roles, given = assembled.config.roles, {"lists": lists_of(assembled), "pinned": True}
    named = Applied({role: mode for role, mode in asked.detail.items() if role in roles})
    return offload.apply(assembled.components, roles, named, current("cpu"), **given)


def pixels(assembled, away=None):
    ctx = context_for(assembled)
    ctx = ctx if away is None else replace(ctx, residence=away)
    with torch.no_grad():
        return assembled.pipeline(batch_for(assembled), ctx).pixels[0]


def empty(module):
    return not any(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", [c.name if c.name in QUICK else pytest.param(c.name, marks=SLOW) for c in CASES])
def test_pixels_are_the_same_wherever_the_weights_wait(name):
    assembled = assemble_case(name)
    expected = pixels(assembled)
    for modes in MODES.values():
        other = with_own_modules(assembled)
        applied, away = send_away(other, modes)
        assert torch.equal(pixels(other, away), expected)
        assert torch.equal(pixels(other, away), expected)
        waited = {name: getattr(other.components, name) for name in applied.detail}
        assert {"transformer", "vae"} <= waited.keys()
        if modes["denoising"] != "layerwise":
            assert all(map(empty, waited.values()))
        else:
            streamed = [block for name in lists_of(other) for block in waited["transformer"].get_submodule(name)]
            assert all(map(empty, streamed))
        assert all(moved["comings"] for name, moved in away.moved().items() if name != "text_encoder_3")


def test_blocks_that_are_compiled_or_quantized_stream_too():
    assembled = assemble_case("zimage")
    plain, other = with_own_modules(assembled), with_own_modules(assembled)
    for each in (plain, other):
        quantize(each, {"name": "int8"})
    compile_denoisers(other, "regional")
    _, away = send_away(other, {"denoising": "layerwise"})
    assert torch.equal(pixels(other, away), pixels(plain))
