"""A denoiser's cost follows from its family's description: parameters and FLOPs are those of the class itself."""

from dataclasses import replace

import pytest
import torch
from families.cases import CASES
from families.predicted import as_seen, asked_for, cost_of, own_configs
from families.running import assemble_case, batch_for, context_for
from families.split import observed, prepared
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from difftool.anatomy import Request
from difftool.facts import SEQUENCE
from difftool.families.index import all_families
from difftool.parallel.mesh import Line
from difftool.parallel.tensor import cut_model
from difftool.planning.communication import forwards

COSTED = [facts for facts in all_families() if facts.cost is not None]
KNOWN = [(facts, checkpoint) for facts in COSTED for checkpoint in facts.checkpoints]
NAMES = {facts.name for facts in COSTED}
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attention_flops(query, key, value, *rest, out_shape=None, **named):
    return sdpa_flop_count(query, key, value)


def test_every_family_that_splits_tokens_says_what_it_costs():
    assert [facts.name for facts in all_families() if {*SEQUENCE} & {*facts.axes} and facts.name not in NAMES] == []


@pytest.mark.parametrize(("facts", "checkpoint"), KNOWN, ids=[checkpoint.hub_id for _, checkpoint in KNOWN])
def test_a_published_denoiser_has_the_parameters_of_its_class(facts, checkpoint):
    case = next(case for case in CASES if case.family == facts.name)
    kind = type(assemble_case(case.name).components.transformer)
    with torch.device("meta"):
        transformer = kind(**checkpoint.transformer)
    values = {**facts.sampling, **checkpoint.sampling, "extra": {}}
    anatomy = cost_of(facts).anatomy(checkpoint.configs, Request(values))
    assert anatomy.parameters() == sum(parameter.numel() for parameter in transformer.parameters())
    kept = set(kind._keep_in_fp32_modules or ())
    sizes = [(4 if kept & set(name.split(".")) else 2) * p.numel() for name, p in transformer.named_parameters()]
    assert anatomy.weight_bytes(2) == sum(sizes)
    for block in anatomy.blocks:
        if block.name:
            modules = [m for m in transformer.get_submodule(block.name) if size_of(m) == block.parameters()]
            assert len(modules) == block.count, block.name


@pytest.mark.parametrize(("facts", "checkpoint"), KNOWN, ids=[checkpoint.hub_id for _, checkpoint in KNOWN])
def test_a_rank_has_the_parameters_that_tensor_parallel_leaves_it(facts, checkpoint):
    case = next(case for case in CASES if case.family == facts.name)
    kind, config = type(assemble_case(case.name).components.transformer), assemble_case(case.name).config
    anatomy = cost_of(facts).anatomy(
        checkpoint.configs, Request({**facts.sampling, **checkpoint.sampling, "extra": {}})
    )
    for ranks, index in ((2, 0), (2, 1)):
        with torch.device("meta"):
            transformer = kind(**checkpoint.transformer)
        cut_model(transformer, config.tensor, Line(tuple(range(ranks)), index), key="parallel.tp", name="transformer")
        assert anatomy.weight_bytes(4, ranks, index) == 4 * size_of(transformer)


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("case", [case for case in CASES if case.family in NAMES], ids=lambda case: case.name)
def test_a_forward_has_the_flops_that_torch_counts(case):
    assembled = assemble_case(case.name)
    transformer = assembled.components.transformer
    batch, counted = batch_for(assembled), []
    if transformer.config.get("added_kv_proj_dim"):
        batch = replace(batch, max_sequence_length=512)  # diffusers finds the picture's tokens before these

    def begin(module, args):
        if not counted:
            counted.append(FlopCounterMode(display=False, custom_mapping={FLASH: attention_flops}).__enter__())

    def end(module, args, made):
        if len(counted) == 1:
            counted[0].__exit__(None, None, None)
            counted.append(counted[0].get_total_flops())

    hooks = [transformer.register_forward_pre_hook(begin), transformer.register_forward_hook(end)]
    try:
        observed(assembled, batch, context_for(assembled))
    finally:
        for hook in hooks:
            hook.remove()
    batch = prepared(assembled, batch, context_for(assembled))
    asked = asked_for(assembled, batch)
    first = forwards(cost_of(assembled.config.facts), own_configs(assembled), asked, joined=True)[0]
    assert counted[1] == first.samples * as_seen(first.anatomy, batch).flops()
