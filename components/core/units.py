"""Which images of a manifest depend on each other, so that tests and samples move them as one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.core.duplicates import HASH_BYTES, near_duplicates


def independent_units(rows: pa.Table) -> np.ndarray:
    """Number the units: images of one group, and where there is no group, near duplicates.

    Args:
        rows: Of the manifest, with `group` and `perceptual_hash`; a row without either stands for itself.

    Returns:
        int64 (n,), equal for images of one unit.
    """
    grouped = rows["group"].is_valid().to_numpy()
    hashed = rows["perceptual_hash"].is_valid().to_numpy() & ~grouped
    units: np.ndarray = -1 - np.arange(rows.num_rows)
    if grouped.any():
        units[grouped] = pc.rank(rows["group"].filter(pa.array(grouped)), tiebreaker="dense").to_numpy()
    if hashed.any():
        hashes = b"".join(rows["perceptual_hash"].filter(pa.array(hashed)).to_pylist())
        near = near_duplicates(np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES))
        units[hashed] = rows.num_rows + 1 + near
    return units
