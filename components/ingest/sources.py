"""What was delivered: class folders, tables of paths, WebDataset tars or Parquet files with images inside, in a local
folder or below an `s3://` prefix.

Covers telling them apart and cutting them into batches. Not covered: reading (`batches`, `archives`, `tables`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from components.core.claims import NEW
from components.core.config import Config
from components.core.errors import SourceError
from components.core.logs import progress
from components.core.run_claims import claim_number
from components.ingest.archives import cut_tar
from components.ingest.batches import Batch, LabelledFile, check_text, group_of, pack_files
from components.ingest.places import Bucket, ListedFile, LocalFolder, Place
from components.ingest.tables import has_images, list_rows, row_groups

FILE_KINDS = (".csv", ".parquet", ".tar")


def names_window(source: str) -> bool:
    """Whether a source is the id of a window that exists already, rather than a delivery."""
    return re.fullmatch(r"[0-9a-f]{32}", source) is not None


def names_claim(source: str) -> bool:
    """Whether a source stands for what was delivered below `trigger.source`: see `step.find_deliveries`."""
    return source == NEW or claim_number(source) is not None


def absolute_source(source: str) -> str:
    """A source as every process understands it, whatever its working directory."""
    if "://" in source or names_window(source) or names_claim(source):
        return source
    return str(Path(source).resolve())  # the trigger's deliveries are named so: one name a delivery


def check_source(source: str, config: Config) -> None:
    """Look through a source as far as that is cheap: all names and first bytes of a local one, the start of a remote.

    Raises:
        SourceError: See `list_batches`.
    """
    with progress("checking the delivery, batches") as advance:
        for batch in list_batches(source, config):
            batch.check(config.ingest)
            advance(1)
            if "://" in source:
                return


def list_batches(source: str, config: Config) -> Iterator[Batch]:
    """Cut a source into batches, as a stream, always the same way.

    Args:
        source: A folder or an `s3://` prefix that holds class folders (`<label>/.../<image>`), images without a label
            (`<image>`), tars or Parquet files; or one .csv, .parquet or .tar file. Credentials and endpoint of a bucket
            are the store's.
        config: Column names, group pattern, names to pass over.

    Raises:
        SourceError: Nothing there, no image, a file outside the class folders, or one that does not belong.
        ConfigurationError: The group pattern is no regular expression with a group.
    """
    batches = _batches(source, config)
    first = next(batches, None)
    if first is None:
        raise SourceError(
            f"{source} holds no images",
            expected="class folders with images in them: SOURCE/<label>/<image>; or .csv, .parquet or .tar files",
            next_command="check the path; list it",
        )
    yield first
    yield from batches


def _batches(source: str, config: Config) -> Iterator[Batch]:
    if source.lower().endswith(FILE_KINDS):
        folder, _, name = source.rpartition("/")
        place = _place(folder or ("/" if source.startswith("/") else "."), config)
        if file := place.find(name):
            yield from _file_batches(place, file, config)
            return
    place = _place(source, config)  # also a folder that is called so, as some writers of Parquet make them
    files = place.list_files()
    first = next(files, None)
    if first is None:
        return
    kind = next((kind for kind in FILE_KINDS if first.name.lower().endswith(kind)), None)
    listed = chain([first], files)
    if kind is None:
        labelled = "/" in first.name
        yield from pack_files(place, (_image_file(place, file, labelled, config) for file in listed))
        return
    for file in listed:
        if not file.name.lower().endswith(kind):
            raise _does_not_belong(f"{place.uri}/{file.name}", f"only {kind} files, as {first.name} is", file.name)
        yield from _file_batches(place, file, config)


def _place(uri: str, config: Config) -> Place:
    ignore = (*config.ingest.ignore, config.trigger.marker)
    if uri.startswith("s3://"):
        return Bucket(config.store.model_copy(update={"uri": uri.rstrip("/")}), ignore)
    if "://" in uri:
        raise SourceError(
            f"the source {uri}", expected="a local path or s3://bucket/prefix", next_command="copy the delivery there"
        )
    return LocalFolder(Path(uri), ignore)


def _file_batches(place: Place, file: ListedFile, config: Config) -> Iterator[Batch]:
    if file.name.lower().endswith(".tar"):
        yield from cut_tar(place, file, config.ingest)
    elif file.name.lower().endswith(".parquet") and has_images(place, file, config.ingest):
        yield from row_groups(place, file, config.ingest)
    else:
        yield from pack_files(place, list_rows(place, file, config.ingest))


def _image_file(place: Place, file: ListedFile, labelled: bool, config: Config) -> LabelledFile:
    """An image of a class folder; or, where the first one lies in none, one without a label, as then all must."""
    folder, separator, _ = file.name.partition("/")
    if bool(separator) != labelled:
        raise _does_not_belong(
            f"{place.uri}/{file.name} lies {'outside' if labelled else 'in one of'} the class folders",
            "every image in the folder of its label (SOURCE/<label>/<image>), or none in any (SOURCE/<image>)",
            file.name,
        )
    label = check_text(folder, "label", place.uri) if labelled else None
    return LabelledFile(file.name, label, group_of(file.name, config.ingest), file.size, file.stamp)


def _does_not_belong(found: str, expected: str, name: str) -> SourceError:
    return SourceError(
        found, expected=expected, next_command=f"move it, or add {name.rpartition('/')[2]!r} to ingest.ignore"
    )
