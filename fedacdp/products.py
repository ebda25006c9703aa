"""Dense products by the fastest library that comes along: one large one, or one for each of many users.

On x86 in float32, a large product is oneDNN's, which uses all of a processor's vector width whoever made it; MKL,
PyTorch's own choice, uses half of it on AMD's. Many small ones are numpy's, whose OpenBLAS does the same and costs
little to call. Which it is depends on shapes only, never on time, so that results do not.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import threadpoolctl
import torch
from torch.nn import functional as F

_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_LARGE = 2**22
"""Multiplications from which oneDNN's call, 15 microseconds, does not count."""


def one_thread() -> Callable[[], None]:
    """Let all products of this process be made by one thread each, so that their bits do not depend on the machine;
    gives what puts it back."""
    before, blas = torch.get_num_threads(), threadpoolctl.threadpool_limits(1, "blas")
    torch.set_num_threads(1)

    def put_back() -> None:
        blas.restore_original_limits()
        torch.set_num_threads(before)

    return put_back


def linear(x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b for x (m, i), W (o, i), b (o,)."""
    large = x.shape[0] * x.shape[1] * weights.shape[0] >= _LARGE
    if large and _ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu":
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weights, bias, "none", [], "")
        return product
    return F.linear(x, weights, bias)


def each_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """left_u right_u for each u: (U, a, m) and (U, m, b) -> (U, a, b)."""
    if not _by_numpy(left):
        return torch.bmm(left, right) if out is None else torch.bmm(left, right, out=out)
    with np.errstate(all="ignore"):  # what is not finite is looked for where it matters
        found = np.matmul(left.numpy(), right.numpy(), out=None if out is None else out.numpy())
    return torch.from_numpy(found) if out is None else out


def dots(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Inner products over the last dimension."""
    if not _by_numpy(left):
        return torch.linalg.vecdot(left, right)
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.asarray(np.vecdot(left.numpy(), right.numpy())))


def _by_numpy(numbers: torch.Tensor) -> bool:
    return numbers.device.type == "cpu"


def add_each_product(own: torch.Tensor, left: torch.Tensor, right: torch.Tensor, alpha: float = 1.0) -> None:
    """own_u += alpha * left_u right_u for each u."""
    if _by_numpy(own):
        own.add_(each_product(left, right), alpha=alpha)
    else:
        own.baddbmm_(left, right, alpha=alpha)
