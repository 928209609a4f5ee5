"""What the ranks of the test pool run: a tiny checkpoint made by one rank and by several, compared."""

from contextlib import ExitStack
from dataclasses import replace

import torch
from families.predicted import predicted_traffic
from families.running import PAIR, assemble_case, batch_for, context_for, requests

from difftool.parallel import sequence
from difftool.parallel.mesh import Mesh


def compare(world, *, case, degrees, request):
    """The latents after the full schedule, split and whole, and what the split run did, as JSON."""
    assembled = assemble_case(case)
    batch, ctx, mesh = request_named(assembled, request), context_for(assembled), Mesh(degrees, world)
    (whole, tokens), plan = observed(assembled, batch, ctx), assembled.config.sequence
    with ExitStack() as ends:
        attentions = 0
        for transformer in denoisers(assembled) if mesh.sequence.degree > 1 else ():
            ends.callback(sequence.apply(transformer, plan, mesh))
            attentions = len(attended(transformer, plan))
        split, local = observed(assembled, batch, replace(ctx, mesh=mesh))
    return {
        "difference": float((split - whole).abs().max()),
        "scale": float(whole.abs().max()),
        "again": torch.equal(observed(assembled, batch, ctx)[0], whole),
        "sent": as_lists(mesh.traffic()),
        "predicted": as_lists(predicted_traffic(assembled, prepared(assembled, batch, ctx), degrees, world.rank)),
        "attentions": attentions,
        "forwards": len(local),
        "masked": sum(masked for _, masked in local),
        "tokens": tokens[0][0] if tokens else [],
        "local": local[0][0] if local else [],
    }


def request_named(assembled, name):
    """A common request of the case, one whose tokens no even number of ranks shares equally, or two guided prompts."""
    base, config = batch_for(assembled), assembled.config
    key = config.facts.second_branch
    guided = {key: config.facts.second_branch_above + 1.5, "negative_prompt": [""]} if key else {}
    if name == "uneven" and base.num_frames is None:
        return replace(base, height=base.height * 3 // 4, width=base.width * 5 // 4)
    if name == "uneven":
        step, offset = config.facts.num_frames
        frames = base.num_frames + (0 if (base.num_frames - offset) // step % 2 == 0 else step)
        return replace(base, height=base.height // 2, width=base.width * 3 // 2, num_frames=frames)
    if name == "two prompts":
        negative = {"negative_prompt": base.negative_prompt * 2} if base.negative_prompt else {}
        return replace(base, prompt=PAIR, seeds=[5, 6], **negative)
    return replace(base, **(guided if name == "guided" else requests(assembled.case).get(name, {})))


def observed(assembled, batch, ctx):
    """The denoised latents, and of every forward the lengths of the first block's tokens, by stream, and whether it
    has a mask.
    """
    plan, seen = assembled.config.sequence, []

    def watch(block, args, kwargs, made):
        tensors = made if isinstance(made, tuple) else (made,)
        masked = any(
            isinstance(given, torch.Tensor) and given.dtype == torch.bool for given in (*args, *kwargs.values())
        )
        seen.append(([tensor.shape[1] for tensor in tensors if tensor is not None], masked))

    with ExitStack() as ends, torch.no_grad():
        for transformer in denoisers(assembled) if plan is not None else ():
            first = transformer.get_submodule(plan.blocks[0])[0]
            ends.callback(first.register_forward_hook(watch, with_kwargs=True).remove)
        for stage in assembled.pipeline.stages[:-1]:
            if stage.applies(batch, ctx):
                batch = stage.forward(batch, ctx)
    return batch.denoised, seen


def prepared(assembled, batch, ctx):
    """The batch as it comes to the denoising."""
    with torch.no_grad():
        for stage in assembled.pipeline.stages[:-2]:
            if stage.applies(batch, ctx):
                batch = stage.forward(batch, ctx)
    return batch


def as_lists(lines):
    """Calls and bytes of every collective, by line; None of nothing."""
    return lines and {
        line: {name: [sent.calls[name], sent.bytes[name]] for name in sorted(sent.calls)}
        for line, sent in sorted(lines.items())
    }


def denoisers(assembled):
    found = [getattr(assembled.components, name) for name in assembled.config.roles["denoising"]]
    return [transformer for transformer in found if transformer is not None]


def attended(transformer, plan):
    """The attention modules that see other ranks' tokens."""
    blocks = [block for name in plan.blocks for block in transformer.get_submodule(name)]
    modules = [getattr(block, name, None) for block in blocks for name in plan.attention]
    return [module for module in modules if module is not None]


def lines(world, *, degrees):
    """The ranks of every line this rank is on, and its place among them."""
    mesh = Mesh(degrees, world)
    found = {**mesh.lines, "sequence": mesh.sequence, "replica": mesh.replica}
    return {name: [line.index, *line.ranks] for name, line in found.items()}
