"""Triage: tell a broken camera or pipeline from a changed world, by the rows of the manifest. Values in, values out.

Each fault has a sign that an image shows or does not; its effect is the share of the window's images that show it
beyond the share of the reference's, so what has always been there is no fault. Covered elsewhere: exchanged channels
and inverted values, which only a window shows as a whole (`conversions`), and labels (`label_faults`). Not covered:
what looks like an honest change, as an image stretched and cut back to the right size does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.core.config import DriftConfig
from components.core.contracts import Fault
from components.core.duplicates import near_duplicates
from components.core.statistics import newcombe_interval
from components.detect_drift.conversions import CONVERSIONS, Columns, Conversion, Explanation, explain
from components.detect_drift.label_faults import CONFIDENCE, EXAMPLES

# Limits of the signs, from benchmarks/triage.py, seeds 0 to 6 (digits, Fashion-MNIST, photographs): at most 5 % of the
# images of an honest window are beyond one, and nearly all broken images are; but only a third of those enlarged and
# compressed again, a quarter of those of 28 pixels with blocks, two thirds of digits whose cut end is black on black.
EMPTY_STD = 1.2 / 255  # read noise and JPEG on one colour; dark sky has more. Noisier black frames are a `value-range`
DARK_PEAK = 16.5 / 255  # 12 bits stored in 16, 0 to 15 in 8; a scene at a third of its light peaks at 0.1
GREY_SPREAD = 1e-4  # between the channels' statistics: equal but for rounding; a dim photograph has 1e-3 and more
CLIPPED_MIDTONES = 0.02
TAIL = 0.15  # of the height, beyond one line
DOUBLED = 0.3
BLOCKY = 1.25  # times what 95 % of the reference stay below
QUALITY_POINTS = 25  # of JPEG quality below what 95 % of the reference have
ASPECT = 1.1  # times the proportions of 98 % of the reference: a crop, not a rounded side
SHRUNK = 0.5  # of the longer side that 99 % of the reference have
FAMILY_SHARE = 0.05  # of the window in one family of near duplicates; a clip among fifty has 0.02
LEAST_FAMILY = 5
# Nats: of each converted row, and of all. Conversions reach 0.6 a row and more, honest windows 0.47.
CONVERTED_GAIN, CONVERTED_TOTAL = 0.5, 10.0
CONVERTED_FIT = -1.0  # nats a row below the reference; conversions have -0.6 and more, black frames -2 and less
LEAST_SHOWN = 5  # images: fewer are an accident, not a broken camera

_NUMBERS = ("width", "height", "quality", "mean", "std", "red", "green", "blue", "red_std", "green_std", "blue_std",
            "skew", "black", "peak", "midtones", "flat_tail", "doubled", "blockiness")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What images of one fault have in common.

    Attributes:
        name: Of the fault.
        phrase: What is said of the images: "38 % of the images ...".
        excess: By how much images show it, given their columns and those of the reference; positive where they do.
        relative: Whether it says nothing without a reference.
    """

    name: str
    phrase: str
    excess: Callable[[Columns, Columns], np.ndarray]
    relative: bool = False


def _proportions(columns: Columns) -> np.ndarray:
    """Longer side by shorter one: a camera that is turned changes nothing."""
    longer = np.maximum(columns["width"], columns["height"])
    proportions: np.ndarray = np.log(longer / np.minimum(columns["width"], columns["height"]))
    return proportions


def _size(columns: Columns, reference: Columns) -> np.ndarray:
    usual = np.quantile(_proportions(reference), (0.01, 0.99))
    found = _proportions(columns)
    longest, usual_longest = (np.maximum(c["width"], c["height"]) for c in (columns, reference))
    small = SHRUNK * np.quantile(usual_longest, 0.01) / longest - 1 + 1e-6  # at half the size too
    other = np.maximum(usual[0] - found, found - usual[1]) - np.log(ASPECT)
    excess: np.ndarray = np.maximum(other, small)
    return excess


def _colour(columns: Columns) -> np.ndarray:
    bands = np.stack([columns[n] for n in ("red", "green", "blue", "red_std", "green_std", "blue_std")])
    spread: np.ndarray = np.maximum(np.ptp(bands[:3], axis=0), np.ptp(bands[3:], axis=0))
    return spread


def _codec(columns: Columns, reference: Columns) -> np.ndarray:
    """Points of quality below the limit, or excess of blockiness, where the files have been stored anew since."""
    quality, usual = (np.nan_to_num(c["quality"], nan=100.0) for c in (columns, reference))
    coarse = np.quantile(usual, 0.05) - QUALITY_POINTS - quality
    blocky = columns["blockiness"] - BLOCKY * np.quantile(reference["blockiness"], 0.95)
    excess: np.ndarray = np.where(coarse >= 0, coarse + 1, blocky)
    return excess


SIGNS = (
    Sign(
        name="empty-images",
        phrase="show nothing: one colour, as black frames and values of 0 to 1 stored as 0 to 255 do",
        excess=lambda c, _: EMPTY_STD - c["std"] + 1e-6,
    ),
    Sign(
        name="value-range",
        phrase="use a sliver of the range of values or its two ends only, as pixels of another range do",
        excess=lambda c, _: np.where(
            c["std"] <= EMPTY_STD, -1.0, np.maximum(DARK_PEAK - c["peak"], CLIPPED_MIDTONES - c["midtones"])
        ),
    ),
    Sign(
        name="truncated-images",
        phrase="end in a uniform strip, as files that were cut short do",
        excess=lambda c, _: c["flat_tail"] - 1 / c["height"] - TAIL,  # an object may stand a line off the middle
    ),
    Sign(
        name="enlarged-images",
        phrase="repeat their rows and columns, as images enlarged without interpolation do",
        excess=lambda c, _: c["doubled"] - DOUBLED,
    ),
    Sign(
        name="colour-lost",
        phrase="have no colour",
        excess=lambda c, _: GREY_SPREAD - _colour(c),
        relative=True,
    ),
    Sign(
        name="wrong-size",
        phrase="have other proportions than the reference, or half its size at most",
        excess=_size,
        relative=True,
    ),
    Sign(
        name="codec-change",
        phrase="were compressed much harder than the reference",
        excess=_codec,
        relative=True,
    ),
)


def find_faults(window: pa.Table, reference: pa.Table | None, config: DriftConfig) -> tuple[Fault, ...]:
    """Find what is broken about the images of a window.

    Args:
        window: Manifest rows as delivered: all of them, whatever their status and label.
        reference: Manifest rows of the champion's reference sample. None while there is no champion: then only signs
            that speak for themselves are looked for.
        config: Gives `fault_share`.

    Returns:
        The faults, the largest effect first. Each names up to 8 images that show it, the clearest first.
    """
    if not window.num_rows:
        return ()
    delivered = np.array(window["status"].to_pylist())
    sha256 = np.array(window["sha256"].to_pylist())
    found = [_unreadable(delivered, sha256, config), _flood(window, reference, config)]
    rows = window.filter(pc.not_equal(window["status"], "unreadable"))  # black frames are duplicates of each other
    past = rows.slice(0, 0) if reference is None else reference
    if rows.num_rows:
        now, then = _columns(rows), _columns(past)
        digests = np.array(rows["sha256"].to_pylist())
        signs = [sign for sign in SIGNS if past.num_rows or not sign.relative]
        for sign in signs:
            excess, usual = sign.excess(now, then), sign.excess(then, then)
            found.append(_fault(sign.name, sign.phrase, excess, digests, usual > 0, config))
        if past.num_rows:
            found += _conversions(rows, past, now, then, config)
    return tuple(sorted((f for f in found if f), key=lambda fault: -fault.effect))


def _columns(rows: pa.Table) -> dict[str, np.ndarray]:
    """Numbers of the rows, float64, NaN where there is none."""
    return {name: rows[name].cast(pa.float64()).to_numpy().astype(np.float64) for name in _NUMBERS}


def _fault(
    name: str,
    phrase: str,
    excess: np.ndarray,
    sha256: np.ndarray,
    usual: np.ndarray,
    config: DriftConfig,
) -> Fault | None:
    """A fault if more of the images show a sign than is usual: by `fault_share`, and by more than chance explains.

    Args:
        excess: Positive where an image shows it, larger where it is clearer, shape (n,).
        sha256: Of the images, shape (n,).
        usual: Whether each of the reference's images shows it; empty where there is none.
    """
    shown = excess > 0
    before = float(usual.mean()) if len(usual) else 0.0
    effect = float(shown.mean()) - before
    if effect < config.fault_share:
        return None
    counts = (int(shown.sum()), len(shown)), (int(usual.sum()), len(usual))
    lower = newcombe_interval(*counts, CONFIDENCE).lower if len(usual) else 0.0
    if shown.sum() < LEAST_SHOWN or lower < 0:
        return None
    order = sorted(np.flatnonzero(shown), key=lambda n: (-excess[n], sha256[n]))
    comparison = f" ({before:.1%} of the reference)" if len(usual) else ""
    return Fault(
        name=name,
        effect=effect,
        sentence=f"{shown.mean():.1%} of the images {phrase}{comparison}.",
        examples=tuple(dict.fromkeys(str(sha256[n]) for n in order))[:EXAMPLES],
    )


def _unreadable(status: np.ndarray, sha256: np.ndarray, config: DriftConfig) -> Fault | None:
    bad = (status == "unreadable").astype(float)
    return _fault("unreadable-images", "cannot be decoded", bad, sha256, np.zeros(0, dtype=bool), config)


def _flood(window: pa.Table, reference: pa.Table | None, config: DriftConfig) -> Fault | None:
    """A few pictures that make up much of a window. Images of one declared group are one family by right."""
    phrase = f"belong to pictures that each make up {FAMILY_SHARE:.0%} of the images or more, repeated"
    families = _families(window)
    usual = np.zeros(0, dtype=bool) if reference is None or not reference.num_rows else _families(reference) > 0
    return _fault("duplicate-flood", phrase, families, np.array(window["sha256"].to_pylist()), usual, config)


def _families(rows: pa.Table) -> np.ndarray:
    """Of each row, the share of the rows that repeat its picture, as far as that is a flood, else 0; shape (n,)."""
    hashes = rows["perceptual_hash"].to_pylist()
    seen = [n for n, value in enumerate(hashes) if value is not None]
    share = np.zeros(len(hashes))
    if not seen:
        return share
    clusters = near_duplicates(np.frombuffer(b"".join(hashes[n] for n in seen), np.uint8).reshape(len(seen), -1))
    groups = rows["group"].to_pylist()
    # A clip's frames are alike: of a declared group only what stands outside its largest family counts.
    members = np.bincount(clusters)
    alike: dict[int, set[object]] = {}
    for n, cluster in zip(seen, clusters, strict=True):
        alike.setdefault(int(cluster), set()).add(groups[n] if groups[n] is not None else n)
    distinct = np.array([len(alike[c]) for c in range(len(members))])
    flood = (distinct >= LEAST_FAMILY) & (members >= FAMILY_SHARE * len(hashes))
    share[seen] = np.where(flood, members, 0)[clusters] / len(hashes)
    return share


def _conversions(
    rows: pa.Table, past: pa.Table, now: Columns, then: Columns, config: DriftConfig
) -> list[Fault | None]:
    """Exchanged channels; inverted or wrapped values, whichever explains more."""
    labels, usual = (np.array([label or "" for label in table["label"].to_pylist()]) for table in (rows, past))
    sha256 = np.array(rows["sha256"].to_pylist())
    explained: list[tuple[Conversion, Explanation, np.ndarray]] = []
    for conversion in CONVERSIONS:
        found = explain(conversion, now, labels, then, usual)
        if found and _convincing(found, len(labels), config):
            itself = explain(conversion, then, usual, then, usual)
            before = itself.converted > 0.5 if itself else np.zeros(len(usual), dtype=bool)
            explained.append((conversion, found, before))
    swaps = [one for one in explained if not one[0].mirrored]
    values = sorted((one for one in explained if one[0].mirrored), key=lambda one: -one[1].gain)
    faults: list[Fault | None] = []
    for conversion, found, before in swaps[:1] + values[:1]:
        excess = np.where(found.converted > 0.5, found.converted, 0.0)
        faults.append(_fault(conversion.name, conversion.phrase, excess, sha256, before, config))
    return faults


def _convincing(found: Explanation, rows: int, config: DriftConfig) -> bool:
    return (
        found.share >= config.fault_share
        and found.gain >= CONVERTED_GAIN * found.share
        and found.gain * rows >= CONVERTED_TOTAL
        and found.fit >= CONVERTED_FIT
    )
