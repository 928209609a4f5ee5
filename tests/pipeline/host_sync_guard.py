"""Raises where Python waits for a device value: the guard that runs around the denoising loop in tests.

Two nets: torch functions that hand a tensor's value to Python (`.item()`, `bool()`, `.cpu()`, `.tolist()`, …), and
operators whose result's shape depends on values (`nonzero`, boolean indexing), which wait inside the dispatcher.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

TO_PYTHON = frozenset(
    getattr(torch.Tensor, name)
    for name in (
        "item",
        "tolist",
        "numpy",
        "cpu",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__len__",
        "__contains__",
        "equal",
        "allclose",
        "nonzero",
        "is_nonzero",
        "__array__",
    )
    if name != "__len__"
)
WAITING_OPS = frozenset(
    torch.ops.aten.__getattr__(name)
    for name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero", "unique_dim")
    + ("_linalg_check_errors",)
)


class HostSync(AssertionError):
    """Something waited for the device."""


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in TO_PYTHON:
            raise HostSync(f"{getattr(func, '__name__', func)} waits for the device")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indexes_by_mask = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if func.overloadpacket in WAITING_OPS or indexes_by_mask:
            raise HostSync(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def forbid_host_sync() -> Iterator[None]:
    """Inside, any wait for a device value raises HostSync."""
    with _Functions(), _Operators():
        yield
