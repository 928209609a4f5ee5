"""The place where diffusers' attention processors call their kernel: a function of ours can stand there.

diffusers chooses a kernel by name from a registry of its own, one for the whole process: it has no seam for functions.
A processor's `__call__` is left as it is; only the name that it calls means something else, for this processor alone.

Legend: B samples, S tokens, H heads, D head width.
"""

import copy
from collections.abc import Callable
from inspect import unwrap
from types import FunctionType, SimpleNamespace
from typing import Any, Protocol

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor
from torch.nn import functional

from difftool.errors import PlanError
from difftool.parallel.ring import attend_with_lse

Attend = Callable[..., Tensor]  # (query, key, value, attn_mask=, …), [B, S, H, D] each -> [B, S, H, D]


class Kernel(Protocol):
    """What computes attention."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
        """[B, S, H, D] each -> [B, S, H, D], with the arguments of diffusers' dispatcher; `backend` is ignored."""

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, S, D] each -> (fp32 [B, H, S, D], fp32 log-sum-exp of the scores [B, H, S])."""


class TorchKernel:
    """torch's scaled_dot_product_attention, which takes every argument on every device."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, backend: None = None, parallel_config: None = None, **more: Any
    ) -> Tensor:
        return dispatch_attention_fn(query, key, value, backend="native", **more)

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return attend_with_lse(query, key, value)


def attend_through(processor: Any, attend: Attend) -> Any:
    """The same processor, with its attention computed by `attend`. Raises PlanError for one that has no known seam."""
    kind = type(processor)
    call = unwrap(kind.__call__)
    seams = {"dispatch_attention_fn": lambda: attend, "F": lambda: _functional(attend)}
    seam = next((name for name in seams if name in call.__code__.co_names), None)
    if seam is None:
        raise PlanError(f"{kind.__name__} calls no kernel that is known; a newer diffusers may have changed it")
    bound = FunctionType(
        call.__code__, {**call.__globals__, seam: seams[seam]()}, call.__name__, call.__defaults__, call.__closure__
    )
    bound.__kwdefaults__ = call.__kwdefaults__
    # torch.compile keeps what it made of a function by its code, which functions with other globals share
    bound = torch.compiler.disable(bound)
    made = copy.copy(processor)
    made.__class__ = type(kind.__name__, (kind,), {"__call__": bound, "attend": staticmethod(attend)})
    return made


def attends_through(processor: Any) -> Any:
    """What `attend_through` has bound to a processor; None where it is as diffusers made it."""
    return getattr(type(processor), "attend", None)


def unbound(processor: Any) -> Any:
    """The same processor, which calls torch's kernel by diffusers' name for it if that is what it is bound to: a graph
    can have that call in it. With another kernel it is left as it is.
    """
    if not isinstance(attends_through(processor), TorchKernel):
        return processor
    made = copy.copy(processor)
    made.__class__ = type(processor).__base__
    if hasattr(made, "_attention_backend"):  # others call torch itself
        made._attention_backend = AttentionBackendName.NATIVE
    return made


def _functional(attend: Attend) -> SimpleNamespace:
    """torch.nn.functional, whose attention of [B, H, S, D] is the dispatcher's, of [B, S, H, D]."""

    def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
        return attend(*(tensor.transpose(1, 2) for tensor in (query, key, value)), **arguments).transpose(1, 2)

    return SimpleNamespace(**{**vars(functional), "scaled_dot_product_attention": scaled_dot_product_attention})
