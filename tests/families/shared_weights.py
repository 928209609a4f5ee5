"""What the ranks of the test pool run: a denoiser whose weights they share, and a whole one."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from families.predicted import predicted_traffic
from families.running import assemble_case, context_for
from families.split import as_lists, denoisers, observed, prepared, request_named
from families.test_loras import pairs
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from difftool.components.load import load_components
from difftool.components.loaded import Components, own_part
from difftool.components.lora import Active, LoraSet
from difftool.parallel import sequence, shard
from difftool.parallel.hsdp import ShardedWeights
from difftool.parallel.mesh import Mesh


def compare(world, *, case, folder, degrees, sharing, request="4 steps", dtype="float32"):
    """The latents after the full schedule, with weights read in parts and whole, and what this rank holds, as JSON."""
    assembled, ctx = assemble_case(case), context_for(assemble_case(case))
    batch, mesh, plan = (
        request_named(assembled, request),
        Mesh(degrees, world, sharing=sharing),
        assembled.config.sequence,
    )
    whole = loaded(assembled, folder, dtype, {})
    for parameter in (parameter for model in denoisers(whole) for parameter in model.parameters()):
        parameter.data = parameter.data.clone()  # out of the mapped file, where its place decides the last bits
    with ExitStack() as ends:
        for transformer in denoisers(whole) if mesh.sequence.degree > 1 else ():
            ends.callback(sequence.apply(transformer, plan, mesh))
        expected, _ = observed(whole, batch, replace(ctx, components=whole.components, mesh=mesh))
    mesh.forget_traffic()
    names = assembled.config.roles["denoising"]
    parted = loaded(assembled, folder, dtype, parts(assembled, mesh).makers)
    shard.apply(parted.components, names, mesh, plan)
    with watched(parted) as together:
        made, forwards = observed(parted, batch, replace(ctx, components=parted.components, mesh=mesh))
    return {
        "equal": torch.equal(made, expected),
        "difference": float((made - expected).abs().max() / expected.abs().max()),
        "dtypes": dtypes(parted) == dtypes(whole),
        "whole": sum(parameter.nbytes for model in denoisers(whole) for parameter in model.parameters()),
        "own": sum(own_part(parameter).nbytes for model in denoisers(parted) for parameter in model.parameters()),
        "allocated": sum(own_part(p).untyped_storage().nbytes() for m in denoisers(parted) for p in m.parameters()),
        "groups": [1 + sum(len(model.get_submodule(name)) for name in plan.blocks) for model in denoisers(parted)],
        "blocks": max(together),
        "forwards": len(forwards),
        "traffic": {name: [traffic.calls, traffic.bytes] for name, traffic in mesh.traffic().items()},
        "sent": as_lists(mesh.traffic()),
        "predicted": as_lists(
            predicted_traffic(
                assembled,
                prepared(assembled, batch, ctx),
                degrees,
                world.rank,
                hsdp=sharing,
                element=getattr(torch, dtype).itemsize,
            )
        ),
    }


@contextmanager
def watched(assembled):
    """How many blocks were whole, each time that one of them ran."""
    found = []
    with ExitStack() as ends:
        for model in denoisers(assembled):
            blocks = [block for name in assembled.config.sequence.blocks for block in model.get_submodule(name)]
            for block in blocks:
                count = partial(_whole, found, blocks)
                ends.callback(block.register_forward_pre_hook(count).remove)
        yield found


def _whole(found, blocks, *_):
    found.append(sum(not any(isinstance(p, DTensor) for p in block.parameters()) for block in blocks))


def merge(world, *, case, folder, scratch):
    """Whether a LoRA of every layer is the same in shared weights and in whole ones, and gone from both when asked."""
    assembled, mesh = assemble_case(case), Mesh({"dp": world.size}, world, sharing=world.size)
    names = assembled.config.roles["denoising"]
    shared = parts(assembled, mesh)
    whole, parted = loaded(assembled, folder, "bfloat16", {}), loaded(assembled, folder, "bfloat16", shared.makers)
    file = Path(scratch) / f"{world.rank}.safetensors"
    save_file(pairs(whole.components.transformer), file)
    base = state(whole)
    sets = [
        LoraSet(dict(modules), denoisers=names, original={}, shares=shares)
        for modules, shares in (
            ({"transformer": whole.components.transformer}, {}),
            ({"transformer": parted.components.transformer}, shared.made),
        )
    ]
    for loras in sets:
        loras.load("style", file)
        loras.set([Active("style", 0.7)])
    merged, found = state(whole), state(parted)
    for loras in sets:
        loras.unmerge()
    return {
        "changed": all(
            not torch.equal(merged[name], base[name])
            for name in base
            if name.endswith("weight") and base[name].ndim == 2
        ),
        "merged": all(torch.equal(found[name], value) for name, value in merged.items()),
        "restored": all(torch.equal(value, base[name]) for name, value in state(parted).items()),
    }


def state(assembled):
    """The denoiser's weights, put together."""
    named = assembled.components.transformer.named_parameters()
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).clone() for name, p in named}


def parts(assembled, mesh):
    """What this rank reads of each denoiser."""
    blocks = assembled.config.sequence.blocks
    share = partial(ShardedWeights, line=mesh.weights, blocks=blocks, device=torch.device("cpu"))
    return shard.Parts(dict.fromkeys(assembled.config.roles["denoising"], share))


def loaded(assembled, folder, dtype, shares):
    """The case with its denoisers read from a folder."""
    names = assembled.config.roles["denoising"]
    present = [name for name in names if getattr(assembled.components, name) is not None]
    read = load_components(
        present,
        None,
        Path(folder),
        optional=(),
        tokenizers=(),
        dtypes=dict.fromkeys(present, getattr(torch, dtype)),
        device=torch.device("cpu"),
        loaded=lambda **values: None,
        shares=shares,
    )
    modules = {**assembled.components.modules, **read.modules}
    return replace(assembled, components=Components(modules, assembled.components.holder))


def dtypes(assembled):
    return [{name: str(p.dtype) for name, p in model.named_parameters()} for model in denoisers(assembled)]
