"""Compiled modules of every family do what they do uncompiled, alone and on several ranks.

Graphs are traced and guarded as ever, and run as they are: by torch's own kernels, so that results are equal.
"""

import pytest
import torch
from families.running import assemble_case
from families.split import denoisers
from families.test_quantization import first_cases
from families.transformed import compile_denoisers, compile_parts, copied, latents, pixels, quantize
from pytest import mark, param
from torch._dynamo.utils import counters


def cases(*quick):
    """The first case of every family; all but these are slow."""
    return [param(case, id=case.name, marks=() if case.name in quick else mark.slow) for case in first_cases()]


@pytest.mark.parametrize("case", cases("ltx", "zimage"))
def test_a_block_is_one_graph_for_all_blocks_of_its_class(case):
    assembled = assemble_case(case.name)
    other = copied(assembled)
    counters.clear()
    said = compile_denoisers(other, "regional")
    assert torch.equal(latents(other), latents(assembled))
    graphs, expected = counters["stats"]["unique_graphs"], 0
    for model in denoisers(other):
        blocks = [block for name in other.config.sequence.blocks for block in model.get_submodule(name)]
        expected += len({type(block) for block in blocks})
        assert said["transformer"] == {"mode": "regional", "modules": len(blocks), "fullgraph": True}
    # blocks of a class may differ in what they are made of, such as the last one
    assert 0 < graphs <= expected + 2 and not counters["graph_break"]
    latents(other)
    assert counters["stats"]["unique_graphs"] == graphs  # another request needs none


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ltx", "wan21-t2v"])  # of both kinds: a loop remembers parts of the first
def test_a_whole_denoiser_is_compiled_once(name):
    assembled = assemble_case(name)
    other = copied(assembled)
    counters.clear()
    compile_denoisers(other, "full")
    assert torch.equal(latents(other), latents(assembled))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    latents(other)
    assert counters["stats"]["unique_graphs"] == graphs


def parts():
    """Encoders and decoders of unlike classes, most of them slow."""
    for name, role, modes in (
        ("ltx", "text_encoding", ("regional", "full")),
        ("ltx", "decoding", ("regional", "full")),
        ("flux1-dev", "text_encoding", ("regional", "full")),
        ("qwenimage", "text_encoding", ("regional",)),
        ("wan21-t2v", "decoding", ("full",)),
    ):
        for mode in modes:
            marks = () if (name, mode) == ("ltx", "full") else mark.slow
            yield param(name, role, mode, id=f"{name}-{role}-{mode}", marks=marks)


@pytest.mark.parametrize(("name", "role", "mode"), list(parts()))
def test_encoders_and_decoders_are_compiled_too(name, role, mode):
    assembled = assemble_case(name)
    other = compile_parts(assembled, role, mode)
    counters.clear()
    assert torch.equal(pixels(other), pixels(assembled))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    pixels(other)
    assert counters["stats"]["unique_graphs"] == graphs


LAYOUTS = {
    "ulysses": {"degrees": {"ulysses": 2}},
    "ring": {"degrees": {"ring": 2}},
    "hsdp": {"degrees": {"dp": 2}, "sharing": 2},
    "tp": {"degrees": {"tp": 2}},
    "tp-fp8": {"degrees": {"tp": 2}, "options": {"name": "fp8"}},
    "tp-full": {"degrees": {"tp": 2}, "mode": "full"},
    "ulysses-full": {"degrees": {"ulysses": 2}, "mode": "full"},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_ranks_that_share_a_compiled_denoiser_do_what_they_do_without(ranks, saved, layout):
    asked = {"case": "ltx", "folder": str(saved("ltx")), "mode": "regional", **layout}
    answers = ranks.run("families.transformed:compiled", world=2, timeout_s=900, **asked)
    for answer in answers:
        assert answer["equal"] and answer["again"] and answer["graphs"] > 0 and answer["more graphs"] == 0


@pytest.mark.parametrize("options", [{"name": "fp8"}, {"name": "int8", "activations": "none"}], ids=lambda o: o["name"])
def test_quantized_layers_are_part_of_a_block_s_graph(options):
    assembled = assemble_case("zimage")
    plain, other = copied(assembled), copied(assembled)
    for each in (plain, other):
        quantize(each, options)
    counters.clear()
    compile_denoisers(other, "regional")
    assert torch.equal(latents(other), latents(plain))
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]
