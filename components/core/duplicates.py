"""Near duplicates among images: a hash that survives recompression, and a search over a million of them.

A near duplicate is the same picture again: recompressed, resized, a little brighter, moved by a hundredth, or the next
frame of a film. Two shirts of one cut are not. Values in, values out. Not covered: turned, mirrored or heavily cropped
copies (hash the turned image too), and what differs in colour only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

HASH_BYTES = 16

# Hamming distance, in bits of 128, up to which two hashes are near duplicates. Measured, images with one or more: 0.2 %
# of 10,000 of Fashion-MNIST (0.5 % at 8, 1.0 % at 9) and 1.3 % of 60,000, for the share grows with the number; 0.2 to
# 1.1 % of the 1,797 scikit-learn digits, by how their grey values are scaled; 0.6 % of 1,561 photo patches. A JPEG of
# quality 80 stays below it for 98 % of Fashion-MNIST. Signs of 64 bits, difference hashes and quantised greys find
# far less at this false rate. And with eight bands, 7 is the largest distance at which every pair shares a band whole.
NEAR_BITS = 7

# Up to here pairs of Fashion-MNIST are one product or hard to tell apart (some 50 looked at; 0.1 % of 60,000
# images have one), so that chains of such pairs are taken for real: the frames of a film.
SURE_BITS = 3

# Distinct hashes in one cluster above which its links of more than SURE_BITS are dropped: twice the largest cluster
# among 60,000 images of Fashion-MNIST (54).
LONGEST_CHAIN = 100

_BANDS = 8
_WINDOW = 64  # hashes that one is compared with, per band: 8 * 64 million comparisons for a million, at most
_PENDING = 2_000_000  # pairs held before they are merged: 32 MB


def _lowest_frequencies(count: int) -> np.ndarray:
    """Flat places of the `count` lowest frequencies, without the mean, in a square of 16 x 16 coefficients."""
    squared = np.add.outer(np.arange(16) ** 2, np.arange(16) ** 2).ravel()
    lowest = np.argsort(squared, kind="stable")[1 : count + 1]
    # Low frequencies change least. Dealt out like cards, every band of the search gets its share of them.
    return lowest.reshape(-1, _BANDS).T.ravel()


# Whole numbers: their products add up exactly in float64, so that a hash is the same on every machine and BLAS.
_COSINES = np.rint(1024 * np.cos(np.pi / 64 * np.outer(np.arange(16), 2 * np.arange(32) + 1)))
_KEPT = _lowest_frequencies(8 * HASH_BYTES)
# A wave of 1/32 of a grey level, an orthonormal coefficient of 0.5: what rounding to eight bits leaves of an image with
# nothing in it has a standard deviation of 0.3 there.
_FLAT = 0.5 * 16 * 1024**2


def perceptual_hash(grey: Image.Image) -> bytes:
    """Hash an image by the signs of its 128 lowest spatial frequencies, the mean left out.

    Brightness does not enter and contrast hardly does. Frequencies that are absent count as negative: an image of one
    grey hashes to zeros, whichever grey it is, and one with something in it has about half of its bits set.

    Args:
        grey: Mode "L", of any size and shape; it is squeezed to 32 x 32. An image smaller than 32 x 32 holds fewer
            frequencies than the hash has bits, and a copy of half its size is then often missed.

    Returns:
        HASH_BYTES bytes, the same on every machine with the same version of Pillow.

    Source:
        After pHash: Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010), section 3.2.1;
        here with twice its bits, taken by frequency instead of from a square.
    """
    small = grey.resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0)
    waves = _COSINES @ np.asarray(small, dtype=np.float64) @ _COSINES.T
    return np.packbits(waves.ravel()[_KEPT] > _FLAT).tobytes()


def near_duplicates(hashes: np.ndarray) -> np.ndarray:
    """Group hashes that are near duplicates, directly or through others.

    Rows belong together when a chain of near duplicates connects them. Chains can run through a dense data set from one
    end to the other, so a cluster of more than LONGEST_CHAIN distinct hashes is cut into what chains of at most
    SURE_BITS connect.

    Equal hashes cost nothing, however many. Of different ones, each is compared with those that share a band of 16 bits
    with it, and no more than the 64 that follow it in sorted order: pairs can be missed only where more than that many
    distinct hashes share a band, that is among masses of similar images or beyond some millions of rows.

    Args:
        hashes: uint8, shape (n, HASH_BYTES), of `perceptual_hash`.

    Returns:
        Cluster of each row, int64, shape (n,), numbered from 0 in order of first appearance. A row without near
        duplicates is alone in its cluster. The grouping does not depend on the order of the rows.

    Raises:
        ValueError: The array has another shape or dtype.

    Source:
        Manku et al., "Detecting near-duplicates for web crawling", WWW 2007 (bands, sorted once for each).
    """
    distinct, row_of = _distinct(hashes)
    near = np.arange(len(distinct))
    sure = np.arange(len(distinct))
    pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for first, second, bits in _close_pairs(distinct):
        new = (near[first] != near[second]) | ((bits <= SURE_BITS) & (sure[first] != sure[second]))
        pending.append((first[new], second[new], bits[new]))
        if sum(len(pair[0]) for pair in pending) > _PENDING:
            near, sure = _merge(near, sure, pending)
            pending = []
    near, sure = _merge(near, sure, pending)
    # Sure clusters lie inside near ones; those that replace them get numbers of their own.
    cut = np.bincount(near, minlength=1)[near] > LONGEST_CHAIN
    return _numbered(np.where(cut, len(distinct) + sure, near)[row_of])


def near_known(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Tell which hashes have a near duplicate among known ones.

    Compared are those that share a band of 16 bits, and no more than 64 of them around a hash's own place in sorted
    order: misses are possible only where more distinct known hashes than that share a band.

    Args:
        hashes: uint8, shape (n, HASH_BYTES), of `perceptual_hash`.
        known: The same of what is known, shape (m, HASH_BYTES).

    Returns:
        Whether each row of `hashes` has one, bool, shape (n,).

    Raises:
        ValueError: An array has another shape or dtype.
    """
    wanted, row_of = _distinct(hashes)
    pool, _ = _distinct(known)
    found = np.zeros(len(wanted), dtype=bool)
    for band in range(_BANDS):
        left = np.flatnonzero(~found)
        found[left] = _near_in_band(_turned(wanted[left], band), _turned(pool, band))
    return np.asarray(found[row_of])


def _distinct(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct hashes as words in ascending order, uint64, shape (m, 2), and for each row its place among them."""
    if hashes.dtype != np.uint8 or hashes.ndim != 2 or hashes.shape[1] != HASH_BYTES:
        raise ValueError(f"hashes are {hashes.dtype} of shape {hashes.shape}, expected uint8 of (n, {HASH_BYTES})")
    words = np.ascontiguousarray(hashes).view(">u8").astype(np.uint64)
    order = np.lexsort((words[:, 1], words[:, 0]))
    words = words[order]
    starts = np.ones(len(words), dtype=bool)
    starts[1:] = (words[1:] != words[:-1]).any(axis=1)
    row_of = np.empty(len(words), dtype=np.int64)
    row_of[order] = np.cumsum(starts) - 1
    return words[starts], row_of


def _turned(words: np.ndarray, band: int) -> np.ndarray:
    """Rotate hashes by whole bands, so that `band` comes first: a copy, uint64, shape (m, 2)."""
    high, low = words[:, band // 4], words[:, 1 - band // 4]
    shift, rest = np.uint64(16 * (band % 4)), np.uint64(64 - 16 * (band % 4))
    if shift == 0:
        return np.stack([high, low], axis=1)
    return np.stack([high << shift | low >> rest, low << shift | high >> rest], axis=1)


def _hamming(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Differing bits of hashes, row by row: uint8, shape (m,)."""
    differing = np.bitwise_count(first ^ second)
    return np.asarray(differing[:, 0] + differing[:, 1])


def _close_pairs(words: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield near duplicates among distinct hashes: first row, second row and differing bits. Pairs come repeatedly."""
    for band in range(_BANDS):
        turned = _turned(words, band)
        order = np.argsort(turned[:, 0], kind="stable")
        turned = turned[order]
        keys = turned[:, 0] >> np.uint64(48)
        here = np.arange(len(words))
        for step in range(1, _WINDOW + 1):
            here = here[: np.searchsorted(here, len(words) - step)]
            here = here[keys[here] == keys[here + step]]
            if not len(here):
                break
            bits = _hamming(turned[here], turned[here + step])
            close = bits <= NEAR_BITS
            yield order[here[close]], order[here[close] + step], bits[close]


def _merge(
    near: np.ndarray, sure: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Join the clusters that pairs connect, in the near clusters all, in the sure ones those of at most SURE_BITS."""
    if not pairs:
        return near, sure
    first, second, bits = (np.concatenate(column) for column in zip(*pairs, strict=True))
    strong = bits <= SURE_BITS
    return _joined(near, first, second), _joined(sure, first[strong], second[strong])


def _joined(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Connect the labels of paired rows: new labels, int64, shape (m,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(labels)
    links = coo_array((np.ones(len(first), dtype=bool), (labels[first], labels[second])), shape=(size, size))
    _, component = connected_components(links, directed=False)
    return np.asarray(component[labels], dtype=np.int64)


def _near_in_band(wanted: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Tell which of `wanted` have a near duplicate in `pool` with the same first 16 bits: bool, shape (n,)."""
    pool = pool[np.argsort(pool[:, 0], kind="stable")]
    order = np.argsort(wanted[:, 0], kind="stable")  # neighbours look at the same memory
    wanted = wanted[order]
    keys = wanted[:, 0] >> np.uint64(48)
    pool_keys = pool[:, 0] >> np.uint64(48)
    start, stop = np.searchsorted(pool_keys, keys, "left"), np.searchsorted(pool_keys, keys, "right")
    middle = np.searchsorted(pool[:, 0], wanted[:, 0])
    start = np.maximum(start, np.minimum(middle - _WINDOW // 2, stop - _WINDOW))
    found = np.zeros(len(wanted), dtype=bool)
    left = np.arange(len(wanted))
    for step in range(_WINDOW):
        left = left[(start[left] + step < stop[left]) & ~found[left]]
        if not len(left):
            break
        found[left] = _hamming(wanted[left], pool[start[left] + step]) <= NEAR_BITS
    in_order = np.empty(len(found), dtype=bool)
    in_order[order] = found
    return in_order


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Number labels from 0 in order of first appearance: int64, the same shape."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse])
