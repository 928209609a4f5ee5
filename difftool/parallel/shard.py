"""The parallel degrees as a transform: what of them a denoiser can follow, and its application."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from difftool.components.loaded import Components
from difftool.components.read import Shares
from difftool.facts import Applied, Refused
from difftool.parallel import sequence
from difftool.parallel.encoders import cut_encoder
from difftool.parallel.hsdp import ShardedWeights
from difftool.parallel.mesh import Mesh
from difftool.parallel.plans import SequencePlan, TensorPlan
from difftool.parallel.tensor import cut_model


def resolve(
    mesh: Mesh, plan: SequencePlan | None, tensor: TensorPlan | None, *, encoders: int = 1
) -> Applied | Refused:
    """The degrees beyond one, and among how many ranks the text `encoders` are dealt. Refused without a plan to deal
    the denoiser's tokens, or its layers, by.
    """
    if mesh.sequence.degree > 1 and plan is None:
        return Refused(f"parallel.sp={mesh.sequence.degree}: this family has no plan for its tokens; use sp=1")
    if mesh["tp"].degree > 1 and tensor is None:
        return Refused(f"parallel.tp={mesh['tp'].degree}: this family has no plan for its layers; use tp=1")
    assert encoders in (1, mesh.replica.degree), (encoders, mesh.replica)
    sharing = mesh.weights.degree
    if sharing > 1 and plan is None:
        return Refused(f"parallel.hsdp={sharing}: this family does not say which blocks it repeats; use hsdp=none")
    degrees = {**mesh.degrees, "hsdp": sharing, "text_encoding.tp": encoders}
    return Applied({axis: degree for axis, degree in degrees.items() if degree > 1})


class Parts:
    """What this rank reads of the components of which it keeps a part, by name; `made` fills up as they are read."""

    def __init__(self, makers: Mapping[str, Callable[[nn.Module], Shares]]):
        self.makers = {name: partial(self._make, name, make) for name, make in makers.items()}
        self.made: dict[str, Shares] = {}

    def _make(self, name: str, make: Callable[[nn.Module], Shares], model: nn.Module) -> Shares:
        self.made[name] = make(model)
        return self.made[name]


def parts(
    mesh: Mesh,
    roles: Mapping[str, Sequence[str]],
    plan: SequencePlan | None,
    tensor: TensorPlan | None,
    *,
    encoders: int,
    device: torch.device,
) -> Parts:
    """Of the denoisers, where ranks share their weights or have some of their layers; of the text encoders, where they
    are dealt to the ranks of a replica.
    """
    makers: dict[str, Callable[[nn.Module], Shares]] = {}
    if encoders > 1:
        makers |= {name: partial(cut_encoder, line=mesh.replica, name=name) for name in roles["text_encoding"]}
    for name in roles["denoising"]:
        if mesh.weights.degree > 1:
            assert plan is not None
            makers[name] = partial(ShardedWeights, line=mesh.weights, blocks=plan.blocks, device=device)
        elif mesh["tp"].degree > 1:
            assert tensor is not None
            makers[name] = partial(cut_model, plan=tensor, line=mesh["tp"], key="parallel.tp", name=name)
    return Parts(makers)


def apply(
    components: Components,
    denoisers: tuple[str, ...],
    mesh: Mesh,
    plan: SequencePlan | None,
    stand_ins: Mapping[str, Mapping[str, nn.Module]] = MappingProxyType({}),
) -> None:
    """Splits the denoisers of a checkpoint. `stand_ins` are, by denoiser, what is called in the place of its lists."""
    if mesh.sequence.degree == 1:
        return
    assert plan is not None
    for name in denoisers:
        if (transformer := getattr(components, name)) is not None:
            sequence.apply(transformer, plan, mesh, stand_ins.get(name, {}))
