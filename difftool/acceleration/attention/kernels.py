"""What computes attention under each name of a recipe: diffusers' dispatcher where it has the kernel, else the kernel's
own package.

Legend: B samples, S tokens, H heads, D head width.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from difftool.attention import BACKENDS
from difftool.errors import PlanError
from difftool.parallel.seam import Kernel, TorchKernel

UNCOMPILED = "flex_attention called without torch.compile"  # it says so once a process, where compiling is not worth it


@dataclass(frozen=True)
class DispatchedKernel:
    """A kernel of diffusers' dispatcher: `name` is a recipe's, `called` the dispatcher's."""

    name: str
    called: str

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        backend: None = None,
        parallel_config: None = None,
        **more: Any,
    ) -> Tensor:
        if attn_mask is not None and not BACKENDS[self.name].masks:
            raise masked_error(self.name)
        return dispatch_attention_fn(query, key, value, attn_mask=attn_mask, backend=self.called, **more)

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        tokens_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
        out, lse = dispatch_attention_fn(*tokens_first, attention_kwargs={"return_lse": True}, backend=self.called)
        return out.transpose(1, 2).float(), lse.float()


class CudnnKernel(DispatchedKernel):
    """cuDNN's, which the dispatcher asks for no log-sum-exp outside its own context parallelism."""

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)[:2]
        return out.float(), lse.reshape(query.shape[:3]).float()


class FlexKernel:
    """torch's flex_attention: compiled where that makes a kernel of it, else as plain operations."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        backend: None = None,
        parallel_config: None = None,
        **more: Any,
    ) -> Tensor:
        assert not dropout_p and not is_causal, (dropout_p, is_causal)
        if not key.shape[1]:  # as torch's own answers; flex cannot
            return torch.zeros_like(query)
        given = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        changed = None if attn_mask is None else masking(attn_mask, given[0].shape, key.shape[1])
        return flex_attention(*given, score_mod=changed, **more).transpose(1, 2)

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        out, more = flex_attention(query, key, value, return_aux=flex.AuxRequest(lse=True))
        return out.float(), more.lse.float()


@dataclass(frozen=True)
class PackageKernel:
    """A kernel that only its own package offers: `compute` of [B, S, H, D] each and a scale."""

    name: str
    compute: Callable[[Tensor, Tensor, Tensor, float | None], Tensor]

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        scale: float | None = None,
        **_: Any,
    ) -> Tensor:
        if attn_mask is not None:
            raise masked_error(self.name)
        return self.compute(query, key, value, scale)

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError(f"{self.name} tells no log-sum-exp")


def flex_attention(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Any:
    """torch's, of [B, H, S, D]. On a CPU its plain operations run anywhere; compiling them needs a C++ compiler."""
    if torch.compiler.is_compiling():
        return flex.flex_attention(query, key, value, **more)
    if query.device.type != "cpu":
        return _compiled_flex()(query, key, value, **more)
    # a scale that was another before (heads of another width) would be traced as a tensor, which flex cannot read
    with warnings.catch_warnings(), torch._dynamo.config.patch(specialize_float=True):
        warnings.filterwarnings("ignore", message=UNCOMPILED, category=UserWarning)
        return flex.flex_attention(query, key, value, **more)


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex.flex_attention)


def masking(mask: Tensor, shape: torch.Size, keys: int) -> Callable[..., Tensor]:
    """What a mask does to a score of queries [B, H, S, D] and so many keys. True leaves a score, a number is added; a
    mask of two dims is that of each sample's keys, as diffusers' dispatcher has it.
    """
    batch, heads, queries, _ = shape
    if mask.ndim == 2 and mask.shape == (batch, keys):
        mask = mask[:, None, None, :]
    whole = mask.expand(batch, heads, queries, keys)
    if mask.dtype == torch.bool:
        return lambda score, b, h, i, j: torch.where(whole[b, h, i, j], score, float("-inf"))
    return lambda score, b, h, i, j: score + whole[b, h, i, j]


def masked_error(name: str) -> PlanError:
    """Of a kernel that is given a mask and takes none."""
    return PlanError(
        f"attention {name} takes no masks, and samples of unlike length in one batch need one",
        hint="use stages.denoising.attention=torch_sdpa or flex",
    )


def _fa4() -> Kernel:
    from flash_attn.cute import flash_attn_func

    def compute(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        out = flash_attn_func(query, key, value, softmax_scale=scale)
        return out[0] if isinstance(out, tuple) else out

    return PackageKernel("fa4", compute)


def _sage_attn_3() -> Kernel:
    from sageattn3 import sageattn3_blackwell

    def compute(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        assert scale is None or scale == query.shape[-1] ** -0.5, scale  # it takes none
        # it subtracts the keys' mean in place
        heads_first = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
        return sageattn3_blackwell(*heads_first, is_causal=False).transpose(1, 2)

    return PackageKernel("sage_attn_3", compute)


def _aiter() -> Kernel:
    from aiter import flash_attn_func

    def compute(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        out = flash_attn_func(query, key, value, softmax_scale=scale)
        return out[0] if isinstance(out, tuple) else out

    return PackageKernel("aiter", compute)


# of the backends that need nothing of a video
KERNELS: Mapping[str, Callable[[], Kernel]] = {
    "torch_sdpa": TorchKernel,
    "fa2": partial(DispatchedKernel, "fa2", "flash"),
    "fa3": partial(DispatchedKernel, "fa3", "_flash_3"),
    "fa4": _fa4,
    "cudnn": partial(CudnnKernel, "cudnn", "_native_cudnn"),
    "sage_attn": partial(DispatchedKernel, "sage_attn", "sage"),
    "sage_attn_3": _sage_attn_3,
    "flex": FlexKernel,
    "aiter": _aiter,
}
