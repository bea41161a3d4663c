"""The anchor: the last version that was trained from scratch. Small losses of many updates add up against it."""

from __future__ import annotations

import logging

from components.core.contracts import Lineage
from components.core.errors import IntegrityError
from components.core.registry import Registry

logger = logging.getLogger(__name__)


def find_anchor(registry: Registry, champion: str) -> tuple[str, Lineage] | None:
    """Find the last of a champion's ancestors that was trained from scratch.

    Returns:
        The version and where it comes from; None where it is the champion itself, where there is none, or where an
        ancestor cannot be read, which is logged: what is long past must not stop the evaluation of what is new.

    Raises:
        IntegrityError: The champion itself is not what was written.
    """
    own = registry.lineage(champion)
    try:
        if own.anchor:
            return own.anchor, registry.lineage(own.anchor)
        for version, lineage in registry.ancestors(champion):
            if lineage.hyperparameters.start == "fresh":
                return None if version == champion else (version, lineage)
    except IntegrityError as error:
        logger.warning("evaluate: no anchor, an ancestor cannot be read: %s", error.found)
    return None
