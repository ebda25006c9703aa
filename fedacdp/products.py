"""Dense products by the fastest library that PyTorch brings: one large one, or one for each of many users.

On x86 in float32, large products are oneDNN's, which uses all of a processor's vector width whoever made it; MKL,
PyTorch's own choice, uses half of it on AMD's. Small ones are MKL's, which costs less to call and takes many at once.
Which it is depends on shapes only, never on time, so that results do not.
"""

from __future__ import annotations

import platform

import torch
from torch.nn import functional as F

_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_LARGE = 2**20
"""Multiplications from which oneDNN's call, 15 microseconds, pays; measured on Zen 5."""


def linear(x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b for x (m, i), W (o, i), b (o,)."""
    if _is_large(x, len(x), x.shape[1], len(weights)):
        return _onednn(x, weights, bias)
    return F.linear(x, weights, bias)


def each_linear(
    x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x_u W_u^T + b_u for each u: x (U, m, i), W (U, o, i), b (U, o) -> (U, m, o)."""
    if out is None:
        out = x.new_empty(*x.shape[:2], weights.shape[1])
    if _is_large(x, x.shape[1], x.shape[2], weights.shape[1]):
        for row in range(len(x)):
            out[row] = _onednn(x[row], weights[row], None if bias is None else bias[row])
    elif bias is None:
        torch.bmm(x, weights.mT, out=out)
    else:
        torch.baddbmm(bias[:, None], x, weights.mT, out=out)
    return out


def each_add(own: torch.Tensor, left: torch.Tensor, right: torch.Tensor, alpha: float) -> None:
    """own_u += alpha * left_u right_u for each u: own (U, a, b), left (U, a, m), right (U, m, b)."""
    if _is_large(own, left.shape[1], left.shape[2], right.shape[2]):
        for row in range(len(own)):
            own[row].add_(_onednn(left[row], right[row].T, None), alpha=alpha)
    else:
        own.baddbmm_(left, right, alpha=alpha)


def _is_large(like: torch.Tensor, rows: int, inner: int, columns: int) -> bool:
    plain = _ONEDNN and like.dtype == torch.float32 and like.device.type == "cpu"
    return plain and rows * inner * columns >= _LARGE


def _onednn(x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weights, bias, "none", [], "")
    return product
