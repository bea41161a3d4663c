"""Looking at one image: every format and mode that is read, and every kind of damage."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from components.core.duplicates import perceptual_hash
from components.ingest.inspection import FORMATS, ImageFacts, inspect_image, laplacian_variance

MAX_PIXELS = 10_000


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def described(data: bytes) -> ImageFacts:
    facts = inspect_image(data, MAX_PIXELS)
    assert isinstance(facts, ImageFacts), facts
    return facts


def noise(mode: str = "RGB", width: int = 24, height: int = 16) -> Image.Image:
    bands = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    values = np.random.default_rng(0).integers(0, 256, (height, width, *bands), dtype=np.uint8)
    return Image.fromarray(values, mode)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_format_is_described(kind: str, mode: str) -> None:
    facts = described(encode(noise(mode), kind))
    assert (facts.width, facts.height, facts.format) == (24, 16, kind)
    assert facts.mean == pytest.approx(0.5, abs=0.1)
    assert facts.std > 0.05
    assert facts.sharpness > 0.01


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_channels_are_those_of_the_file(mode: str, channels: int) -> None:
    facts = described(encode(noise(mode), "PNG"))
    assert facts.channels == channels


@pytest.mark.parametrize(("grey", "mean"), [(0, 0.0), (51, 0.2), (255, 1.0)])
def test_a_plain_image_has_its_grey_value_and_nothing_sharp(grey: int, mean: float) -> None:
    facts = described(encode(Image.new("L", (10, 10), grey), "PNG"))
    assert facts.mean == pytest.approx(mean, abs=1e-6)
    assert facts.std == pytest.approx(0, abs=1e-6)
    assert facts.sharpness == pytest.approx(0, abs=1e-6)


def test_half_black_half_white_by_hand() -> None:
    halves = np.zeros((10, 10), dtype=np.uint8)
    halves[:, 5:] = 255
    facts = described(encode(Image.fromarray(halves), "PNG"))
    assert (facts.mean, facts.std) == (pytest.approx(0.5), pytest.approx(0.5))
    # 8 x 8 inner pixels: one column of +1 left of the edge, one of -1 right of it, mean 0: variance 16 / 64.
    assert facts.sharpness == pytest.approx(0.25)


def test_a_palette_image_is_read_through_its_palette() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 255, 255])
    facts = described(encode(image, "PNG"))
    assert facts.mean == pytest.approx(1.0)


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"], ids=["one colour", "bytes"])
def test_a_transparent_palette_is_read_without_a_warning(transparency: object) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 255, 255])
    described(encode(image, "PNG", transparency=transparency))


def test_a_cmyk_jpeg_is_read() -> None:
    facts = described(encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG"))  # no ink: white
    assert facts.channels == 4
    assert facts.mean == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind: str) -> None:
    # Medical and microscope images: clipped at 255 of 65,535 every one of them would be white.
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    facts = described(encode(Image.fromarray(ramp), kind))
    assert facts.mean == pytest.approx(0.5, abs=0.02)
    assert facts.std == pytest.approx(0.289, abs=0.02)  # of a uniform distribution: 1 / sqrt(12)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("L", (8, 8), 255), Image.new("L", (8, 8), 0)]
    facts = described(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert facts.mean == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_image_is_unreadable(kind: str, share: float) -> None:
    data = encode(noise(width=100, height=90), kind)
    assert isinstance(inspect_image(data[: int(share * len(data))], MAX_PIXELS), str)


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF89a", b"not an image", b"\0" * 999]
)
def test_what_holds_no_image_is_unreadable(data: bytes) -> None:
    assert isinstance(inspect_image(data, MAX_PIXELS), str)


@pytest.mark.parametrize(("side", "readable"), [(100, True), (101, False)])
def test_images_above_the_limit_are_unreadable(side: int, readable: bool) -> None:
    facts = inspect_image(encode(Image.new("L", (side, 100)), "PNG"), MAX_PIXELS)
    assert isinstance(facts, ImageFacts) is readable
    assert readable or facts == "10,100 pixels, at most 10,000 are read"


@pytest.mark.parametrize("limit", [MAX_PIXELS, 10**12])
def test_a_bomb_is_unreadable_and_not_decoded(limit: int) -> None:
    # 60 bytes that claim 4.3 gigapixels: Pillow's own guard stands where the configured one is set too high.
    header = struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    reason = inspect_image(bomb + b"\0\0\0\0IDAT\x35\xaf\x06\x1e", limit)
    assert isinstance(reason, str)
    assert "4294836225" in reason.replace(",", "")


def test_a_format_that_is_not_on_the_list_is_unreadable() -> None:
    assert inspect_image(encode(noise("L"), "PPM"), MAX_PIXELS) == ("damaged at its beginning, or no image")


@pytest.mark.filterwarnings("ignore")  # Pillow on damaged files; ingest silences it in its workers
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(FORMATS),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert"]), st.binary(min_size=1, max_size=9))
    ),
)
def test_damage_never_raises_and_its_reason_is_the_same_each_time(
    kind: str, edits: list[tuple[float, str, bytes]]
) -> None:
    data = encode(noise(), kind)
    for place, edit, what in edits:
        at = int(place * len(data))
        rest = {"flip": data[at + len(what) :], "cut": b"", "insert": data[at:]}[edit]
        data = data[:at] + (b"" if edit == "cut" else what) + rest
    facts = inspect_image(data, MAX_PIXELS)
    if isinstance(facts, ImageFacts):
        assert all(np.isfinite(v) for v in vars(facts).values() if isinstance(v, float))
        return
    assert 0 < len(facts) <= 200
    assert facts.isprintable()
    assert " at 0x" not in facts
    assert inspect_image(data, MAX_PIXELS) == facts


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("cannot read <_io.BytesIO object at 0x7f3a>\n now"), "cannot read the file now"),
        (KeyError(3), "KeyError: 3"),
        (MemoryError(), "MemoryError:"),
        (OSError(), "OSError"),
        (ValueError("x" * 500), "x" * 200),
    ],
)
def test_reasons_are_one_line_without_addresses(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert inspect_image(b"anything", MAX_PIXELS) == reason


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty file"), (b"GIF89a", None)])
def test_a_file_without_an_image_says_so(data: bytes, reason: str | None) -> None:
    found = inspect_image(data, MAX_PIXELS)
    assert isinstance(found, str)
    assert reason in (None, found)


@pytest.mark.parametrize("quality", [1, 5, 25, 50, 75, 90, 100])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_quality_is_read_from_the_tables(quality: int, mode: str) -> None:
    assert described(encode(noise(mode), "JPEG", quality=quality)).quality == quality


def test_other_formats_have_no_quality() -> None:
    assert described(encode(noise(), "PNG")).quality is None


def test_channels_have_their_own_means_and_a_grey_image_the_same_three() -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[:2] = (255, 102, 0)  # half of the pixels orange, half black
    facts = described(encode(Image.fromarray(pixels), "PNG"))
    assert (facts.red, facts.green, facts.blue) == pytest.approx((0.5, 0.2, 0.0))
    assert (facts.red_std, facts.green_std, facts.blue_std) == pytest.approx((0.5, 0.2, 0.0))
    grey = described(encode(Image.fromarray(pixels[..., 0]), "PNG"))
    assert (grey.red, grey.green, grey.blue, grey.mode) == (grey.mean, grey.mean, grey.mean, "L")


def test_tones_by_hand() -> None:
    # 0 three times, 100 once: mean 25, deviations -25 (3) and 75. Third moment (75^3 - 3 x 25^3) / 4 = 93750,
    # variance (75^2 + 3 x 25^2) / 4 = 1875; skew 93750 / 1875^1.5 = 1.1547.
    facts = described(encode(Image.fromarray(np.array([[0, 0], [0, 100]], dtype=np.uint8)), "PNG"))
    assert facts.skew == pytest.approx(1.1547, abs=1e-4)
    assert (facts.black, facts.midtones, facts.peak) == (0.75, 0.25, pytest.approx(100 / 255))


def test_inversion_turns_skew_round() -> None:
    values = np.random.default_rng(0).gamma(2, 20, (20, 20)).clip(0, 255).astype(np.uint8)
    plain, inverted = (described(encode(Image.fromarray(v), "PNG")) for v in (values, 255 - values))
    assert plain.skew > 0.5
    assert inverted.skew == pytest.approx(-plain.skew, abs=1e-6)


def textured(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(40, 200, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_strip_at_the_bottom_is_a_tail(grey: int) -> None:
    pixels = textured()
    pixels[15:] = grey
    assert described(encode(Image.fromarray(pixels), "PNG")).flat_tail == pytest.approx(0.25)


@pytest.mark.parametrize("edge", [np.s_[:5], np.s_[:, :8], np.s_[:, -8:]], ids=["top", "left", "right"])
def test_strips_at_other_edges_are_no_tail(edge: tuple[slice, ...]) -> None:
    pixels = textured()
    pixels[edge] = 0
    assert described(encode(Image.fromarray(pixels), "PNG")).flat_tail == 0


def test_an_object_on_a_plain_ground_has_no_tail() -> None:
    pixels = np.zeros((20, 20), dtype=np.uint8)
    pixels[6:14, 6:14] = textured(8, 8)
    assert described(encode(Image.fromarray(pixels), "PNG")).flat_tail == 0
    assert described(encode(Image.new("L", (20, 20), 7), "PNG")).flat_tail == 0


# Of 10 x factor - 1 steps all but 9 repeat, and those count that lie beside a true step: at 3 the outermost do not.
@pytest.mark.parametrize(("factor", "share"), [(1, 0), (2, 10 / 19), (3, 18 / 29)])
def test_enlarging_by_repetition_doubles_lines(factor: int, share: float) -> None:
    pixels = textured(10, 10).repeat(factor, 0).repeat(factor, 1)
    assert described(encode(Image.fromarray(pixels), "PNG")).doubled == pytest.approx(share)


def test_rows_alone_are_not_enlargement() -> None:
    assert described(encode(Image.fromarray(textured().repeat(2, 0)), "PNG")).doubled == 0


def test_strong_compression_leaves_blocks_that_survive_storing_anew() -> None:
    smooth = np.add.outer(np.arange(96), np.arange(96)) + np.random.default_rng(0).normal(0, 6, (96, 96))
    image = Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
    again = Image.open(io.BytesIO(encode(image, "JPEG", quality=5)))
    assert described(encode(image, "PNG")).blockiness == pytest.approx(1, abs=0.1)
    assert described(encode(again, "PNG")).blockiness > 1.5


def test_small_images_have_no_blocks() -> None:
    assert described(encode(Image.fromarray(textured(15, 40)), "PNG")).blockiness == 1


def test_large_images_are_sampled_without_changing_what_is_said() -> None:
    rng = np.random.default_rng(0)
    waves = (
        100 + 60 * np.sin(np.arange(1200) / 40)[:, None] * np.cos(np.arange(900) / 30) + rng.normal(0, 9, (1200, 900))
    )
    pixels = waves.clip(0, 255).astype(np.uint8)
    facts = inspect_image(encode(Image.fromarray(pixels), "PNG"), 2_000_000)
    assert isinstance(facts, ImageFacts)
    assert facts.mean == pytest.approx(pixels.mean() / 255, abs=1e-6)
    assert facts.std == pytest.approx(pixels.std() / 255, abs=1e-6)
    whole = pixels.astype(np.float64) / 255
    centre = whole[1:-1, 1:-1]
    laplacian = whole[:-2, 1:-1] + whole[2:, 1:-1] + whole[1:-1, :-2] + whole[1:-1, 2:] - 4 * centre
    assert facts.sharpness == pytest.approx(laplacian.var(), rel=0.02)


def test_orientation_in_exif_is_applied_once() -> None:
    image = Image.fromarray(textured(10, 30))
    exif = image.getexif()
    exif[274] = 6
    for mode in ("L", "RGB"):
        facts = described(encode(image.convert(mode), "JPEG", exif=exif))
        assert (facts.width, facts.height, facts.mode, facts.format) == (10, 30, mode, "JPEG")


def test_facts_say_what_near_duplicates_are_found_by() -> None:
    assert described(encode(noise("L"), "PNG")).perceptual_hash == perceptual_hash(noise("L"))


def test_laplacian_of_one_bright_pixel_by_hand() -> None:
    # 5 x 5 with 1 in the middle: of the 9 inner pixels one is -4, four are 1, four are 0. Mean 0, variance 20 / 9.
    grey = np.zeros((5, 5), dtype=np.float32)
    grey[2, 2] = 1
    assert laplacian_variance(grey) == pytest.approx(20 / 9)


def test_laplacian_of_a_slope_is_zero() -> None:
    grey = np.add.outer(np.arange(6), 2 * np.arange(9)).astype(np.float64) / 30
    assert laplacian_variance(grey) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (50, 2)])
def test_images_too_small_for_a_laplacian_have_none(shape: tuple[int, int]) -> None:
    assert laplacian_variance(np.random.default_rng(0).random(shape)) == 0.0


def test_blur_lowers_sharpness() -> None:
    grey = np.random.default_rng(0).random((40, 40))
    blurred = (grey[:-1, :-1] + grey[1:, :-1] + grey[:-1, 1:] + grey[1:, 1:]) / 4
    assert laplacian_variance(blurred) < laplacian_variance(grey) / 4
