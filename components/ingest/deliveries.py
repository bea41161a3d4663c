"""What has been delivered below `trigger.source`: each folder right below it, each table and each archive.

Covers looking, at a cost that grows with the number of deliveries and with the files of those that no run has taken,
not with the files of all. Not covered: whether a delivery without a marker is complete, which takes more than one look
(`pipelines.trigger.watcher`), and reading it (`sources`).
"""

from __future__ import annotations

import logging
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from components.core.config import Config
from components.core.errors import ConfigurationError
from components.core.storage import ListedFolder, ListedObject, ObjectStore, check_key, open_store
from components.ingest.places import ignored
from components.ingest.sources import FILE_KINDS

logger = logging.getLogger(__name__)
READERS = 16  # requests in flight: a look into a folder is nearly all latency


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A delivery as one look shows it.

    `marked`: its marker is there. `images`: how many files it has; None where they are tables or archives, which may
    hold any number, or where nobody counted. `newest`: when it last changed, by the clock of where it lies; None where
    it is empty. `fingerprint` changes whenever files come, go or grow.
    """

    uri: str
    marked: bool = False
    images: int | None = None
    newest: datetime | None = None
    fingerprint: str = ""


class Deliveries:
    """Looks at `trigger.source` again and again. A delivery that has its marker is counted once."""

    def __init__(self, config: Config) -> None:
        source = config.trigger.source
        if source is None:
            raise ConfigurationError(
                "trigger.source is not set",
                expected="the directory or s3://bucket/prefix where deliveries arrive",
                next_command="set trigger.source in the configuration",
            )
        self._source, self._config = source.rstrip("/"), config
        inside = [f"{self._source}/", f"{config.store.uri.rstrip('/')}/"]
        if inside[0].startswith(inside[1]) or inside[1].startswith(inside[0]):
            raise ConfigurationError(
                f"trigger.source {source} and store.uri {config.store.uri}, one of which holds the other",
                expected="two places: what the store holds is no delivery",
                next_command="mend trigger.source",
            )
        self._store: ObjectStore = open_store(config.store.model_copy(update={"uri": self._source}))
        self._counted: dict[str, Upload] = {}

    def check(self) -> None:
        """Prove that the source is there.

        Raises:
            StoreUnreachable: It is not, or may not be read.
            ConfigurationError: The directory does not exist.
        """
        self._check_directory()
        self._store.check_reachable(write=False)

    def _check_directory(self) -> None:
        if "://" not in self._source and not Path(self._source).is_dir():
            raise ConfigurationError(
                f"no directory {self._source}",
                expected="trigger.source to name the directory where deliveries arrive",
                next_command=f"mkdir -p {self._source}, or mend trigger.source",
            )

    def look(self, taken: Container[str]) -> list[Upload]:
        """What is there and not in `taken`, in order of name. A name that no key may have is passed over and logged.

        Raises:
            StoreUnreachable: The source does not answer.
        """
        self._check_directory()  # an unmounted one must not look like one where nothing is new
        children = [child for child in self._store.list_children() if self._uri(child.key) not in taken]
        with ThreadPoolExecutor(READERS) as pool:
            uploads = [upload for upload in pool.map(self._examine, children) if upload]
        self._counted = {upload.uri: upload for upload in uploads if upload.marked}
        return sorted(uploads, key=lambda upload: upload.uri)

    def look_once(self, taken: Container[str]) -> list[Upload]:
        """The same, `marked` also what is complete as far as a single look can tell: quiet by the clocks of here and of
        where it lies."""
        minutes, now = self._config.trigger.quiet_minutes, datetime.now(UTC)

        def quiet(upload: Upload) -> bool:
            if minutes is None or upload.newest is None:
                return False
            return (now - upload.newest).total_seconds() >= 60 * minutes

        return [replace(upload, marked=upload.marked or quiet(upload)) for upload in self.look(taken)]

    def complete(self, taken: Container[str]) -> list[str]:
        """Those of them that are marked."""
        return [upload.uri for upload in self.look_once(taken) if upload.marked]

    def _examine(self, child: ListedObject | ListedFolder) -> Upload | None:
        name, uri = child.key, self._uri(child.key)
        if ignored(name, self._config.ingest.ignore):
            return None
        try:
            check_key(name)
        except ValueError as error:
            logger.warning("passed over below %s: %s", self._source, error)
            return None
        if isinstance(child, ListedFolder):
            try:
                return self._counted.get(uri) or self._look_into(name, uri)
            except OSError as error:  # of a directory: links in a circle, no right to read; the others go on
                logger.warning("%s cannot be looked into: %s", uri, error)
                return None
        if not name.lower().endswith(FILE_KINDS):
            return None
        return Upload(uri=uri, newest=child.modified, fingerprint=f"{child.size} bytes, {child.modified.isoformat()}")

    def _look_into(self, name: str, uri: str) -> Upload:
        trigger = self._config.trigger
        marked = self._store.head(f"{name}/{trigger.marker}") is not None
        if not marked and trigger.quiet_minutes is None:
            return Upload(uri=uri)
        files = size = 0
        archives, newest = False, datetime.min.replace(tzinfo=UTC)
        for listed in self._store.list_objects(f"{name}/"):
            newest = max(newest, listed.modified)
            inside = listed.key.removeprefix(f"{name}/")
            if inside in ("", trigger.marker) or inside.endswith("/") or ignored(inside, self._config.ingest.ignore):
                continue
            files, size = files + 1, size + listed.size
            archives = archives or inside.lower().endswith(FILE_KINDS)
        if not files:  # there is nothing to learn from, also where it is marked
            return Upload(uri=uri)
        return Upload(
            uri=uri,
            marked=marked,
            images=None if archives else files,
            newest=newest,
            fingerprint=f"{files} files, {size} bytes, {newest.isoformat()}",
        )

    def _uri(self, name: str) -> str:
        return f"{self._source}/{name}"
