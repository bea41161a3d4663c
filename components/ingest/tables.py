"""Tables: CSV or Parquet with paths and labels, and Parquet with the images inside, as Hugging Face writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from components.core.config import IngestConfig
from components.core.errors import SourceError
from components.ingest.batches import Delivered, LabelledFile, check_text, digest_of, group_of
from components.ingest.places import ListedFile, Place, check_name

ROWS = 64  # read at a time: whole images are in memory
ROW_GROUP_BYTES = 2 * 2**30  # a larger row group does not fit a worker, or is a decompression bomb


def has_images(place: Place, file: ListedFile, config: IngestConfig) -> bool:
    """Whether a Parquet file holds the images themselves.

    Raises:
        SourceError: It is no Parquet file.
    """
    with place.open(file.name) as opened:
        return config.image_column in _parquet(opened, place, file).schema_arrow.names


def list_rows(place: Place, file: ListedFile, config: IngestConfig) -> Iterator[LabelledFile]:
    """Stream the files that a table of paths and labels names.

    Raises:
        SourceError: A column is missing, a path leads out of the table's folder, or there is no such file.
    """
    where = f"{place.uri}/{file.name}"
    folder = file.name.rpartition("/")[0]
    for row in _rows(place, file, config):
        path = check_name(str(row[config.path_column] or ""), where)
        name = f"{folder}/{path}" if folder else path
        # In a bucket, asking for each file would double the requests: one that is missing is found when it is read.
        found = place.find(name) if place.local else ListedFile(name=name, size=0, stamp="")
        if found is None:
            raise SourceError(
                f"{where} names {path}, which is not there",
                expected="paths relative to the table, of files beside or below it",
                next_command="run again when the delivery is complete",
            )
        yield LabelledFile(
            name=found.name,
            label=check_text(row[config.label_column], "label", where),
            group=_group(row, path, config, where),
            size=found.size,
            stamp=f"{file.stamp} {found.stamp}",
        )


def row_groups(place: Place, file: ListedFile, config: IngestConfig) -> Iterator[RowGroupBatch]:
    """The batches of a Parquet file with images inside.

    Raises:
        SourceError: It is no such file, or a row group is too large to be read.
    """
    with place.open(file.name) as opened:
        parquet = _parquet(opened, place, file)
        wanted = [config.image_column, *([config.group_column] if config.group_column else [])]
        _check_columns(wanted, parquet.schema_arrow.names, f"{place.uri}/{file.name}")
        for number in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(number).total_byte_size
            if size > ROW_GROUP_BYTES:
                raise SourceError(
                    f"{place.uri}/{file.name}: row group {number} of {size} bytes",
                    expected=f"at most {ROW_GROUP_BYTES} bytes",
                    next_command="write it again with smaller row groups",
                )
            yield RowGroupBatch(place, file, number)


@dataclass(frozen=True)
class RowGroupBatch:
    """One row group of a Parquet file with images inside."""

    place: Place
    file: ListedFile
    number: int

    @property
    def fingerprint(self) -> str:
        return digest_of(self.place.uri, self.file.name, self.file.stamp, self.number)

    def check(self, config: IngestConfig) -> None:
        """Nothing: making the batch has read the schema."""

    def read(self, config: IngestConfig) -> Iterator[Delivered]:
        where = f"{self.place.uri}/{self.file.name}"
        with self.place.open(self.file.name) as opened:
            parquet = _parquet(opened, self.place, self.file)
            names = parquet.schema_arrow.names
            labels = _label_names(parquet.schema_arrow, config.label_column)
            wanted = [c for c in (config.image_column, config.label_column, config.group_column) if c in names]
            position = 0
            try:
                for batch in parquet.iter_batches(ROWS, [self.number], wanted, use_threads=False):
                    for row in batch.to_pylist():
                        data, path = _image(row[config.image_column], where)
                        name = f"{self.file.name}/{self.number:05d}-{position:07d}"
                        position += 1
                        if len(data) > config.max_image_bytes:
                            raise SourceError(
                                f"{where}: an image of {len(data)} bytes",
                                expected=f"at most {config.max_image_bytes} (ingest.max_image_bytes)",
                                next_command="remove it, or raise ingest.max_image_bytes",
                            )
                        label = row.get(config.label_column)
                        yield Delivered(
                            name=name,
                            label=check_text(_named(label, labels, where), "label", where),
                            group=_group(row, f"{self.file.name}/{path}" if path else name, config, where),
                            data=data,
                        )
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise _broken(self.place, self.file, error) from error


def _rows(place: Place, file: ListedFile, config: IngestConfig) -> Iterator[dict[str, Any]]:
    """Rows of a CSV or Parquet file with the columns that are wanted, in bounded memory."""
    where = f"{place.uri}/{file.name}"
    wanted = [config.path_column, config.label_column, *([config.group_column] if config.group_column else [])]
    with place.open(file.name) as opened:
        try:
            if file.name.lower().endswith(".csv"):
                _check_columns(wanted, csv.open_csv(opened).schema.names, where)
                opened.seek(0)
                text = csv.ConvertOptions(
                    column_types=dict.fromkeys(wanted, pa.string()),
                    include_columns=wanted,
                    null_values=[""],  # a class may well be called NA
                    strings_can_be_null=True,
                )
                reader = csv.open_csv(opened, csv.ReadOptions(use_threads=False), convert_options=text)
                for batch in reader:
                    yield from batch.to_pylist()
            else:
                parquet = _parquet(opened, place, file)
                _check_columns(wanted, parquet.schema_arrow.names, where)
                for batch in parquet.iter_batches(4096, columns=wanted, use_threads=False):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _broken(place, file, error) from error


def _parquet(opened: Any, place: Place, file: ListedFile) -> Any:
    try:
        parquet = pq.ParquetFile(opened, page_checksum_verification=True)
        names = parquet.schema_arrow.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _broken(place, file, error) from error
    _check_columns([name for name in names if names.count(name) > 1], names, f"{place.uri}/{file.name}")
    return parquet


def _check_columns(wanted: list[str], names: list[str], where: str) -> None:
    if missing := [column for column in wanted if names.count(column) != 1]:
        raise SourceError(
            f"{where} has the columns {', '.join(names[:20])}: {missing[0]!r} {names.count(missing[0])} times",
            expected=f"columns {', '.join(wanted)}, once each",
            next_command="name its columns as ingest.path_column, label_column, group_column or image_column",
        )


def _label_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the classes, where Hugging Face's metadata say what the label's numbers mean."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None  # not written by that library: labels are what they are
    return [str(name) for name in names] if isinstance(names, list) else None


def _named(label: object, names: list[str] | None, where: str) -> object:
    if names is None or not isinstance(label, int):
        return label
    if label == -1:  # that library's way to say: not labelled
        return None
    if not 0 <= label < len(names):
        raise SourceError(
            f"{where} has the label {label}", expected=f"0 to {len(names) - 1}", next_command="make the delivery again"
        )
    return names[label]


def _image(value: object, where: str) -> tuple[bytes, str | None]:
    """Bytes and path of an image cell: bytes, or a struct of both."""
    cell = value if isinstance(value, dict) else {"bytes": value}
    data, path = cell.get("bytes"), cell.get("path")
    if not isinstance(data, bytes):
        raise SourceError(
            f"{where} has an image cell without bytes",
            expected="images inside the file",
            next_command="write the data set with its images embedded, or deliver a table of paths",
        )
    return data, path if isinstance(path, str) else None


def _group(row: dict[str, Any], path: str, config: IngestConfig, where: str) -> str | None:
    group = check_text(row[config.group_column], "group", where) if config.group_column else None
    return group or group_of(path, config)


def _broken(place: Place, file: ListedFile, error: Exception) -> SourceError:
    return SourceError(
        f"{place.uri}/{file.name} cannot be read: {error}",
        expected="a whole CSV (UTF-8, with a header) or Parquet file",
        next_command="make the delivery again",
    )
