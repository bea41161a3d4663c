"""Ingest at scale: memory, and speed against `tar`, webdataset's own writer and decoding alone, on the same files.

Two deliveries of JPEG files: many small ones (32x32) and fewer large ones (1200x900). Goal of --check: less than
500 MiB resident in all processes together (shared pages counted once), every image usable.

    .venv/bin/python benchmarks/ingest.py [--quick] [--check]
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from components.core.config import Config, StoreConfig
from components.core.storage import open_store
from components.core.windows import Window

MOST_RESIDENT = 500 * 2**20
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Files to make: how many, of which size in pixels."""

    name: str
    count: int
    width: int
    height: int


def write_jpeg(folder: Path, delivery: Delivery, number: int) -> None:
    """Smooth colours with noise: as large as a photograph's file, and no two alike."""
    rng = np.random.default_rng(number)
    smooth = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(
        (delivery.width, delivery.height), Image.Resampling.BICUBIC
    )
    noise = rng.integers(-10, 10, (delivery.height, delivery.width, 1))
    path = folder / f"class-{number % 100:02d}" / f"{number:06d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.asarray(smooth).astype(int) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=85)


def ingest(folder: Path, house: Path) -> None:
    """Run `retrain ingest` as people do, and check what came of it."""
    (house / "retrain.yaml").write_text("store: {uri: store, cache: cache}\n")
    command = [str(Path(sys.executable).parent / "retrain"), "ingest", str(folder), "-c", str(house / "retrain.yaml")]
    subprocess.run(command, check=True, capture_output=True)


def usable(house: Path) -> int:
    """How many images the only window of a store holds."""
    store = open_store(StoreConfig(uri=str(house / "store")))
    (key,) = [o.key for o in store.list_objects("datasets/") if o.key.endswith("window.json")]
    return Window.open(store, Config(store=StoreConfig(uri="x")).dataset, key.split("/")[-2]).document.usable


def read_with_tar(folder: Path) -> None:
    """Read every byte in the order of the folder; a pipe, because tar reads nothing when it writes to /dev/null."""
    with subprocess.Popen(["tar", "-cf", "-", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
        assert tar.stdout is not None
        while tar.stdout.read(2**20):
            pass


def write_with_webdataset(folder: Path, house: Path) -> None:
    """Pack the same images with their labels, without looking at them."""
    with webdataset.ShardWriter(str(house / "wds-%05d.tar"), maxsize=128 * 2**20, maxcount=10**9, verbose=0) as writer:
        for path in sorted(folder.rglob("*.jpg")):
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": path.parent.name})


def decode_alone(folder: Path) -> None:
    """Decode every image on all cores and do nothing with it: what reading every pixel costs at the least."""
    with ProcessPoolExecutor(CORES) as pool:
        for _ in pool.map(decode, sorted(folder.rglob("*.jpg")), chunksize=64):
            pass


def decode(path: Path) -> None:
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.load()


def timed(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


class Resident:
    """Peak of the memory of this process's children, all together, sampled five times a second."""

    def __enter__(self) -> Resident:
        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            self.peak = max(self.peak, sum(map(proportional_bytes, descendants(os.getpid()))))


def descendants(process: int) -> list[int]:
    found = []
    for listing in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(child) for child in listing.read_text().split()]
        except OSError:  # the thread has ended
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def proportional_bytes(process: int) -> int:
    """Resident bytes, those shared by k processes counted as 1 / k each."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measure(delivery: Delivery) -> tuple[int, bool]:
    """Ingest one delivery and its rivals; print a table. Returns the peak in bytes, and whether all images came."""
    with tempfile.TemporaryDirectory(prefix="retrain-ingest-") as name:
        house, folder = Path(name), Path(name, "delivery")
        print(f"\n{delivery.count:,} JPEG files of {delivery.width}x{delivery.height}: making them ...", flush=True)
        with ProcessPoolExecutor(CORES) as pool:
            numbers = range(delivery.count)
            list(pool.map(write_jpeg, [folder] * delivery.count, [delivery] * delivery.count, numbers, chunksize=50))
        total = sum(path.stat().st_size for path in folder.rglob("*.jpg"))
        with Resident() as resident:
            ours = timed(lambda: ingest(folder, house))
        rivals = {
            "tar, reading": timed(lambda: read_with_tar(folder)),
            "webdataset, packing": timed(lambda: write_with_webdataset(folder, house)),
            f"Pillow, decoding on {CORES} cores": timed(lambda: decode_alone(folder)),
        }
        complete = usable(house) == delivery.count
    rate, speed = delivery.count / ours, total / 2**20 / ours
    print(f"retrain ingest: {ours:.1f} s, {rate:,.0f} images/s, {speed:.1f} MB/s, {resident.peak / 2**20:.0f} MiB")
    for rival, seconds in rivals.items():
        print(f"  {rival}: {seconds:.1f} s; ingest takes {ours / seconds:.1f} times as long")
    return resident.peak, complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    parser.add_argument("--check", action="store_true", help="exit 1 where the goal is missed")
    arguments = parser.parse_args()
    part = 10 if arguments.quick else 1
    results = [
        measure(Delivery(name="small", count=100_000 // part, width=32, height=32)),
        measure(Delivery(name="large", count=2_000 // part, width=1200, height=900)),
    ]
    peak, complete = max(peak for peak, _ in results), all(complete for _, complete in results)
    print(f"\npeak {peak / 2**20:.0f} MiB resident of {MOST_RESIDENT / 2**20:.0f}; all images usable: {complete}")
    if arguments.check and not (complete and peak < MOST_RESIDENT):
        sys.exit(1)


if __name__ == "__main__":
    main()
