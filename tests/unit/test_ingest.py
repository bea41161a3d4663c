"""Ingest: every kind of source becomes a window, the same images the same one, whatever happens on the way.

Also the builders of deliveries that the other tests of ingest use. Not covered: one kind of source at a time
(`test_sources`, `test_archives`, `test_tables`), and buckets (`integration/test_ingest_s3`).
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.core.config import Config, IngestConfig, StoreConfig
from components.core.contracts import Failure, WindowDocument
from components.core.errors import ConfigurationError, RetrainError, SourceError
from components.core.runs import Run
from components.core.storage import DirectoryStore, sha256_hex
from components.core.windows import Window
from components.ingest import batches, step, workers
from components.ingest.step import ingest, mark_duplicates

# Builders


def picture(seed: int, side: int = 12, kind: str = "PNG") -> bytes:
    """A file with a random RGB image; another seed, another image."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def configured(folder: Path, **changes: Any) -> Config:
    """A configuration whose store and cache lie in a folder, with changes to its section `ingest`."""
    store = StoreConfig(uri=str(folder / "store"), cache=str(folder / "cache"))
    return Config(store=store, ingest=IngestConfig(**{"workers": 2, **changes}))


def taken(folder: Path, source: Path | str, **changes: Any) -> Window:
    """The window of a source, with store and cache in a folder."""
    config = configured(folder, **changes)
    store = DirectoryStore(folder / "store")
    return Window.open(store, config.dataset, ingest(store, config, str(source)).id)


def refused(folder: Path, source: Path | str, **changes: Any) -> SourceError:
    """The error of a source that cannot be taken in; nothing is written but the cache."""
    before = outside(folder)
    with pytest.raises(SourceError) as caught:
        taken(folder, source, **changes)
    assert outside(folder) == before
    assert not (folder / "store").exists(), "a refused delivery leaves nothing in the store"
    assert all((caught.value.found, caught.value.expected, caught.value.next_command))
    return caught.value


def outside(folder: Path) -> set[str]:
    """All names below a folder, but for those in store and cache."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in names if name.partition("/")[0] not in ("store", "cache")}


def class_folders(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Files by their path below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar_of(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]], **options: Any) -> Path:
    """A tar of members in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def window_files(folder: Path, *, but: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Files of the windows in a folder's store; of `window.json` without the time."""
    found = {}
    for path in sorted((folder / "store").rglob("*")):
        if path.is_file() and ".tmp" not in path.parts and not path.name.startswith(but or "\0"):
            data = path.read_bytes()
            if path.name == "window.json":
                data = json.dumps({**json.loads(data), "created": None}).encode()
            found[path.relative_to(folder).as_posix()] = data
    return found


def manifest(window: Window, *columns: str) -> dict[str, Any]:
    """Of each delivered name one column, or a tuple of several."""
    rows = window.manifest().to_pylist()
    return {row["source"]: row[columns[0]] if len(columns) == 1 else tuple(row[c] for c in columns) for row in rows}


def png_claiming(width: int, height: int, data: bytes = b"", *, bits: int = 1, extra: bytes = b"") -> bytes:
    """A PNG file of grey pixels whose header says what it likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    """Thirty images of two classes, one of them twice, one under both labels, one truncated and one empty."""
    files = {f"{'cat' if seed % 2 else 'dog'}/{seed:02d}.png": picture(seed) for seed in range(30)}
    files |= {"cat/01-copy.png": picture(1), "dog/03-is-a-cat.png": picture(3)}
    return class_folders(tmp_path / "delivery", {**files, "cat/cut.png": picture(5)[:200], "dog/empty.png": b""})


# A folder


def test_what_is_set_aside_and_why(delivery: Path, tmp_path: Path) -> None:
    window = taken(tmp_path, delivery)
    assert window.document.status_counts == {"conflicting": 2, "duplicate": 1, "ok": 29, "unreadable": 2}
    assert window.document.class_counts == {"cat": 14, "dog": 15}
    aside = {name: (status, split) for name, (status, split) in manifest(window, "status", "split").items()}
    assert {name: found for name, found in aside.items() if found[0] != "ok"} == {
        "cat/01.png": ("duplicate", "none"),  # 01-copy.png comes first by name
        "cat/03.png": ("conflicting", "none"),
        "dog/03-is-a-cat.png": ("conflicting", "none"),
        "cat/cut.png": ("unreadable", "none"),
        "dog/empty.png": ("unreadable", "none"),
    }
    reasons = manifest(window, "reason")
    assert reasons["dog/empty.png"] == "empty file"
    assert {name for name, reason in reasons.items() if reason} == {"cat/cut.png", "dog/empty.png"}


def test_packed_images_are_the_delivered_bytes(delivery: Path, tmp_path: Path) -> None:
    window = taken(tmp_path, delivery)
    rows = window.rows(columns=("sha256", "label", "group", "split", "bytes", "source", "shard", "offset"))
    names = rows["source"].to_pylist()
    found = {names[position]: data for position, data in window.images(rows)}
    assert len(found) == 29
    assert all((delivery / name).read_bytes() == data for name, data in found.items())
    facts = set(manifest(window, "width", "height", "channels", "format", "shard").values())
    assert {fact[:4] for fact in facts} == {(12, 12, 3, "PNG"), (None,) * 4}
    window.verify()


def test_the_spool_is_gone_after_success(delivery: Path, tmp_path: Path) -> None:
    taken(tmp_path, delivery)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock" and path.name != "spool"]


def test_a_window_is_cut_into_shards_that_do_not_depend_on_the_workers(delivery: Path, tmp_path: Path) -> None:
    for count in (1, 3):
        taken(tmp_path / str(count), delivery, workers=count, shard_bytes=3000)
    assert window_files(tmp_path / "1") == window_files(tmp_path / "3")
    assert len([name for name in window_files(tmp_path / "1") if name.endswith(".tar")]) > 5


def test_the_same_folder_twice_is_one_window(delivery: Path, tmp_path: Path) -> None:
    first = taken(tmp_path, delivery)
    before = window_files(tmp_path)
    assert taken(tmp_path, delivery).document == first.document
    assert window_files(tmp_path) == before


def test_the_same_images_in_another_folder_are_the_same_window(delivery: Path, tmp_path: Path) -> None:
    first = taken(tmp_path, delivery)
    assert taken(tmp_path, delivery.rename(tmp_path / "renamed")).document.id == first.document.id


def test_another_image_makes_another_window(delivery: Path, tmp_path: Path) -> None:
    first = taken(tmp_path, delivery)
    (delivery / "cat" / "new.png").write_bytes(picture(999))
    assert taken(tmp_path, delivery).document.id != first.document.id


def test_a_window_can_be_named_by_its_id(delivery: Path, tmp_path: Path) -> None:
    document = taken(tmp_path, delivery).document
    assert taken(tmp_path, document.id).document == document


def test_an_id_that_no_window_has_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="0" * 32):
        taken(tmp_path, "0" * 32)


def test_a_wrong_folder_leaves_the_store_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(tmp_path, tmp_path / "empty").found


def test_pixel_limit_comes_from_the_configuration(delivery: Path, tmp_path: Path) -> None:
    window = taken(tmp_path, delivery, max_pixels=143)  # one below 12 x 12
    assert window.document.usable == 0
    assert "144 pixels" in manifest(window, "reason")["cat/05.png"]


@pytest.mark.parametrize("name", ["cat/1.png", "cat/1.JPEG", "cat/1.tiff"])
def test_garbage_in_an_image_file_is_counted(tmp_path: Path, name: str) -> None:
    folder = class_folders(tmp_path / "delivery", {name: b"\0garbage", "cat/good.png": picture(0)})
    window = taken(tmp_path, folder)
    assert manifest(window, "status") == {name: "unreadable", "cat/good.png": "ok"}
    assert "no image" in manifest(window, "reason")[name]


@pytest.mark.parametrize("text", [b"these are not pixels", b"<html>\n<p>404"])
def test_text_is_no_image_whatever_it_is_called(tmp_path: Path, text: bytes) -> None:
    folder = class_folders(tmp_path / "delivery", {"cat/1.png": text, "cat/good.png": picture(0)})
    assert "1.png is no image" in refused(tmp_path, folder).found


def test_a_file_that_is_no_image_stops_the_ingest_by_name(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "delivery", {"cat/1.png": picture(0), "cat/labels.txt": b"cat, cat, dog"})
    error = refused(tmp_path, folder)
    assert "labels.txt is no image" in error.found
    assert "ingest.ignore" in error.next_command
    assert taken(tmp_path, folder, ignore=("*.txt",)).document.rows == 1


def test_a_file_over_the_byte_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "delivery", {"cat/1.png": picture(0)})
    os.truncate(folder / "cat/1.png", 2**40)  # sparse
    assert "max_image_bytes" in refused(tmp_path, folder, max_image_bytes=2**20).next_command


# Every kind of source

LABELS = {n: ("cat", "dog", None)[n % 3] for n in range(9)}


def as_csv(folder: Path, text: str = "") -> Path:
    files = {f"pictures/{n}.png": picture(n) for n in LABELS}
    rows = "".join(f"pictures/{n}.png,{label or text}\n" for n, label in LABELS.items())
    class_folders(folder, {**files, "labels.csv": f"path,label\n{rows}".encode()})
    return folder / "labels.csv"


def as_path_parquet(folder: Path) -> Path:
    class_folders(folder, {f"pictures/{n}.png": picture(n) for n in LABELS})
    rows = {"path": [f"pictures/{n}.png" for n in LABELS], "label": list(LABELS.values())}
    pq.write_table(pa.table(rows), folder / "labels.parquet")
    return folder / "labels.parquet"


def as_tars(folder: Path) -> Path:
    for start in (0, 5):
        members: list[tuple[str | tarfile.TarInfo, bytes]] = []
        for n, label in list(LABELS.items())[start : start + 5 - start // 5]:
            members.append((f"{n:03d}.png", picture(n)))
            if label and n % 2:
                members.append((f"{n:03d}.cls", label.encode()))
            elif label:
                members.append((f"{n:03d}.json", json.dumps({"label": label, "other": [1]}).encode()))
        tar_of(folder / f"{start}.tar", members)
    return folder


def as_hugging_face(folder: Path) -> Path:
    names = ["cat", "dog"]
    rows = {
        "image": [{"bytes": picture(n), "path": f"{n}.png"} for n in LABELS],
        "label": [names.index(label) if label else -1 for label in LABELS.values()],
    }
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    table = pa.table(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=4)
    return folder


KINDS = {"csv": as_csv, "parquet of paths": as_path_parquet, "tars": as_tars, "images in parquet": as_hugging_face}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_are_the_same_window_through_every_kind_of_source(tmp_path: Path, kind: str) -> None:
    expected = taken(tmp_path / "expected", as_csv(tmp_path / "expected"))
    assert expected.document.class_counts == {"cat": 3, "dog": 3}
    assert (expected.document.rows, expected.document.usable, expected.document.unlabelled) == (9, 9, 3)
    window = taken(tmp_path / "found", KINDS[kind](tmp_path / "delivery"))
    assert window.document.id == expected.document.id
    images = {name: data for name, data in window_files(tmp_path / "found").items() if name.endswith(".tar")}
    assert images == {n: d for n, d in window_files(tmp_path / "expected").items() if n.endswith(".tar")}
    assert {row["sha256"]: row["label"] for row in window.manifest().to_pylist()} == {
        sha256_hex(picture(n)): label for n, label in LABELS.items()
    }


def test_class_folders_and_a_table_are_the_same_window(tmp_path: Path) -> None:
    labelled = {n: label for n, label in LABELS.items() if label}
    folder = class_folders(tmp_path / "folders", {f"{label}/{n}.png": picture(n) for n, label in labelled.items()})
    table = class_folders(tmp_path / "table", {f"{n}.png": picture(n) for n in labelled})
    (table / "t.csv").write_text("path,label\n" + "".join(f"{n}.png,{label}\n" for n, label in labelled.items()))
    assert taken(tmp_path / "a", folder).document.id == taken(tmp_path / "b", table / "t.csv").document.id


def test_unlabelled_rows_are_usable_but_on_no_class(tmp_path: Path) -> None:
    window = taken(tmp_path, as_csv(tmp_path / "delivery"))
    assert window.document.train_rows + window.document.holdout_rows == 6
    assert manifest(window, "label", "status")["pictures/2.png"] == (None, "ok")


@pytest.mark.parametrize("how", ["pattern", "csv", "json", "parquet"])
def test_groups_are_on_one_side(tmp_path: Path, how: str) -> None:
    clip = {n: f"clip-{n % 10}" for n in range(60)}
    folder, changes = tmp_path / "delivery", {"group_column": "clip"}
    source = folder
    if how == "pattern":
        class_folders(folder, {f"cat/{group}/{n}.png": picture(n) for n, group in clip.items()})
        changes = {"group_pattern": r"/(clip-\d+)/"}
    elif how == "csv":
        class_folders(folder, {f"{n}.png": picture(n) for n in clip})
        source = folder / "t.csv"
        source.write_text("path,label,clip\n" + "".join(f"{n}.png,cat,{group}\n" for n, group in clip.items()))
    elif how == "json":
        members = [(f"{n:03d}.png", picture(n)) for n in clip]
        members += [(f"{n:03d}.json", json.dumps({"label": "cat", "clip": clip[n]}).encode()) for n in clip]
        tar_of(folder / "x.tar", sorted(members))
    else:
        folder.mkdir()
        rows = {"image": [picture(n) for n in clip], "label": ["cat"] * 60, "clip": list(clip.values())}
        pq.write_table(pa.table(rows), folder / "x.parquet")
    rows = taken(tmp_path, source, holdout_fraction=0.5, **changes).rows().to_pylist()
    assert {row["group"] for row in rows} == set(clip.values())
    assert len({(row["group"], row["split"]) for row in rows}) == 10
    assert {row["split"] for row in rows} == {"train", "holdout"}


# Runs


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    path = tmp_path / "retrain.yaml"
    path.write_text("store: {uri: store, cache: cache}\nmodel: m\n")
    return str(path)


def test_a_wrong_strategy_is_filed_with_the_run_that_asked_for_it(
    delivery: Path, tmp_path: Path, config_path: str
) -> None:
    with pytest.raises(ConfigurationError, match="fine-tone"):
        step.run(config_path, "run-1", str(delivery), "fine-tone")
    run = Run(DirectoryStore(tmp_path / "store"), "run-1")
    assert (run.parameters.strategy, run.parameters.source, run.parameters.model) == ("fine-tone", str(delivery), "m")
    assert run.config.model == "m"
    failure = run.need("failure-ingest", Failure)
    assert (failure.step, failure.error, failure.exit_code) == ("ingest", "ConfigurationError", 2)
    assert "fine-tone" in failure.message
    assert run.read("ingest", WindowDocument) is None
    assert not list(run.store.list_objects("datasets/")), "nothing was packed"
    assert run.failures() == [failure]


def test_a_wrong_source_is_filed_with_the_run_that_asked_for_it(tmp_path: Path, config_path: str) -> None:
    with pytest.raises(SourceError):
        step.run(config_path, "run-1", str(tmp_path / "nowhere"), "auto")
    run = Run(DirectoryStore(tmp_path / "store"), "run-1")
    assert run.parameters.source == str(tmp_path / "nowhere")
    assert run.need("failure-ingest", Failure).error == "SourceError"


def test_a_run_begins_with_its_window(delivery: Path, tmp_path: Path, config_path: str) -> None:
    document = step.run(config_path, "run-1", str(delivery), "fine-tune")
    run = Run(DirectoryStore(tmp_path / "store"), "run-1")
    assert run.need("ingest", WindowDocument) == document
    assert run.parameters.strategy == "fine-tune"
    assert run.failures() == []


# Killed in the middle, and at the same time

# Looking takes a while, so that there is a middle; small batches, so that some are done by then.
INGEST = """
import sys, time
from pathlib import Path
from components.core.storage import DirectoryStore
from components.ingest import batches, workers
from components.ingest.step import ingest
from tests.unit.test_ingest import configured
folder, source, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
look = workers.inspect_image
def slowly(*arguments):
    time.sleep(pause)
    return look(*arguments)
workers.inspect_image, batches.BATCH_FILES = slowly, 8
print(ingest(DirectoryStore(folder / "store"), configured(folder), source).id)
"""


def start_ingest(folder: Path, source: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", INGEST, str(folder), str(source), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def runs(process: int) -> bool:
    """Whether a process still does something: one that is dead and not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_in_the_middle(folder: Path, source: Path, finished: int) -> None:
    """Start an ingest, end it with SIGKILL once some batches are done; its workers end with it."""
    process = start_ingest(folder, source, pause=0.02)
    try:
        deadline = time.monotonic() + 30
        while len(list((folder / "cache").rglob("*.rows"))) < finished:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(children) == 2
    deadline = time.monotonic() + 5
    while any(runs(int(child)) for child in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)


def test_ten_ingests_of_a_folder_two_of_them_killed_give_one_window_and_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{'cat' if n % 2 else 'dog'}/{n:03d}.png": picture(n) for n in range(120)}
    files |= {"cat/copy.png": picture(1), "dog/other.png": picture(3), "cat/cut.png": picture(7)[:99]}
    delivery, looked_at, look = tmp_path / "delivery", tmp_path / "looked-at", workers.inspect_image

    def noting(data: bytes, max_pixels: int) -> Any:
        with looked_at.open("ab") as file:
            file.write(sha256_hex(data).encode() + b"\n")
        return look(data, max_pixels)

    monkeypatch.setattr(workers, "inspect_image", noting)
    monkeypatch.setattr(batches, "BATCH_FILES", 8)
    found = []
    for attempt in range(10):
        for name in random.Random(attempt).sample(sorted(files), len(files)):  # created in another order each time
            class_folders(delivery, {name: files[name]})
        here, finished = tmp_path / f"attempt-{attempt}", 0
        if attempt in (3, 7):
            kill_in_the_middle(here, delivery, finished=attempt)
            assert not (here / "store").exists()
            finished = len(list((here / "cache").rglob("*.rows")))
        looked_at.write_bytes(b"")
        taken(here, delivery)
        assert len(looked_at.read_bytes().split()) == len(files) - 8 * finished, "finished batches are not read again"
        found.append(window_files(here))
        subprocess.run(["rm", "-r", str(delivery)], check=True)
    assert len(found[0]) == 3  # one shard, the manifest, window.json
    assert all(files == found[0] for files in found)


@pytest.mark.parametrize("caches", [("one", "one"), ("one", "two")])
def test_two_ingests_at_once_end_with_the_same_window(delivery: Path, tmp_path: Path, caches: tuple[str, str]) -> None:
    for number, cache in enumerate(caches):
        (tmp_path / str(number)).mkdir()
        for name in ("store", "cache"):
            at = tmp_path / (f"cache-{cache}" if name == "cache" else "the-store")
            at.mkdir(exist_ok=True)
            (tmp_path / str(number) / name).symlink_to(at)
    both = [start_ingest(tmp_path / str(number), delivery, pause=0.01) for number in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1]
    assert len(list((tmp_path / "the-store" / "datasets" / "images" / "windows").iterdir())) == 1
    Window.open(DirectoryStore(tmp_path / "the-store"), "images", answers[0].strip()).verify()


# Hostile images


def bombs() -> dict[str, bytes]:
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6)
    bmp = (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 10**5, 10**5, 1, 1, 0, 0, 0, 0, 0, 0)
    )
    webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xff" * 6
    entries = [(256, 4, 10**5), (257, 4, 10**5), (258, 3, 8), (262, 3, 1), (273, 4, 200), (277, 3, 1), (279, 4, 9)]
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries))
    tiff += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries) + bytes(200)
    lines = zlib.compress(bytes(1251 * 10_000), 9)
    return {
        "12-kilobytes-for-95-mebibytes.png": png_claiming(10_000, 10_000, lines),
        "four-exapixels.png": png_claiming(2**31 - 1, 2**31 - 1, lines),
        "line.png": png_claiming(2**31 - 1, 1, lines),
        "screen.gif": gif,
        "header.bmp": bmp,
        "canvas.webp": webp,
        "strips.tiff": tiff,
    }


def test_image_bombs_are_counted_and_others_unharmed(tmp_path: Path) -> None:
    files = bombs()
    assert all(len(data) < 16 * 1024 for data in files.values())
    folder = class_folders(tmp_path / "delivery", {f"cat/{name}": data for name, data in files.items()})
    class_folders(folder, {f"dog/{n}.png": picture(n) for n in range(5)})
    window = taken(tmp_path, folder)
    reasons = {name: reason for name, reason in manifest(window, "reason").items() if name.startswith("cat/")}
    assert manifest(window, "status") == {f"cat/{name}": "unreadable" for name in files} | {
        f"dog/{n}.png": "ok" for n in range(5)
    }
    assert "100,000,000 pixels" in reasons["cat/12-kilobytes-for-95-mebibytes.png"]
    assert all(reason and reason.isprintable() for reason in reasons.values())


def test_compressed_text_in_an_image_is_not_unpacked_without_end(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packed = zlib.compress(bytes(2**28), 9)
    text, profile = chunk(b"zTXt", b"a\0\0" + packed), chunk(b"iCCP", b"a\0\0" + packed)
    data = zlib.compress(bytes(2 * 8), 9)
    files = {f"cat/{n}.png": png_claiming(8, 8, data, extra=extra) for n, extra in enumerate((text, profile))}
    folder = class_folders(tmp_path / "delivery", {**files, "cat/good.png": picture(0)})
    started = time.monotonic()
    window = taken(tmp_path, folder)
    assert window.document.rows == 3
    assert manifest(window, "status")["cat/good.png"] == "ok"
    assert time.monotonic() - started < 10


def test_bytes_that_are_damaged_at_random_are_counted(tmp_path: Path) -> None:
    dice, files = random.Random(0), {}
    for number in range(150):
        data = bytearray(picture(number, kind=("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")[number % 6]))
        for _ in range(dice.randrange(1, 20)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        files[f"cat/{number}.png"] = bytes(data[: dice.randrange(len(data)) if number % 3 else None])
    window = taken(tmp_path, class_folders(tmp_path / "delivery", files))
    counts = window.document.status_counts
    assert set(counts) <= {"ok", "unreadable", "duplicate"}
    assert sum(counts.values()) == 150
    assert all(
        bool(reason) == (status == "unreadable") for status, reason in manifest(window, "status", "reason").values()
    )


def test_twenty_thousand_classes(tmp_path: Path) -> None:
    def dot(n: int) -> bytes:  # a BMP of one pixel
        head = struct.pack("<IHHI", 58, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0)
        return b"BM" + head + n.to_bytes(3, "little") + b"\0"

    folder = tmp_path / "delivery"
    class_folders(folder, {f"class-{n:05d}/image.bmp": dot(n) for n in range(20_000)})
    started = time.monotonic()
    document = taken(tmp_path, folder).document
    assert time.monotonic() - started < 60
    assert (document.usable, len(document.class_counts)) == (20_000, 20_000)


# Duplicates


def rows_of(*rows: tuple[str, ...] | tuple[str, str, str | None, str]) -> pa.Table:
    """Rows of name, digest, label, status and, where they have one, group."""
    names = ("source", "sha256", "label", "status", "group")
    padded = [(*row, None)[:5] for row in rows]
    columns = {name: pa.array([row[n] for row in padded], pa.string()) for n, name in enumerate(names)}
    return pa.table({**columns, "split": ["train" if row[3] == "ok" else "none" for row in rows]})


def statuses(rows: pa.Table) -> dict[str, str]:
    marked = mark_duplicates(rows)
    return dict(zip(marked["source"].to_pylist(), marked["status"].to_pylist(), strict=True))


def test_the_first_of_equal_images_by_name_is_kept() -> None:
    rows = rows_of(*((name, sha, "cat", "ok") for name, sha in (("c", "1"), ("a", "1"), ("b", "1"), ("d", "2"))))
    assert statuses(rows) == {"a": "ok", "b": "duplicate", "c": "duplicate", "d": "ok"}


def test_of_equal_images_the_group_decides_and_never_the_name() -> None:
    one = statuses(rows_of(("a", "1", "cat", "ok", "clip2"), ("b", "1", "cat", "ok", "clip1")))
    other = statuses(rows_of(("b", "1", "cat", "ok", "clip2"), ("a", "1", "cat", "ok", "clip1")))
    assert (one, other) == ({"a": "duplicate", "b": "ok"}, {"a": "ok", "b": "duplicate"})


def test_the_labelled_one_of_equal_images_is_kept() -> None:
    rows = rows_of(("a", "1", None, "ok"), ("b", "1", "cat", "ok"), ("c", "1", "cat", "ok"), ("d", "1", None, "ok"))
    assert statuses(rows) == {"a": "duplicate", "b": "ok", "c": "duplicate", "d": "duplicate"}


def test_an_image_under_two_labels_is_not_kept_at_all() -> None:
    rows = rows_of(("a", "1", "cat", "ok"), ("b", "1", None, "ok"), ("c", "1", "dog", "ok"), ("d", "2", "dog", "ok"))
    assert statuses(rows) == {"a": "conflicting", "b": "conflicting", "c": "conflicting", "d": "ok"}


def test_unreadable_files_are_neither_duplicates_nor_conflicts() -> None:
    rows = rows_of(("a", "1", "cat", "unreadable"), ("b", "1", "dog", "unreadable"), ("c", "2", "dog", "ok"))
    assert statuses(rows) == {"a": "unreadable", "b": "unreadable", "c": "ok"}


def test_marked_rows_are_on_no_side_and_in_order_of_name() -> None:
    rows = rows_of(("d", "2", "dog", "ok"), ("c", "2", "cat", "ok"), ("b", "1", "cat", "ok"), ("a", "1", "cat", "ok"))
    marked = mark_duplicates(rows).to_pylist()
    assert [row["source"] for row in marked] == ["a", "b", "c", "d"]
    assert all(row["split"] == ("train" if row["status"] == "ok" else "none") for row in marked)
    assert [row["label"] for row in marked] == ["cat", "cat", "cat", "dog"]


def test_marking_does_not_depend_on_the_order() -> None:
    rows = [("a", "1", "cat", "ok"), ("b", "1", "cat", "ok"), ("c", "2", "cat", "ok"), ("d", "2", "dog", "ok")]
    assert statuses(rows_of(*rows)) == statuses(rows_of(*rows[::-1]))
    assert Counter(statuses(rows_of(*rows)).values()) == {"ok": 1, "duplicate": 1, "conflicting": 2}


def test_every_error_of_an_ingest_says_what_to_do(tmp_path: Path) -> None:
    for source in ("nowhere", "nowhere.csv", "ftp://host/x", "0" * 32):
        with pytest.raises(RetrainError) as caught:
            taken(tmp_path, source)
        assert all((caught.value.found, caught.value.expected, caught.value.next_command))
