"""The rows that all models answer: held-out, labelled, in the order in which they came. No pixels."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from components.core.windows import Known, Window

ROW_COLUMNS = ("sha256", "label", "group", "perceptual_hash", "source")
SAMPLE = 64


def read_holdout(
    old: Sequence[Window], new: Window, classes: Sequence[str], columns: Sequence[str] = ROW_COLUMNS
) -> pa.Table:
    """List the held-out rows of windows, the old ones first.

    Args:
        old: Windows that the champion was trained on, as they arrived.
        new: The window of this run. What an old one holds too is left out of it.
        classes: All that a model knows. Rows with another label, or none yet, are left out.
        columns: Of the manifest.

    Returns:
        The columns, after `holdout` (`old` or `new`) and `window`. The order is that of `load_images`.
    """
    known, tables = Known(), []
    for window in (*old, new):
        rows = known.new_rows(window, "holdout", columns)
        known.add(window)
        rows = rows.filter(pc.is_in(rows["label"], pa.array(classes, pa.string())))
        side = "new" if window is new else "old"
        for name, value in (("window", window.document.id), ("holdout", side)):
            rows = rows.add_column(0, name, pa.array([value] * len(rows), pa.string()))
        tables.append(rows)
    return pa.concat_tables(tables)


def sample_rows(rows: pa.Table) -> tuple[str, ...]:
    """The smallest digests among the new holdout's rows, at most SAMPLE, each of 16 hexadecimal characters.

    Of two windows, these share about as large a part as the windows share of what both have together.

    Source:
        Broder, "On the resemblance and containment of documents", SEQUENCES 1997: the bottom-k sketch.
    """
    new = rows.filter(pc.equal(rows["holdout"], "new"))
    return tuple(digest[:16] for digest in sorted(set(new["sha256"].to_pylist()))[:SAMPLE])
