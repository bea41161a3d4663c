"""Every kind of source below an `s3://` prefix: the same windows as from a local path, the same errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from components.core.config import Config, IngestConfig, StoreConfig
from components.core.contracts import WindowDocument
from components.core.errors import RetrainError, SourceError
from components.core.storage import open_store
from components.ingest import batches, places
from components.ingest.sources import check_source
from components.ingest.step import ingest
from tests.servers import Backend, on
from tests.unit.test_ingest import as_csv, as_hugging_face, as_path_parquet, as_tars, class_folders, picture, taken

pytestmark = on("moto")


def as_folders(folder: Path) -> Path:
    return class_folders(folder, {f"{'cat' if n % 2 else 'dög'}/{n}.png": picture(n) for n in range(40)})


def upload(backend: Backend, folder: Path) -> str:
    """Put a folder below a prefix of the backend's; returns its address."""
    store = backend.open()
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(f"delivery/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"{backend.config.uri}/delivery"


def configured(backend: Backend, tmp_path: Path, **changes: object) -> Config:
    store = backend.config.model_copy(update={"cache": str(tmp_path / "cache"), "uri": f"{backend.config.uri}/store"})
    return Config(store=store, ingest=IngestConfig(**{"workers": 2, **changes}))  # type: ignore[arg-type]


def ingested(backend: Backend, tmp_path: Path, source: str, **changes: object) -> WindowDocument:
    config = configured(backend, tmp_path, **changes)
    return ingest(open_store(config.store), config, source)


@pytest.mark.parametrize("kind", [as_folders, as_csv, as_path_parquet, as_tars, as_hugging_face])
def test_a_prefix_and_a_path_are_the_same_window(
    backend: Backend, tmp_path: Path, kind: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_FILES", 7)
    monkeypatch.setattr(places, "READ_AHEAD_BYTES", 1000)
    source = kind(tmp_path / "delivery")
    expected = taken(tmp_path / "expected", source).document
    prefix = upload(backend, tmp_path / "delivery")
    remote = prefix if source.is_dir() else f"{prefix}/{source.name}"
    check_source(remote, configured(backend, tmp_path))
    found = ingested(backend, tmp_path, remote)
    assert found.id == expected.id
    assert found.files == expected.files, "names below the source are the same, so everything is"
    assert found.source == remote


def test_a_slash_at_the_end_changes_nothing(backend: Backend, tmp_path: Path) -> None:
    prefix = upload(backend, as_folders(tmp_path / "delivery"))
    assert ingested(backend, tmp_path, prefix).id == ingested(backend, tmp_path, prefix + "/").id


def test_a_local_source_goes_into_a_bucket(backend: Backend, tmp_path: Path) -> None:
    source = as_folders(tmp_path / "delivery")
    assert ingested(backend, tmp_path, str(source)).id == taken(tmp_path, source).document.id


@pytest.mark.parametrize("name", ["", "/x.csv", "/x.tar", "/x.parquet"])
def test_nothing_there_is_an_error_of_the_source(backend: Backend, tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError):
        ingested(backend, tmp_path, f"{backend.config.uri}/nowhere{name}")


@pytest.mark.parametrize(
    "source", ["s3://no-such-bucket/x", "s3://", "s3:///x", "s3://A_b!/x", "s3://no-such-bucket/x.tar"]
)
def test_a_bucket_that_is_not_there_is_a_clear_error(backend: Backend, tmp_path: Path, source: str) -> None:
    with pytest.raises(RetrainError):
        ingested(backend, tmp_path, source)


def test_a_table_that_names_a_missing_object_is_refused(backend: Backend, tmp_path: Path) -> None:
    for path in ("missing.png", ".hidden/1.png", "a" * 300, "../x.png", "cat"):
        folder = class_folders(tmp_path / "delivery", {"cat/1.png": picture(1)})
        (folder / "t.csv").write_text(f"path,label\ncat/1.png,cat\n{path},cat\n")
        with pytest.raises(SourceError):
            ingested(backend, tmp_path, f"{upload(backend, folder)}/t.csv")


def test_a_table_that_changes_is_read_anew(backend: Backend, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "delivery", {f"{n}.png": picture(n) for n in range(3)})
    counts = []
    for label in ("cat", "dog"):
        (folder / "t.csv").write_text("path,label\n" + "".join(f"{n}.png,{label}\n" for n in range(3)))
        counts.append(ingested(backend, tmp_path, f"{upload(backend, folder)}/t.csv").class_counts)
    assert counts == [{"cat": 3}, {"dog": 3}]


def test_what_is_no_image_is_refused_and_garbage_is_counted(backend: Backend, tmp_path: Path) -> None:
    folder = class_folders(
        tmp_path / "delivery", {"cat/1.png": picture(1), "cat/2.png": b"\0garbage", "cat/3.png": b""}
    )
    assert ingested(backend, tmp_path, upload(backend, folder)).status_counts == {"ok": 1, "unreadable": 2}
    class_folders(folder, {"cat/readme": b"hello"})
    with pytest.raises(SourceError, match="readme is no image"):
        ingested(backend, tmp_path, upload(backend, folder))


@pytest.mark.parametrize("key", ["cat//1.png", "cat/../1.png", "cat/" + "a" * 300 + ".png"])
def test_keys_that_are_no_names_are_refused(backend: Backend, tmp_path: Path, key: str) -> None:
    bucket, _, prefix = backend.config.uri.removeprefix("s3://").partition("/")
    config: StoreConfig = backend.config
    client = boto3.client("s3", endpoint_url=config.endpoint_url, region_name=config.region)
    try:
        client.put_object(Bucket=bucket, Key=f"{prefix}/keys/{key}", Body=picture(1))
    finally:
        client.close()
    with pytest.raises(SourceError):
        ingested(backend, tmp_path, f"{config.uri}/keys")
