"""What the rules look at, derived from a window's manifest and from what the champion has seen. Values in, values out.

Not covered: the thresholds (`suite`), and what is a near duplicate (`core.duplicates`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

HISTORY_COLUMNS = ("sha256", "label", "group", "status", "split", "perceptual_hash")
DERIVED = (
    *("usable", "short_side", "long_side", "class", "side", "images_of_class", "times_smallest"),
    *("repeated", "near_duplicate", "leak"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """What validation knows of the champion. Both are None where there is none.

    Attributes:
        classes: The classes it tells apart.
        rows: The manifests of the windows it was trained on, oldest first and without the window at hand, one row an
            image: `HISTORY_COLUMNS`. Only usable rows with a label count: it has learnt nothing of the others.
    """

    classes: tuple[str, ...] | None = None
    rows: pd.DataFrame | None = None


def derive_columns(manifest: pd.DataFrame, history: History) -> pd.DataFrame:
    """Add what the rules look at.

    Args:
        manifest: One row an image, as `windows.SCHEMA` has them.
        history: What the champion has seen.

    Returns:
        The manifest and, for each row:

        - `usable`: 1 where the image is readable and not set aside, whether it has a label yet or not, else 0.
        - `short_side`, `long_side`: pixels; null where the image cannot be read.
        - `class`, `side`: label, where there is one, and side of the split (train or holdout) of usable rows.
        - `images_of_class`: usable rows with this row's label.
        - `times_smallest`: `images_of_class` over that of the smallest class, of usable rows.
        - `repeated`: 1 where the champion's windows hold the same image, of usable rows.
        - `near_duplicate`: 1 where another usable row, here or in the champion's windows, looks nearly the same; exact
          repeats aside.
        - `leak`: why the holdout can no longer be trusted on this row's account, null where it can.
    """
    usable = manifest["status"] == "ok"
    sides = manifest[["width", "height"]]
    images_of_class = usable.astype(int).groupby(manifest["label"]).transform("sum")
    known = _learnt_rows(history)
    repeated = usable & manifest["sha256"].isin(known["sha256"])
    near_duplicate, near_leak = _near(manifest, usable, repeated, known)
    return manifest.assign(
        **{
            "usable": usable.astype(int),
            "short_side": sides.min(axis=1),
            "long_side": sides.max(axis=1),
            "class": manifest["label"].where(usable),
            "side": manifest["split"].where(usable),
            "images_of_class": images_of_class,
            "times_smallest": (images_of_class / images_of_class[usable].min()).where(usable),
            "repeated": repeated.astype(float).where(usable),
            "near_duplicate": near_duplicate.astype(float).where(usable),
            "leak": _leak(manifest, usable, known, near_leak),
        }
    )


def _learnt_rows(history: History) -> pd.DataFrame:
    import pandas as pd

    if history.rows is None:
        return pd.DataFrame(columns=list(HISTORY_COLUMNS), dtype=object)
    rows = history.rows
    return rows[(rows["status"] == "ok") & rows["label"].notna()]


def _leak(
    manifest: pd.DataFrame, usable: pd.Series[bool], known: pd.DataFrame, near: pd.Series[bool]
) -> pd.Series[str]:
    """Say why a row stands on both sides of the split: same image, same group, or near duplicate.

    Where the champion's windows disagree among themselves, the oldest counts, as in training.
    """
    import pandas as pd

    def moved(column: Literal["sha256", "group"]) -> pd.Series[bool]:
        first = known[known[column].notna()].drop_duplicates(column).set_index(column)["split"]
        before = manifest[column].map(first)
        return usable & before.notna() & (before != manifest["split"])

    leak = pd.Series(None, index=manifest.index, dtype=object)
    leak[near] = "near duplicate"
    leak[moved("group")] = "same group"
    leak[moved("sha256")] = "same image"
    return leak


def _near(
    manifest: pd.DataFrame, usable: pd.Series[bool], repeated: pd.Series[bool], known: pd.DataFrame
) -> tuple[pd.Series[bool], pd.Series[bool]]:
    """Rows that look nearly like another one, and those of them that have it on the other side of the split."""
    import pandas as pd

    from components.core.duplicates import near_duplicates, near_known

    near, leaks = (pd.Series(data=False, index=manifest.index) for _ in range(2))
    hashed = usable & manifest["perceptual_hash"].notna()
    if not hashed.any():
        return near, leaks
    hashes, split = _hashes(manifest.loc[hashed, "perceptual_hash"]), manifest.loc[hashed, "split"]
    cluster = pd.Series(near_duplicates(hashes), index=split.index)
    near[hashed] = cluster.duplicated(keep=False)
    leaks[hashed] = split.groupby(cluster).transform("nunique") > 1
    for side in ("train", "holdout"):
        past = known.loc[(known["split"] == side) & known["perceptual_hash"].notna(), "perceptual_hash"]
        if len(past):
            alike = pd.Series(near_known(hashes, _hashes(past)), index=split.index)
            near[hashed] |= alike & ~repeated[hashed]
            leaks[hashed] |= alike & (split != side)
    return near, leaks


def _hashes(column: pd.Series[Any]) -> np.ndarray:
    """Perceptual hashes as uint8, shape (n, k): n rows of k bytes."""
    import numpy as np

    return np.frombuffer(b"".join(column), dtype=np.uint8).reshape(len(column), -1)
