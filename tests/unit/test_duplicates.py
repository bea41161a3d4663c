"""Perceptual hashes and the search for near duplicates, against cases by hand, brute force and real images."""

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from components.core import duplicates
from components.core.duplicates import HASH_BYTES, NEAR_BITS, near_duplicates, near_known, perceptual_hash


def hashes_of(images: list[Image.Image]) -> np.ndarray:
    return np.frombuffer(b"".join(map(perceptual_hash, images)), np.uint8).reshape(-1, HASH_BYTES)


def random_hashes(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, HASH_BYTES), dtype=np.uint8)


def with_bits(*places: int) -> np.ndarray:
    """A hash in which exactly these bits, 0 to 127, are set."""
    bits = np.zeros(8 * HASH_BYTES, dtype=np.uint8)
    bits[list(places)] = 1
    return np.packbits(bits)


def flipped(hashes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each hash with 0 to 12 of its bits flipped: some near duplicates, some just not."""
    masks = [with_bits(*rng.choice(128, rng.integers(0, 13), replace=False)) for _ in hashes]
    return hashes ^ np.stack(masks)


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.bitwise_count(first[:, None] ^ second[None]).sum(axis=2)


def reference_clusters(hashes: np.ndarray) -> list[int]:
    """Lowest row that each row is connected with, by all pairs."""
    near = distances(hashes, hashes) <= NEAR_BITS
    lowest = list(range(len(hashes)))
    for _ in hashes:
        lowest = [min(lowest[other] for other in np.flatnonzero(row)) for row in near]
    return lowest


def first_rows(clusters: np.ndarray) -> list[int]:
    """For each row the first row of its cluster: clusters without their names."""
    return [int(np.flatnonzero(clusters == cluster)[0]) for cluster in clusters]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Pieces of 160 x 160 pixels of two photographs, each with something in it."""
    pieces = []
    for name in ("china.jpg", "flower.jpg"):
        grey = Image.fromarray(load_sample_image(name)).convert("L")
        boxes = [(x, y, x + 160, y + 160) for x in range(0, 640, 160) for y in range(0, 320, 160)]
        pieces += [grey.crop(box) for box in boxes]
    return [piece for piece in pieces if np.asarray(piece).std() > 20]


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("L")


CHANGES = {
    "jpeg 95": lambda image: recompressed(image, 95),
    "jpeg 40": lambda image: recompressed(image, 40),
    "half size": lambda image: image.resize((80, 80), Image.Resampling.BICUBIC),
    "double size": lambda image: image.resize((320, 320), Image.Resampling.BICUBIC),
    "darker": lambda image: image.point([round(0.9 * grey) for grey in range(256)]),
    "less contrast": lambda image: image.point([round(128 + 0.85 * (grey - 128)) for grey in range(256)]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_copy_of_a_photograph_is_found(photographs: list[Image.Image], change) -> None:
    originals, copies = hashes_of(photographs), hashes_of([change(image) for image in photographs])
    assert len(originals) >= 10
    assert near_known(copies, originals).mean() >= 0.9
    clusters = near_duplicates(np.concatenate([originals, copies]))
    assert (clusters[: len(originals)] == clusters[len(originals) :]).mean() >= 0.9


def test_copy_moved_by_a_hundredth_is_often_found(photographs: list[Image.Image]) -> None:
    moved = [image.resize(image.size, Image.Resampling.BICUBIC, (1.6, 1.6, 160, 160)) for image in photographs]
    assert near_known(hashes_of(moved), hashes_of(photographs)).mean() >= 0.4


def test_different_photographs_are_not_near_duplicates(photographs: list[Image.Image]) -> None:
    assert len(set(near_duplicates(hashes_of(photographs)).tolist())) == len(photographs)


@pytest.mark.parametrize("scale", [10, 15, 255 / 16])
def test_different_digits_are_hardly_ever_near_duplicates(scale: float) -> None:
    # 8 x 8 pixels, 1,797 images of ten shapes: the hardest case. Measured 10, 19 and 3 rows, at most 1.1 %: so small an
    # image leaves half of the frequencies to what rounding does, which the scale of the grey values changes.
    digits = hashes_of([Image.fromarray((grey * scale).astype(np.uint8)) for grey in load_digits().images])
    sizes = np.bincount(near_duplicates(digits))
    assert sizes[sizes > 1].sum() <= 0.015 * len(digits)


def test_digits_are_known_again_after_darkening() -> None:
    images = [Image.fromarray((grey * 15).astype(np.uint8)) for grey in load_digits().images[:300]]
    darker = [image.point([round(0.9 * grey) for grey in range(256)]) for image in images]
    assert near_known(hashes_of(darker), hashes_of(images)).mean() > 0.9


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (32, 32), (100, 7), (1200, 900)])
@pytest.mark.parametrize("grey", [0, 77, 255])
def test_images_of_one_grey_hash_to_zeros(size: tuple[int, int], grey: int) -> None:
    assert perceptual_hash(Image.new("L", size, grey)) == bytes(HASH_BYTES)


def test_image_of_one_grey_is_not_near_one_with_something_in_it(photographs: list[Image.Image]) -> None:
    blank = hashes_of([Image.new("L", (160, 160), 128)])
    assert not near_known(hashes_of(photographs), blank).any()


def test_hash_has_the_signs_of_the_frequencies() -> None:
    # One wave across, lighter on the left: cos(pi (2x + 1) / 64) is frequency (0, 1), the lowest kept but for (1, 0).
    wave = np.cos(np.pi * (2 * np.arange(32) + 1) / 64)
    lighter_left = Image.fromarray(np.tile(np.rint(128 + 100 * wave), (32, 1)).astype(np.uint8))
    bits = np.unpackbits(np.frombuffer(perceptual_hash(lighter_left), np.uint8))
    across = int(np.flatnonzero(duplicates._KEPT == 1)[0])
    assert bits[across] == 1
    mirrored = lighter_left.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.unpackbits(np.frombuffer(perceptual_hash(mirrored), np.uint8))[across] == 0


def test_every_frequency_has_one_bit() -> None:
    assert len(set(duplicates._KEPT.tolist())) == 8 * HASH_BYTES
    assert 0 not in duplicates._KEPT  # the mean


def test_hash_is_the_same_in_another_process() -> None:
    code = (
        "import numpy as np; from PIL import Image; from components.core.duplicates import perceptual_hash;"
        "pixels = np.arange(48 * 40, dtype=np.int64).reshape(48, 40) ** 2 % 251;"
        "print(perceptual_hash(Image.fromarray(pixels.astype(np.uint8))).hex())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout}
    pixels = np.arange(48 * 40, dtype=np.int64).reshape(48, 40) ** 2 % 251
    assert runs == {perceptual_hash(Image.fromarray(pixels.astype(np.uint8))).hex() + "\n"}


def test_clusters_by_hand() -> None:
    hashes = np.stack(
        [
            with_bits(),
            with_bits(*range(64, 128)),
            with_bits(*range(7)),  # 7 from row 0
            with_bits(*range(14)),  # 7 from row 2, 14 from row 0: together by the chain
            with_bits(*range(22)),  # 8 from row 3: alone
            with_bits(*range(64, 128)),  # row 1 again
        ]
    )
    assert near_duplicates(hashes).tolist() == [0, 1, 0, 0, 2, 1]
    assert near_duplicates(hashes).dtype == np.int64
    assert near_known(hashes, hashes[[0, 4]]).tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize("places", [range(0, 128, 18), range(7), range(121, 128), (0, 16, 32, 48, 64, 80, 96)])
def test_distance_of_exactly_the_threshold_is_never_missed(places) -> None:
    places = list(places)[:NEAR_BITS]
    first = random_hashes(50, seed=1)
    second = first ^ with_bits(*places)
    assert near_known(second, first).all()
    clusters = near_duplicates(np.concatenate([first, second]))
    assert (clusters[:50] == clusters[50:]).all()


@pytest.mark.parametrize("seed", range(5))
def test_search_agrees_with_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = random_hashes(60, seed)
    hashes = np.concatenate([base, flipped(base, rng), flipped(base[:30], rng)])[rng.permutation(150)]
    reference = reference_clusters(hashes)
    assert first_rows(near_duplicates(hashes)) == reference
    assert 20 < len(set(reference)) < 150
    known = np.concatenate([flipped(base[:40], rng), random_hashes(100, seed + 100)])
    expected = (distances(hashes, known) <= NEAR_BITS).any(axis=1)
    assert near_known(hashes, known).tolist() == expected.tolist()
    assert expected.any()
    assert not expected.all()


def test_rotation_brings_each_band_to_the_front() -> None:
    hashes = random_hashes(20, seed=2)
    words = hashes.view(">u8").astype(np.uint64)
    for band in range(8):
        turned = duplicates._turned(words, band).astype(">u8").view(np.uint8)
        assert (turned == np.roll(hashes, -2 * band, axis=1)).all()


def test_long_chain_is_cut_to_its_sure_links(monkeypatch: pytest.MonkeyPatch) -> None:
    stairs = np.stack([with_bits(*range(4 * step)) for step in range(30)])
    film = ~np.stack([with_bits(*range(100, 100 + step)) for step in range(20)])
    hashes = np.concatenate([stairs, film])
    assert near_duplicates(hashes).tolist() == [0] * 30 + [1] * 20
    monkeypatch.setattr(duplicates, "LONGEST_CHAIN", 15)
    assert near_duplicates(hashes).tolist() == [*range(30)] + [30] * 20


def test_pairs_beyond_what_is_held_at_once_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    base = random_hashes(40, seed=3)
    hashes = np.concatenate([base, flipped(base, rng), flipped(base, rng)])
    at_once = near_duplicates(hashes)
    monkeypatch.setattr(duplicates, "_PENDING", 3)
    assert near_duplicates(hashes).tolist() == at_once.tolist()


def test_flood_of_equal_hashes_is_one_cluster() -> None:
    flood = np.repeat(random_hashes(1, seed=4), 100_000, axis=0)
    hashes = np.concatenate([flood, random_hashes(100, seed=5)])
    assert near_duplicates(hashes).tolist() == [0] * 100_000 + list(range(1, 101))
    assert near_known(hashes, flood).tolist() == [True] * 100_000 + [False] * 100


def test_flood_of_similar_hashes_ends_and_is_found() -> None:
    # Each has about 1 % of the bits of one hash flipped: nearly all 200 million pairs are near duplicates.
    rng = np.random.default_rng(6)
    cloud = random_hashes(1, seed=6) ^ np.packbits(rng.random((20_000, 128)) < 0.01, axis=1)
    assert np.bincount(near_duplicates(cloud)).max() > 19_900
    assert near_known(cloud[:10_000], cloud[10_000:]).mean() > 0.99


def test_no_rows() -> None:
    none, some = np.zeros((0, HASH_BYTES), np.uint8), random_hashes(3, seed=7)
    assert near_duplicates(none).shape == (0,)
    assert near_duplicates(none).dtype == np.int64
    assert near_known(none, some).shape == (0,)
    assert near_known(some, none).tolist() == [False, False, False]
    assert near_known(some, none).dtype == bool


def test_one_row_is_alone() -> None:
    one = random_hashes(1, seed=8)
    assert near_duplicates(one).tolist() == [0]
    assert near_known(one, one).tolist() == [True]


@pytest.mark.parametrize("wrong", [np.zeros((3, 8), np.uint8), np.zeros(16, np.uint8), np.zeros((3, 16), np.int64)])
def test_wrong_shape_or_dtype_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        near_duplicates(wrong)
    with pytest.raises(ValueError, match="expected uint8"):
        near_known(wrong, np.zeros((1, HASH_BYTES), np.uint8))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 60))
def test_order_of_rows_changes_only_the_numbers(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    base = random_hashes(rows, seed)
    hashes = np.concatenate([base, flipped(base, rng)])
    order = rng.permutation(len(hashes))
    straight, shuffled = near_duplicates(hashes)[order], near_duplicates(hashes[order])
    assert first_rows(straight) == first_rows(shuffled)
    assert shuffled[0] == 0
    assert (near_duplicates(hashes) == near_duplicates(hashes)).all()
