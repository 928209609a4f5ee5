"""What the ranks of the test pool run with models of which each has read its part."""

import copy
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from families.predicted import predicted_traffic
from families.running import assemble_case, context_for
from families.split import as_lists, denoisers, observed, prepared, request_named

from difftool.components.check import check_component
from difftool.components.loaded import Components
from difftool.components.lora import Active, LoraSet
from difftool.components.read import model_reader
from difftool.components.read_encoder import encoder_reader
from difftool.parallel import sequence
from difftool.parallel.encoders import cut_encoder
from difftool.parallel.mesh import Mesh
from difftool.parallel.tensor import cut_model

CPU = torch.device("cpu")


def compare(world, *, case, folder, degrees, request):
    """The latents of a denoiser whose ranks read a part each, and of the whole one, as JSON."""
    assembled, mesh = assemble_case(case), Mesh(degrees, world)
    batch, ctx = request_named(assembled, request), context_for(assembled)
    whole, _ = observed(assembled, batch, ctx)
    parts = {}
    for name in assembled.config.roles["denoising"]:
        if (module := getattr(assembled.components, name)) is not None:
            parts[name] = read_part(type(module), Path(folder) / name, mesh["tp"], assembled.config.tensor, name)
    components = Components({**assembled.components.modules, **parts}, assembled.components.holder)
    shared = replace(assembled, components=components)
    with ExitStack() as ends:
        for transformer in denoisers(shared) if mesh.sequence.degree > 1 else ():
            ends.callback(sequence.apply(transformer, assembled.config.sequence, mesh))
        split, forwards = observed(shared, batch, replace(ctx, components=components, mesh=mesh))
    first = parts["transformer"]
    return {
        "difference": float((split - whole).abs().max()),
        "scale": float(whole.abs().max()),
        "calls": mesh["tp"].traffic.calls,
        "sent": as_lists(mesh.traffic()),
        "predicted": as_lists(predicted_traffic(assembled, prepared(assembled, batch, ctx), degrees, world.rank)),
        "forwards": len(forwards),
        "sizes": sizes(first, assembled.components.transformer),
    }


def read_part(kind, folder, line, plan, name):
    share = partial(cut_model, plan=plan, line=line, key="parallel.tp", name=name)
    return model_reader(kind, folder, check_component(folder), dtype=torch.float32, device=CPU, share=share)()


def sizes(part, whole):
    """How many numbers this rank has of each parameter, and how many there are."""
    own = dict(part.named_parameters())
    return {name: [own[name].numel(), value.numel()] for name, value in whole.named_parameters()}


def encode(world, *, case, folder, request):
    """A request's text encoded by encoders of which each rank has read its part, and by whole ones, as JSON."""
    assembled, line = assemble_case(case), Mesh({"tp": world.size}, world).replica
    batch, config = request_named(assembled, request), assembled.config
    parts = {}
    for name in config.roles["text_encoding"]:
        if (module := getattr(assembled.components, name)) is not None:
            parts[name] = read_encoder_part(type(module), Path(folder) / name, line, name, torch.float32)
    modules = {**assembled.components.modules, **parts}
    holder = copy.copy(assembled.components.holder)
    holder.register_modules(**parts)
    whole = encoded(config, assembled.components, batch)
    line.traffic.calls.clear()
    shared = encoded(config, Components(modules, holder), batch)
    return {
        "differences": [float((one - other).abs().max()) for one, other in zip(shared, whole, strict=True)],
        "scales": [float(one.abs().max()) for one in whole],
        "calls": line.traffic.calls,
        "sizes": {name: sizes(part, getattr(assembled.components, name)) for name, part in parts.items()},
    }


def encoded(config, components, batch):
    with torch.no_grad():
        made = config.encode_prompt(components, batch, CPU, negative=False)
    flat = [each for one in made for each in (one if isinstance(one, list | tuple) else [one])]
    return [each.float() for each in flat if each is not None]


def read_encoder_part(kind, folder, line, name, dtype):
    share = partial(cut_encoder, line=line, name=name)
    return encoder_reader(kind, folder, check_component(folder), dtype=dtype, device=CPU, share=share)()


def same_encoder(world, *, case, folder, component):
    """What a rank's part of an encoder has other than the part of what transformers loads: nothing, as JSON."""
    kind = type(getattr(assemble_case(case).components, component))
    path, line = Path(folder) / component, Mesh({"tp": world.size}, world).replica
    whole = kind.from_pretrained(path, dtype=torch.bfloat16)
    part = read_encoder_part(kind, path, line, component, torch.bfloat16)
    cuts = cut_encoder(kind.from_pretrained(path, dtype=torch.bfloat16), line, name=component).cuts
    expected = {name: taken(value, cuts.get(name)) for name, value in whole.state_dict().items()}
    expected |= dict(whole.named_buffers())
    found = {**part.state_dict(), **dict(part.named_buffers())}
    return {
        "kind": type(part) is kind,
        "training": part.training,
        "names": sorted(found.keys() ^ expected.keys()),
        "other": [name for name, value in expected.items() if not same(found[name], value)],
        "cut": len(cuts),
    }


def taken(tensor, cut):
    if cut is None:
        return tensor
    return torch.cat([tensor.narrow(cut.dim, start, stop - start) for start, stop in cut.ranges], cut.dim)


def same(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)


def merge(world, *, case, folder, lora):
    """How a LoRA merged into a rank's part of a denoiser differs from the part of the merged one, as JSON."""
    assembled, line = assemble_case(case), Mesh({"tp": world.size}, world)["tp"]
    config, kind = assembled.config, type(assembled.components.transformer)
    path, whole = Path(folder) / "transformer", copy.deepcopy(assembled.components.transformer)
    made = []

    def share(model):
        made.append(cut_model(model, config.tensor, line, key="parallel.tp", name="transformer"))
        return made[-1]

    part = model_reader(kind, path, check_component(path), dtype=torch.float32, device=CPU, share=share)()
    part.requires_grad_(False)
    whole.requires_grad_(False)
    (shares,) = made
    base = {name: value.clone() for name, value in part.named_parameters()}
    sets = [
        LoraSet({"transformer": module}, denoisers=("transformer",), original=config.layer_names, shares=given)
        for module, given in ((whole, {}), (part, {"transformer": shares}))
    ]
    for loras in sets:
        loras.load("every", Path(lora), min_match=1.0)
        loras.set([Active("every", 0.5)])
    merged = {name: taken(value, shares.cuts.get(name)) for name, value in whole.named_parameters()}
    other = [name for name, value in part.named_parameters() if not torch.equal(value, merged[name])]
    changed = sum(not torch.equal(value, base[name]) for name, value in part.named_parameters())
    sets[1].unmerge()
    left = [name for name, value in part.named_parameters() if not torch.equal(value, base[name])]
    return {"other": other, "changed": changed, "left": left, "same": sets[0].describe() == sets[1].describe()}
