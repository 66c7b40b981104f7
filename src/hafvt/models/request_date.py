"""An offset that makes states of HAF-VT depend on the date of a request, learned from training dates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hafvt.data.dataset import SECONDS_PER_DAY

SECONDS_PER_YEAR = 31_556_952
NUM_HARMONICS = 3
VECTOR_SCALE = 10.0
"""a, b and c are this times the parameters: Adam's steps are small, so the factor speeds them up."""


class RequestDateOffset(nn.Module):
    """Offsets of states by the day t at which the next item is predicted.

    offset(t) = sum_k w_k(t) a_k + sum_n b_n sin(2 pi n t / year) + c_n cos(2 pi n t / year), n = 1 to 3

    The weights w(t) interpolate between the K knots, so that the first sum is a broken line over time; before
    the first and after the last knot it is constant. a, b and c are learned vectors.

    Args:
        knots: (K,) int64 ascending times in seconds since 1970.
        width: d, of states.
    """

    knots: Tensor

    def __init__(self, knots: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("knots", knots.clone())
        self.vectors = nn.Parameter(torch.zeros(len(knots) + 2 * NUM_HARMONICS, width))  # a, b and c

    def forward(self, times: Tensor | None) -> Tensor:
        """Return the offset on the day of each time (UTC), (...) int64 seconds since 1970 -> (..., d).

        Without times, it is (1, d), that of the last knot.
        """
        times = self.knots[-1:] if times is None else times
        times = times - times.remainder(SECONDS_PER_DAY)  # so that answers do not change within a day
        factors = torch.cat([self.knot_weights(times), yearly_waves(times)], dim=-1)
        return VECTOR_SCALE * factors @ self.vectors

    @torch.no_grad()
    def continue_from(self, other: RequestDateOffset) -> None:
        """Take the offsets of another instance, with the values of its broken line at these knots."""
        count = len(self.knots)
        self.vectors[:count] = other.knot_weights(self.knots) @ other.vectors[: len(other.knots)]
        self.vectors[count:] = other.vectors[len(other.knots) :]

    def knot_weights(self, times: Tensor) -> Tensor:
        """Return the weights of the knots, (...) -> (..., K): two are not zero, and they sum to 1."""
        starts, widths = self.knots[:-1], self.knots.diff().clamp(min=1)
        passed = ((times[..., None] - starts).clamp(min=0).minimum(widths) / widths).float()  # (..., K - 1)
        ones = torch.ones_like(passed[..., :1])
        return torch.cat([ones, passed], dim=-1) - torch.cat([passed, 0 * ones], dim=-1)


def yearly_waves(times: Tensor) -> Tensor:
    """Return sine and cosine of the time of the year and of its multiples, (...) -> (..., 6)."""
    year = times.remainder(SECONDS_PER_YEAR).float() * (2 * math.pi / SECONDS_PER_YEAR)
    angles = year[..., None] * torch.arange(1, NUM_HARMONICS + 1, device=times.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
