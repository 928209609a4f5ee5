"""Tiny denoisers after transforms, alone and on the ranks of the test pool, compared with plain ones."""

import copy
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from families.running import assemble_case, batch_for, context_for
from families.split import denoisers
from families.tensors import read_part
from torch._dynamo.utils import counters

from difftool.acceleration import compilation, quantization
from difftool.acceleration.attention import attention_modules
from difftool.acceleration.low_precision import QuantizedLinear
from difftool.components.load import load_components
from difftool.components.loaded import Components
from difftool.facts import Applied
from difftool.parallel import sequence, shard
from difftool.parallel.mesh import Mesh
from difftool.parallel.seam import TorchKernel, attend_through


def quantize(assembled, options):
    """The case with its denoisers quantized in place, and what was said of each."""
    roles = {"denoising": [n for n in assembled.config.roles["denoising"] if getattr(assembled.components, n)]}
    dtypes = dict.fromkeys(roles["denoising"], torch.float32)
    applied = quantization.resolve({"denoising": options}, roles, dtypes, torch.device("cpu"))
    blocks = lists_of(assembled)
    done = quantization.apply(assembled.components, roles, applied, dtypes=dtypes, lists=blocks)
    return done["quantization"].detail


def lists_of(assembled):
    """The denoiser's lists of blocks, as far as the family names them."""
    plan = assembled.config.sequence
    return plan.blocks if plan is not None else ()


def copied(assembled):
    """The case with denoisers of its own."""
    names = [name for name in assembled.config.roles["denoising"] if getattr(assembled.components, name)]
    return with_modules(assembled, {name: copy.deepcopy(getattr(assembled.components, name)) for name in names})


def with_modules(assembled, modules):
    held = {**assembled.components.modules, **modules}
    return replace(assembled, components=Components(held, assembled.components.holder))


def latents(assembled, mesh=None):
    """After the full schedule, of the case's small request."""
    batch, ctx = batch_for(assembled), context_for(assembled)
    ctx = ctx if mesh is None else replace(ctx, mesh=mesh)
    with torch.no_grad():
        for stage in assembled.pipeline.stages[:-1]:
            if stage.applies(batch, ctx):
                batch = stage.forward(batch, ctx)
    return batch.denoised


def pixels(assembled):
    """Of the case's small request."""
    with torch.no_grad():
        return assembled.pipeline(batch_for(assembled), context_for(assembled)).pixels[0]


def distance(made, expected):
    """Of the expected numbers' norm."""
    return float((made - expected).float().norm() / expected.float().norm())


def quantized(world, *, case, folder, degrees, options):
    """How far ranks that quantize what each has of a denoiser are from one with a plain denoiser, as JSON."""
    assembled, mesh = assemble_case(case), Mesh(degrees, world)
    plain = latents(assembled)
    if mesh["tp"].degree > 1:
        names, plan = assembled.config.roles["denoising"], assembled.config.tensor
        present = {name: module for name in names if (module := getattr(assembled.components, name)) is not None}
        parts = {n: read_part(type(m), Path(folder) / n, mesh["tp"], plan, n) for n, m in present.items()}
        shared = with_modules(assembled, parts)
    else:
        shared = copied(assembled)
    said = quantize(shared, options)
    with ExitStack() as ends:
        for transformer in denoisers(shared) if mesh.sequence.degree > 1 else ():
            ends.callback(sequence.apply(transformer, assembled.config.sequence, mesh))
        made = latents(shared, mesh)
    layers = [m for model in denoisers(shared) for m in model.modules() if isinstance(m, QuantizedLinear)]
    return {
        "distance": distance(made, plain),
        "sum": float(made.double().sum()),
        "summed": sum(layer.summed is not None for layer in layers),
        "gathered": sum(layer.gathered is not None for layer in layers),
        "layers": sum(record["layers"] for record in said.values()),
    }


def compile_denoisers(assembled, mode, *, alone=True, backend="eager"):
    """Compiles the case's denoisers in place, by default for a backend that runs graphs as they were traced."""
    names = [name for name in assembled.config.roles["denoising"] if getattr(assembled.components, name) is not None]
    blocks, asked = assembled.config.sequence.blocks, Applied({"denoising": mode})
    arguments = {"lists": blocks, "alone": alone, "backend": backend}
    return compilation.apply(assembled.components, {"denoising": names}, asked, **arguments)["compile"].detail


def compile_parts(assembled, role, mode):
    """The same of a stage's modules, of copies that the pipeline calls."""
    names = [name for name in assembled.config.roles[role] if getattr(assembled.components, name, None) is not None]
    modules = {name: copy.deepcopy(getattr(assembled.components, name)) for name in names}
    holder = copy.copy(assembled.components.holder)
    holder.register_modules(**modules)
    made = replace(assembled, components=Components({**assembled.components.modules, **modules}, holder))
    compilation.apply(made.components, {role: names}, Applied({role: mode}), alone=True, backend="eager")
    return made


def compiled(world, *, case, folder, degrees, mode, sharing=1, options=None):
    """The latents of ranks that share a compiled denoiser and of the same ranks with one that is not, as JSON."""
    assembled, mesh = assemble_case(case), Mesh(degrees, world, sharing=sharing)
    made = []
    for compiles in (False, True):
        shared = own_part_of(assembled, mesh, folder)
        for module in (module for model in denoisers(shared) for module in attention_modules(model)):
            module.processor = attend_through(module.processor, TorchKernel())  # as attention.apply does
        if options is not None:
            quantize(shared, options)
        shard.apply(shared.components, assembled.config.roles["denoising"], mesh, assembled.config.sequence)
        if compiles:
            counters.clear()
            compile_denoisers(shared, mode, alone=False)
        made += [latents(shared, mesh)]
    graphs = counters["stats"]["unique_graphs"]
    again = latents(shared, mesh)
    return {
        "equal": torch.equal(made[1], made[0]),
        "again": torch.equal(again, made[1]),
        "graphs": graphs,
        "more graphs": counters["stats"]["unique_graphs"] - graphs,
    }


def own_part_of(assembled, mesh, folder):
    """The case with what this rank has of its denoisers."""
    config, roles = assembled.config, assembled.config.roles
    parts = shard.parts(mesh, roles, config.sequence, config.tensor, encoders=1, device=torch.device("cpu"))
    names = [name for name in roles["denoising"] if getattr(assembled.components, name) is not None]
    if not parts.makers:
        return copied(assembled)
    read = load_components(
        names,
        None,
        Path(folder),
        optional=(),
        tokenizers=(),
        dtypes=dict.fromkeys(names, torch.float32),
        device=torch.device("cpu"),
        loaded=lambda **values: None,
        shares=parts.makers,
    )
    return with_modules(assembled, {name: getattr(read, name) for name in names})
