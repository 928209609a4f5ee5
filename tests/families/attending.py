"""Attention backends bound to the tiny checkpoints that tests share, and taken off again."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from families.running import AssembledCase, assemble_case, context_for
from families.split import as_lists, denoisers, observed, request_named

from difftool.acceleration import attention
from difftool.acceleration.attention import kernels
from difftool.acceleration.attention.video import Video
from difftool.attention import FLEX, SPECIALISED
from difftool.facts import Applied
from difftool.parallel import sequence
from difftool.parallel.mesh import Mesh


def names_of(assembled: AssembledCase) -> list[str]:
    """The denoisers that the case has."""
    return [name for name in assembled.config.roles["denoising"] if getattr(assembled.components, name) is not None]


@contextmanager
def attending(assembled: AssembledCase, backends: Mapping[str, str], **options: Any) -> Iterator[dict[str, Video]]:
    """The case with these backends by role in all its denoisers; the options are those of self-attention."""
    kept = [(m, m.processor) for model in denoisers(assembled) for m in attention.attention_modules(model)]
    hooks = [set(model._forward_pre_hooks) for model in denoisers(assembled)]
    own = {"self": {"name": backends["self"], **options}} if options else {}
    asked = {"denoising": {"name": "auto", **own}, "text_encoding": "auto"}
    picked = {role: attention.Picked(name, FLEX) if name in SPECIALISED else name for role, name in backends.items()}
    chosen = Applied({name: dict(picked) for name in names_of(assembled)})
    try:
        parts, config = (assembled.components, assembled.config.roles, asked, chosen), assembled.config
        yield attention.apply(*parts, config.sequence, config.video_grid)[1]
    finally:
        for model, before in zip(denoisers(assembled), hooks, strict=True):
            for handle in set(model._forward_pre_hooks) - before:
                del model._forward_pre_hooks[handle], model._forward_pre_hooks_with_kwargs[handle]
        for module, processor in kept:
            module.processor = processor


@contextmanager
def counting(function: str) -> Iterator[list[int]]:
    """How often a function of the kernels' module is called meanwhile, as the only entry of a list."""
    real, calls = getattr(kernels, function), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        return real(*args, **kwargs)

    setattr(kernels, function, counted)
    try:
        yield calls
    finally:
        setattr(kernels, function, real)


def compare(world, *, case, degrees, request, backend):
    """The latents of one rank with torch's kernel and of all with a backend, and how often it was called, as JSON."""
    assembled = assemble_case(case)
    batch, ctx, mesh = request_named(assembled, request), context_for(assembled), Mesh(degrees, world)
    whole, _ = observed(assembled, batch, ctx)
    backends = dict.fromkeys(assembled.config.facts.attention, backend)
    with attending(assembled, backends), ExitStack() as ends, counting("flex_attention") as calls:
        for model in denoisers(assembled):
            ends.callback(sequence.apply(model, assembled.config.sequence, mesh))
        split, _ = observed(assembled, batch, replace(ctx, mesh=mesh))
    return {
        "difference": float((split - whole).abs().max()),
        "scale": float(whole.abs().max()),
        "calls": calls[0],
        "sent": as_lists(mesh.traffic()),
    }
