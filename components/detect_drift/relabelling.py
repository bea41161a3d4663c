"""Samples of images, and one set of relabellings that every detector's statistic is compared with.

"Nothing changed" means that which unit came from which sample is arbitrary. Units are images, or groups of dependent
images (a clip, a device, an upload), which move whole. Units are put into bins at random, all of a bin from one sample
and the same number in each, and bins change sides: 1,000 relabellings then cost a product of small matrices, whatever
the number of images. Not covered: what is compared (`detectors`).

Source:
    Binned permutations: Domingo-Enrich, Dwivedi and Mackey, "Cheap Permutation Testing" (2025). Groups as units:
    Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses" (2005), chapter 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import comb

import torch
from torch import Tensor

# Bins of both samples together, and of the smaller at least: 64 to 256 bins have the power of exchanging every image,
# eight do not (measured).
MOST_BINS, LEAST_BINS = 512, 32
# Units of the larger sample for each of the smaller, from which more would sharpen nothing: the standard error of a
# difference goes with sqrt(1/n + 1/m), and is 2 % above its limit here.
MOST_TO_ONE, ALWAYS_USED = 20, 500
SMALL_UNITS = 0.1  # share of a sample's units that may be smaller than what all others are cut to
SOME_ROWS = 1000
PART_ROWS = 8192  # converted to float64 at once


@dataclass(frozen=True)
class Sample:
    """n images as they are seen. `columns`: name to tensor of n rows, float32 (n, d) or int64 (n,). `units`: int64
    (n,), equal for images that depend on each other; None where every image stands for itself."""

    columns: Mapping[str, Tensor]
    units: Tensor | None = None

    def __post_init__(self) -> None:
        lengths = {len(rows) for rows in (*self.columns.values(), *([] if self.units is None else [self.units]))}
        if len(lengths) != 1:
            raise ValueError(f"columns and units of {sorted(lengths)} rows: one length is expected")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def to(self, device: torch.device) -> Sample:
        """The same rows on a device."""
        return replace(self, columns={name: rows.to(device) for name, rows in self.columns.items()})


@dataclass(frozen=True, kw_only=True)
class Relabellings:
    """The observed labelling and B others of the same images.

    Attributes:
        order: Rows in use of both samples together (reference rows first), sorted by bin, int64 (N,).
        bins: Bin of each of them, ascending, int64 (N,).
        current: float32 (k, 1 + B): 1 where a bin is on the current side; the observed labelling first.
        distinct: How many relabellings there are; 1 / distinct is the smallest p-value that they can give.
        some: At most `SOME_ROWS` of the N rows drawn at random, int64: for what only a median needs.
        reference_rows: Rows of the reference sample, used or not.
    """

    order: Tensor
    bins: Tensor
    current: Tensor
    distinct: int
    some: Tensor
    reference_rows: int

    def pool(self, reference: Tensor, current: Tensor) -> Tensor:
        """The rows in use of both samples, in `order`.

        Raises:
            ValueError: The samples do not have the same columns, or hold values that are not finite.
        """
        if reference.shape[1:] != current.shape[1:] or reference.dtype != current.dtype:
            shapes = f"{tuple(reference.shape)} and {tuple(current.shape)}"
            raise ValueError(f"reference and current rows cannot be compared: shapes {shapes}")
        if len(reference) != self.reference_rows:
            raise ValueError(f"{len(reference)} reference rows where {self.reference_rows} were relabelled")
        before = int((self.order < len(reference)).sum())  # bins of the reference come first
        rows = reference.new_empty((len(self.order), *reference.shape[1:]))
        torch.index_select(reference, 0, self.order[:before], out=rows[:before])
        torch.index_select(current, 0, self.order[before:] - len(reference), out=rows[before:])
        if not bool(torch.stack(rows.aminmax()).isfinite().all()):  # which takes no memory of the rows' size
            raise ValueError("rows hold values that are not finite")
        return rows

    def to(self, device: torch.device) -> Relabellings:
        """The same relabellings on a device."""
        order, bins, current, some = (rows.to(device) for rows in (self.order, self.bins, self.current, self.some))
        return replace(self, order=order, bins=bins, current=current, some=some)

    def first(self, permutations: int) -> Relabellings:
        """The observed labelling and so many of the others."""
        return replace(self, current=self.current[:, : 1 + permutations])

    @property
    def sizes(self) -> Tensor:
        """Rows of each bin, float32 (k,)."""
        return torch.bincount(self.bins, minlength=len(self.current)).float()

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Rows on the reference and on the current side of each labelling, float64 (1 + B,) each."""
        now = self._sides @ self.sizes.double()
        return len(self.bins) - now, now

    @cached_property
    def _sides(self) -> Tensor:
        """`current` the other way round, float64 (1 + B, k)."""
        return self.current.T.double()

    @property
    def weights(self) -> Tensor:
        """What a row of each bin weighs, float64 (k, 1 + B): weighted sums are means of current minus reference."""
        then, now = self.rows
        return self.current / now - (1 - self.current) / then

    def mean_differences(self, rows: Tensor) -> Tensor:
        """Mean of the current side minus that of the reference side: shape (N, c) to float64 (1 + B, c).

        Whole numbers give equal differences for equal counts, and a constant column gives 0: labellings tie where they
        should, for rounding would set the observed one, whose bins are the last, apart from the others.
        """
        sums = rows.new_zeros((len(self.current), rows.shape[1]), dtype=torch.float64)
        for part, bins in zip(rows.split(PART_ROWS), self.bins.split(PART_ROWS), strict=True):
            sums.index_add_(0, bins, part.double() - rows[:1].double())
        return self.differences(sums)

    def differences(self, sums: Tensor) -> Tensor:
        """The same of sums over the rows of each bin, float64 (k, c)."""
        then, now = (count[:, None] for count in self.rows)
        current = self._sides @ sums
        return current / now - (sums.sum(dim=0) - current) / then


def relabel(reference: Sample, current: Sample, permutations: int, generator: torch.Generator) -> Relabellings:
    """Draw relabellings of two samples. A unit with images in both stands for two, which makes tests cautious.

    Units can change sides only if they are alike: where clips of one sample are longer than those of the other, they
    are cut to one number of images, taken at random. (30 clips of 2 frames against 300 of 20, nothing changed: alarms
    in 61 % of windows at a level of 5 % without.)

    Args:
        reference: m images of two units at least.
        current: n images of two units at least.
        permutations: B >= 1.
        generator: Of bins and relabellings.

    Raises:
        ValueError: A sample has fewer than two units.
    """
    sides = [_numbered(sample) for sample in (reference, current)]
    counts = [int(units.max()) + 1 if len(units) else 0 for units in sides]
    if min(counts) < 2:
        raise ValueError(f"{counts[0]} reference and {counts[1]} current units: two each are needed")
    used = _units_used(counts)
    most = min(int(units.bincount().float().quantile(SMALL_UNITS, interpolation="lower")) for units in sides)
    per_bin = _units_per_bin(used)
    kept, bins, first_bin, first_row = [], [], 0, 0
    for units, count, wanted in zip(sides, counts, used, strict=True):
        full = wanted // per_bin
        bin_of_unit = torch.full((count,), -1)
        drawn = torch.randperm(count, generator=generator)[: full * per_bin]
        bin_of_unit[drawn] = first_bin + torch.arange(len(drawn)) // per_bin
        bin_of_row = torch.where(_places(units, generator) < most, bin_of_unit[units], -1)
        rows = (bin_of_row >= 0).nonzero().flatten()
        kept.append(first_row + rows)
        bins.append(bin_of_row[rows])
        first_bin, first_row = first_bin + full, first_row + len(units)
    place = torch.cat(bins).argsort(stable=True)
    some = torch.randperm(len(place), generator=generator)[:SOME_ROWS]
    total, now = first_bin, used[1] // per_bin
    side = torch.zeros(total, 1 + permutations)
    side[total - now :, 0] = 1
    chosen = torch.rand(total, permutations, generator=generator).argsort(dim=0)[:now]
    side[:, 1:].scatter_(0, chosen, 1)
    return Relabellings(
        order=torch.cat(kept)[place],
        bins=torch.cat(bins)[place],
        current=side,
        distinct=comb(total, now),
        some=some,
        reference_rows=len(sides[0]),
    )


def shared_noise(reference_units: int, current_units: int) -> float:
    """Share of a comparison's chance variance that comes from the reference, and so is the same for every window.

    The rows of a large reference that are compared with a small window are drawn anew for each window.

    Args:
        reference_units: m >= 1.
        current_units: n >= 1.

    Returns:
        In (0, 1): 1/m of 1/n + 1/m, for the units in use.
    """
    then, now = _units_used([reference_units, current_units])
    return (1 / reference_units) / (1 / now + 1 / then)


def _units_used(counts: list[int]) -> list[int]:
    return [min(count, max(ALWAYS_USED, MOST_TO_ONE * min(counts))) for count in counts]


def _numbered(sample: Sample) -> Tensor:
    """Units of a sample's rows, numbered from 0."""
    if sample.units is None:
        return torch.arange(len(sample))
    numbered: Tensor = sample.units.unique(return_inverse=True)[1]
    return numbered


def _places(units: Tensor, generator: torch.Generator) -> Tensor:
    """Place of each row within its unit, in a random order, from 0; int64 (n,)."""
    shuffled = torch.randperm(len(units), generator=generator)
    order = shuffled[units[shuffled].argsort(stable=True)]
    starts = units.bincount().cumsum(0) - units.bincount()
    places = torch.empty_like(units)
    places[order] = torch.arange(len(units)) - starts[units[order]]
    return places


def _units_per_bin(counts: list[int]) -> int:
    """As many as the limits on bins ask for, or a few more where fewer units are then left over."""
    most = max(1, min(counts) // LEAST_BINS)
    least = min(most, -(-sum(counts) // MOST_BINS))
    sizes = range(least, min(most, least + least // 8) + 1)
    return min(sizes, key=lambda size: sum(count % size for count in counts))
