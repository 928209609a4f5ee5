"""Quantized denoisers of every family: near the plain ones, in less memory, alone and on several ranks."""

import pytest
import torch
from families.cases import CASES
from families.predicted import cost_of
from families.running import assemble_case, split_along
from families.test_anatomy import KNOWN
from families.transformed import copied, distance, latents, lists_of, quantize
from pytest import mark, param

from difftool.acceleration.blocks import block_chains
from difftool.anatomy import Request
from difftool.parallel.mesh import Line
from difftool.parallel.tensor import cut_model
from difftool.planning.quantizing import quantized_layers

# of the norm of the latents after the full schedule. A number of fp8 is up to 1/16 off and one of int8 1/254 of the
# largest of its row; the tiny models are at most a quarter of that from the plain ones
LIMITS = {"fp8": 1 / 32, "int8": 1 / 127}
DYNAMIC = [{"name": "fp8"}, {"name": "int8"}]
WEIGHTS = [{"name": "fp8", "activations": "none", "granularity": "per_tensor"}, {"name": "int8", "activations": "none"}]


def first_cases(axis="dp"):
    """The first case of each family that can be split along an axis."""
    found = {}
    for case in split_along(axis):
        found.setdefault(case.family, case)
    return list(found.values())


@pytest.mark.parametrize("options", [*DYNAMIC, *WEIGHTS], ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("case", first_cases(), ids=lambda case: case.name)
def test_a_quantized_denoiser_is_smaller_and_near_the_plain_one(case, options):
    assembled = assemble_case(case.name)
    other = copied(assembled)
    said = quantize(other, options)
    found = distance(latents(other), latents(assembled))
    assert 0 < found < LIMITS[options["name"]]
    for name, record in said.items():
        plain, model = getattr(assembled.components, name), getattr(other.components, name)
        before, after = (sum(p.nbytes for p in each.parameters()) for each in (plain, model))
        in_blocks = sum(p.nbytes for p in blocks_of(assembled, plain) if p.ndim == 2)
        assert record["bytes"] == {"before": before, "after": after} and before - after > in_blocks / 2
        assert record["layers"] > 8 and model.dtype == plain.dtype == torch.float32


def blocks_of(assembled, model):
    """The parameters of a denoiser's blocks."""
    chains = block_chains(model, lists_of(assembled))
    return [p for chain in chains for block in chain.values() for p in block.parameters()]


def layouts():
    """Each family's first case; Ulysses and tensor parallel at once only once in the quick tests."""
    for axis in ("tp", "ulysses"):
        for case in first_cases(axis):
            quick = case.family in ("flux1", "wan")
            yield param(case.name, {axis: 2}, id=f"{case.name}-{axis}", marks=() if quick else mark.slow)
    yield param("qwenimage", {"ulysses": 2, "tp": 2}, id="qwenimage-ulysses-tp", marks=mark.slow)


@pytest.mark.parametrize(("name", "degrees"), list(layouts()))
@pytest.mark.parametrize("options", DYNAMIC, ids=lambda o: o["name"])
def test_each_rank_quantizes_what_it_has(ranks, saved, name, degrees, options):
    world = degrees.get("ulysses", 1) * degrees.get("tp", 1)
    arguments = {"case": name, "folder": str(saved(name)), "degrees": degrees, "options": options}
    answers = ranks.run("families.transformed:quantized", world=world, **arguments)
    for answer in answers:
        assert 0 < answer["distance"] < LIMITS[options["name"]]
        assert (answer["summed"] > 0) == ("tp" in degrees)
    assert len({answer["sum"] for answer in answers}) == 1  # they draw the same picture


def test_modulations_put_together_may_be_quantized_too(ranks, saved):
    arguments = {"case": "flux1-dev", "folder": str(saved("flux1-dev")), "degrees": {"tp": 2}}
    for answer in ranks.run("families.transformed:quantized", world=2, **arguments, options={"name": "int8"}):
        assert answer["gathered"] == 2 * 2 + 2  # of both streams of two double blocks, and of two single ones


def published():
    """Every known checkpoint, whole and as two ranks have it; the first one of a family is in the quick tests."""
    seen = set()
    for facts, checkpoint in KNOWN:
        for ranks in (1, 2):
            marks = mark.slow if ranks > 1 or facts.name in seen else ()
            yield param(facts, checkpoint, ranks, id=f"{checkpoint.hub_id}-{ranks}", marks=marks)
        seen.add(facts.name)


@pytest.mark.parametrize(("facts", "checkpoint", "ranks"), list(published()))
def test_a_plan_counts_the_layers_and_bytes_of_a_published_denoiser(facts, checkpoint, ranks):
    case = next(case for case in CASES if case.family == facts.name)
    kind, config = type(assemble_case(case.name).components.transformer), assemble_case(case.name).config
    with torch.device("meta"):
        transformer = kind(**checkpoint.transformer)
    if ranks > 1:
        cut_model(transformer, config.tensor, Line(tuple(range(ranks)), 1), key="parallel.tp", name="transformer")
    kept = set(kind._keep_in_fp32_modules or ())
    (chain,) = block_chains(transformer, config.sequence.blocks)
    layers, every = (
        [layer for block in blocks for layer in linears(block, kept)]
        for blocks in (list(chain.values())[2:-1], chain.values())
    )
    anatomy = cost_of(facts).anatomy(
        checkpoint.configs, Request({**facts.sampling, **checkpoint.sampling, "extra": {}})
    )
    asked = {"name": "int8", "keep_first_blocks": 2, "keep_last_blocks": 1}
    found = quantized_layers(anatomy, asked, 2, ranks, ranks - 1)
    assert found.layers == len(layers) and not found.at_most
    assert found.of == len(every)
    assert found.saved == sum(layer.weight.numel() - 4 * layer.weight.shape[0] for layer in layers)


def linears(block, kept):
    """The linear layers of a block that its model does not keep in fp32."""
    named = ((name, layer) for name, layer in block.named_modules() if isinstance(layer, torch.nn.Linear))
    return [layer for name, layer in named if not kept & set(name.split("."))]
