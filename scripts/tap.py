#!/usr/bin/env python
"""Shows where a family's arithmetic leaves that of diffusers: every value that enters or leaves a component, compared.

    python scripts/tap.py builtin:shapes-image -p "a red circle" --set sampling.num_inference_steps=3

runs the recipe's first item natively, then diffusers' own pipeline on the same loaded components, and taps both at the
same places: what goes into and comes out of every module, of the scheduler's steps and of the VAE. Prints one line for
each, the first difference marked; exit code 1 if there is one above --tolerance. --save FOLDER keeps all as .npz.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from difftool.components.check import read_index
from difftool.components.load import hold
from difftool.components.locate import locate
from difftool.engine import make_batch
from difftool.errors import DifftoolError
from difftool.parallel.mesh import Mesh
from difftool.parallel.world import World
from difftool.pipeline.assemble import assemble
from difftool.pipeline.foreign import ForeignPipeline, as_pixels
from difftool.pipeline.stage import Context
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import Plan
from difftool.platforms.base import current
from difftool.profiling.timers import Timer
from difftool.recipe.flags import parse_set
from difftool.recipe.load import load_recipe
from difftool.recipe.overrides import Override

METHODS = ("encode", "decode")  # of a VAE: calls that are no forward


@dataclass
class Tap:
    """Everything that was seen, in order: (where, tensor on the CPU)."""

    seen: list[tuple[str, Tensor]] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)

    def call(self, name: str, inputs: Any, output: Any) -> None:
        """One call of a part, with the tensors it took and gave."""
        number = self.calls.get(name, 0)
        self.calls[name] = number + 1
        for where, value in (("in", inputs), ("out", output)):
            for path, tensor in tensors(value):
                self.seen.append((f"{name}[{number}].{where}{path}", tensor.detach().cpu().clone()))


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors inside nested mappings, sequences and outputs, with their paths."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key in value:
            yield from tensors(value[key], f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            yield from tensors(entry, f"{path}.{i}")
    elif hasattr(value, "latent_dist"):
        yield from tensors(value.latent_dist.parameters, f"{path}.latent_dist")


@contextmanager
def tapped(parts: Mapping[str, Any], tap: Tap) -> Iterator[None]:
    """The parts with every call of theirs told to `tap`, for as long as the context lasts."""
    with ExitStack() as undo:
        for name, part in parts.items():
            if isinstance(part, nn.Module):

                def after(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                    tap.call(name, {**dict(enumerate(args)), **kwargs}, output)

                undo.callback(part.register_forward_hook(after, with_kwargs=True).remove)
                for method in (method for method in METHODS if hasattr(part, method)):
                    undo.enter_context(_wrapped(part, method, f"{name}.{method}", tap))
            elif hasattr(part, "set_timesteps"):  # both sides may make schedulers of their own: the class is tapped
                undo.enter_context(_wrapped(type(part), "step", f"{name}.step", tap))
        yield


@contextmanager
def _wrapped(owner: Any, method: str, name: str, tap: Tap) -> Iterator[None]:
    original: Callable[..., Any] = getattr(owner, method)
    own = vars(owner).get(method)

    def told(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        given = args[1:] if isinstance(owner, type) else args
        tap.call(name, {**dict(enumerate(given)), **kwargs}, output)
        return output

    setattr(owner, method, told)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, method)
        else:
            setattr(owner, method, own)


def run_both(plan: Plan) -> tuple[Tap, Tap]:
    """The plan's first item, natively and by diffusers, on the same components."""
    torch.set_num_threads(plan.threads)
    platform = current(plan.device)
    assembled = assemble(plan, platform, lambda event, **values: None, Mesh({}, World()))
    if assembled.config is None:
        raise DifftoolError("the recipe is run by diffusers itself", hint="tap a recipe that a family runs natively")
    batch, ours, theirs = make_batch(plan.items[0]), Tap(), Tap()
    parts = {name: part for name, part in assembled.components.modules.items() if part is not None}
    with tapped(parts, ours):
        ctx = Context(
            assembled.components, Timer(platform), lambda event, **values: None, residence=assembled.residence
        )
        ours.call("pixels", {}, assembled.pipeline(batch, ctx).pixels)
    index = read_index(locate(plan.model, tuple(parts), lambda: None))
    stock = ForeignPipeline(hold(plan.model.pipeline_class, assembled.components.modules, index), {}, {})
    stock.pipe.set_progress_bar_config(disable=True)
    with tapped(parts, theirs), torch.no_grad():
        theirs.call("pixels", {}, as_pixels(stock.pipe(**stock.arguments(batch))))
    return ours, theirs


def compare(ours: Tap, theirs: Tap, tolerance: float) -> Iterator[tuple[str, bool]]:
    """A line for each place, and whether the two sides agree there."""
    first = {name: tensor for name, tensor in theirs.seen}
    for name, tensor in ours.seen:
        other = first.pop(name, None)
        if other is None:
            yield f"{name:<56}  only ours  {tuple(tensor.shape)}", False
        elif other.shape != tensor.shape:
            yield f"{name:<56}  shapes {tuple(tensor.shape)} and {tuple(other.shape)}", False
        else:
            far = float((tensor.double() - other.double()).abs().max()) if tensor.numel() else 0.0
            yield f"{name:<56}  {far:.1e}  {tuple(tensor.shape)} {tensor.dtype}", far <= tolerance
    for name, tensor in first.items():
        yield f"{name:<56}  only diffusers'  {tuple(tensor.shape)}", False


def save(folder: Path, **taps: Tap) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for side, tap in taps.items():
        arrays = {name: tensor.float().numpy() for name, tensor in tap.seen}
        np.savez(folder / f"{side}.npz", **arrays)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe file, a built-in recipe, or a model")
    parser.add_argument("-p", "--prompt")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest absolute difference that counts as equal")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write ours.npz and diffusers.npz there")
    args = parser.parse_args(argv)
    overrides = [parse_set(text) for text in args.set]
    if args.prompt is not None:
        overrides.append(Override("sampling.prompt", args.prompt, "-p", parse=False))
    try:
        ours, theirs = run_both(make_plan(load_recipe(args.recipe, overrides), run=RunOptions()))
    except DifftoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if args.save:
        save(args.save, ours=ours, diffusers=theirs)
    apart = 0
    for line, agree in compare(ours, theirs, args.tolerance):
        apart += not agree
        mark = "  " if agree else "->" if apart == 1 else "- "
        print(mark, line)
    print(f"{len(ours.seen)} values compared, {apart} differ" + ("; the first is marked ->" if apart else ""))
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
