"""The looks that were taken at a champion's reference, one a window: what an alarm and the picture of a year need."""

from __future__ import annotations

from datetime import datetime

from components.core.contracts import Document, DriftReport
from components.core.storage import ObjectStore, get_json, to_json
from components.core.windows import Window

MOST_LOOKS = 100  # the latest; more are neither counted nor drawn


class DriftLook(Document):
    """What one window looked like. `drop` is measured where labels are in, and estimated where not; see
    `DriftReport`."""

    window: str
    created: datetime
    changed: bool
    p_value: float | None
    drop: float | None
    measured: bool


def look_at(window: Window, report: DriftReport) -> DriftLook:
    """Shorten a report to what history keeps of it."""
    measured = report.accuracy_drop is not None
    return DriftLook(
        window=window.document.id,
        created=window.document.created,
        changed=report.drifted and not report.faults,  # broken data are no sign that the world changed
        p_value=report.p_value,
        drop=report.accuracy_drop if measured else report.estimated_drop,
        measured=measured,
    )


def file_look(store: ObjectStore, model: str, champion: str, look: DriftLook) -> None:
    """Keep a look. The same window again replaces its own."""
    store.put(f"{_folder(model, champion)}{_name(look.window, look.created)}", to_json(look))


def earlier_looks(store: ObjectStore, model: str, champion: str, window: Window) -> list[DriftLook]:
    """The looks at windows that came before this one, oldest first."""
    folder, last = _folder(model, champion), _name(window.document.id, window.document.created)
    keys = [listed.key for listed in store.list_objects(folder) if listed.key.removeprefix(folder) < last]
    looks = [get_json(store, key, DriftLook) for key in keys[-MOST_LOOKS:]]
    return [look for look in looks if look is not None]


def _folder(model: str, champion: str) -> str:
    return f"models/{model}/drift/{champion}/"


def _name(window: str, created: datetime) -> str:
    return f"{created:%Y%m%dT%H%M%S.%f}-{window}.json"
