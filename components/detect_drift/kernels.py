"""Kernel two-sample statistics in one pass over blocks of the kernel matrix, which is never held whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from components.detect_drift.relabelling import Relabellings

BANDWIDTHS = 3  # half, one and two times the median distance: each kernel is the fourth power of the next wider one
# Of what chance makes of a discrepancy: what differs by less is equal, the rest being rounding.
RESOLUTION = 1e-6
MANY_ROWS = 4096  # from which the product, not the overhead, is what takes time
# A block of 4 MiB stays in the cache while it is raised to powers and summed; smaller ones wake threads too often,
# and a GPU wants more at once.
BLOCK_ROWS, GPU_BLOCK_ROWS = 1024, 8192


def gaussian_discrepancies(rows: Tensor, relabellings: Relabellings) -> Tensor:
    """Squared maximum mean discrepancies (biased) of the two sides under every relabelling.

    Args:
        rows: float32 (N, d), in the order of the relabellings.
        relabellings: B of them and the observed one.

    Returns:
        float32 (3, 1 + B), for Gaussian kernels at half, one and two times the median distance; larger is more
        different, 0 to 2.

    Source:
        Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012); the median heuristic is in section 8.
    """
    distances = torch.pdist(rows[relabellings.some])
    apart = distances[distances > 0]
    scale = float(apart.median()) ** 2 if len(apart) else 1.0
    sums = gaussian_bin_sums(rows, scale, relabellings.bins, len(relabellings.current))
    # Weights add up to 0 over all rows, so that the mean kernel of each row may be taken off: what is left is small,
    # and float32 is enough for the product with the relabellings.
    sizes = relabellings.sizes.double()
    mean = sums.sum(dim=2) / sizes.sum()
    sums -= sizes[:, None] * mean[:, None, :] + mean[:, :, None] * sizes
    sums += (mean.sum(dim=1) / sizes.sum())[:, None, None] * sizes[:, None] * sizes
    weights = relabellings.weights.float()
    squared = (weights * (sums.float() @ weights)).sum(dim=1)
    then, now = relabellings.rows
    resolution = RESOLUTION * float(1 / then[0] + 1 / now[0])
    return (squared / resolution).round() * resolution


def gaussian_bin_sums(rows: Tensor, scale: float, bins: Tensor, count: int) -> Tensor:
    """Sum three Gaussian kernels over pairs of rows, by the bins of both.

    The matrix is symmetric: blocks below its diagonal are not computed. A block costs one matrix product, one
    exponential, four squarings and the sums. Many rows are rounded to bfloat16 first, for units that multiply those
    faster: distances are then exactly those of the rounded rows, which are as exchangeable as the rows were.

    Args:
        rows: float32 (N, d).
        scale: Squared distance, > 0: the kernels are exp(-4 z), exp(-z) and exp(-z / 4) with z = distance^2 / scale.
        bins: Bin of each row, ascending, int64 (N,).
        count: Number of bins k.

    Returns:
        float64 (3, k, k).
    """
    scaled = (rows - rows.mean(dim=0)).div_((2 * scale) ** 0.5)  # or a large mean would drown the distances in rounding
    if len(rows) > MANY_ROWS:
        for part in scaled.split(BLOCK_ROWS):
            part.copy_(part.bfloat16())
    halves = torch.linalg.vector_norm(scaled, dim=1).square() / 2
    blocks = list(_blocks(bins))
    diagonal = torch.zeros(BANDWIDTHS, count, count, dtype=torch.float64, device=rows.device)
    above = torch.zeros_like(diagonal)
    with _fast_products():
        for place, (high, high_bins, high_members) in enumerate(blocks):
            for wide, wide_bins, wide_members in blocks[place:]:
                sums = diagonal if wide is high else above
                exponents = (scaled[high] @ scaled[wide].T).sub_(halves[high, None]).sub_(halves[wide])
                kernel = exponents.clamp_(max=0).exp_()  # above 0 is rounding: the norms of rows far out cancel badly
                for bandwidth in reversed(range(BANDWIDTHS)):  # the widest first
                    sums[bandwidth, high_bins, wide_bins] += high_members.T @ (kernel @ wide_members)
                    kernel = kernel.square_().square_()
    return diagonal + above + above.mT


@contextmanager
def _fast_products() -> Iterator[None]:
    """Let float32 products go through bfloat16 units where the processor has them."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set up at run time
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _blocks(bins: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Cut rows into blocks: their places, their bins, and which bin each is in, float32 (rows, bins)."""
    size = GPU_BLOCK_ROWS if bins.is_cuda else BLOCK_ROWS
    for start in range(0, len(bins), size):
        here = bins[start : start + size]
        first, last = int(here[0]), int(here[-1]) + 1
        members = torch.nn.functional.one_hot(here - first, last - first).float()
        yield slice(start, start + len(here)), slice(first, last), members
