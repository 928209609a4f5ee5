"""Sharded weights: the ranks of a line keep one copy of a denoiser among them, and put a block together when it runs.

FSDP2 does it: before a block's forward its parameters are gathered, after it each rank has its part alone again. What
is outside the blocks is gathered for the whole forward. Nothing is cast, and what is multiplied are whole weights, so
results are those of one rank, bit for bit. Ranks of a line must run equally many forwards, or they wait forever.
Source: torch.distributed.fsdp.fully_shard, which cuts dim 0 as torch.chunk does.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from difftool.components.read import Cut
from difftool.parallel.mesh import Line


class ShardedWeights:
    """What this rank keeps of a denoiser: a part of the rows of each parameter. Made of the empty model."""

    def __init__(self, model: nn.Module, line: Line, *, blocks: Sequence[str], device: torch.device):
        """`blocks` are the module lists whose members are gathered one at a time."""
        assert line.group is not None, line
        self.whole = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim}
        self.cuts: Mapping[str, Cut] = {name: _rows(tensor, line) for name, tensor in self.whole.items()}
        self._mesh = DeviceMesh.from_group(line.group, device.type)
        model.requires_grad_(False)
        single = {parameter for parameter in model.parameters() if not parameter.ndim}
        # from the inside out: what is sharded already is left by what is around it
        for module in (*(block for name in blocks for block in model.get_submodule(name)), model):
            fully_shard(module, mesh=self._mesh, reshard_after_forward=True, ignored_params=single)
            assert isinstance(module, FSDPModule), module
            module.set_custom_all_gather(_Gather(line))

    def place(self, name: str, tensor: Tensor) -> Tensor:
        """The parameter of which this rank has read these rows."""
        if name not in self.cuts:
            return tensor
        whole = self.whole[name]
        return DTensor.from_local(
            tensor, self._mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
        )


def _rows(tensor: Tensor, line: Line) -> Cut:
    """This rank's rows; the last ranks may have fewer, or none."""
    rows = tensor.shape[0]
    each = -(-rows // line.degree)
    start = min(line.index * each, rows)
    return Cut(0, ((start, min(start + each, rows)),))


class _Gather:
    """How FSDP2 gathers here: along a line, which counts what it sends."""

    def __init__(self, line: Line):
        self.line = line

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: object, async_op: bool = False
    ) -> torch.distributed.Work | None:
        return self.line.gather_into(output_tensor, input_tensor, async_op=async_op)
