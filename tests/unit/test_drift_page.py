"""The page of a drift report, and the drift step as a whole: what is filed, what is read again, when it alarms."""

import base64
import io
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image

from components.core.config import DriftConfig, load_config
from components.core.contracts import DriftReport, DriftView, Fault, Lineage, MovedClass, RunParameters
from components.core.datasets import PixelCache, load_images
from components.core.errors import IntegrityError
from components.core.models import save_classifier
from components.core.recipes import Recipe
from components.core.reference import Reference, build_reference
from components.core.registry import Registry
from components.core.runs import Run
from components.core.storage import DirectoryStore, to_json
from components.core.windows import SCHEMA, Window
from components.detect_drift import features, step
from components.detect_drift.comparison import EXAMPLES, compare
from components.detect_drift.features import Seen
from components.detect_drift.history import DriftLook, earlier_looks
from components.detect_drift.page import draw_page
from components.detect_drift.pictures import effect_chart, history_chart, scatter_chart
from components.ingest.step import ingest
from tests.unit.conftest import number_of
from tests.unit.test_drift_report import reference as reference_of
from tests.unit.test_drift_report import sample
from tests.unit.test_drift_report import window as window_of
from tests.unit.test_features import deliver
from tests.unit.test_reference import CLASSES, champion, pictures, seeded
from tests.unit.test_report import Elements

pytestmark = pytest.mark.usefixtures("one_thread")

HOSTILE = "<script>alert(1)</script>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"
START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
TITLES = ("How far each view moved", "Where the images lie, as the champion sees them", "Over the windows")
Compared = tuple[DriftReport, Reference, Seen]


def look(number: int, drop: float | None = 0.02, measured: bool = True, changed: bool = False) -> DriftLook:
    created = START + timedelta(days=7 * number)
    return DriftLook(
        window=f"{number:06d}{26 * '0'}", created=created, changed=changed, p_value=0.5, drop=drop, measured=measured
    )


def compared(shift: float = 0.0, rows: int = 90, classes: tuple[str, ...] = ("cat", "dog", "owl")) -> Compared:
    """A real report of a synthetic window."""
    past = reference_of(sample(0, rows=150, right=1.0))
    seen = window_of(sample(1, rows=rows, shift=shift, right=1.0))
    return compare("v1", classes, past, seen, (), DriftConfig()), past, seen


@pytest.fixture(scope="module")
def moved() -> Compared:
    torch.set_num_threads(1)
    return compared(shift=2.0)


def drawn(parts: Compared, looks: Sequence[DriftLook] = (), window: Window | None = None) -> str:
    """A page whose markup is whole and that fetches nothing."""
    return sound(draw_page(*parts, looks, window))


def sound(page: str) -> str:
    elements = Elements(page)
    assert [tag for tag in elements.open if tag in ("table", "svg", "g", "p", "h1", "h2", "style", "defs")] == []
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "foreignobject"} & set(elements.tags)
    for name, value in elements.attributes:
        assert not name.startswith("on"), name
        if name.rpartition(":")[2] in ("src", "href", "srcset", "data", "action"):
            assert (value or "").startswith(("#", "data:image/png;base64,")), value
        elif not name.startswith("xmlns") and name != "rdf:resource":  # names, which nobody fetches
            assert "://" not in (value or ""), (name, value)
    assert re.findall(r"url\((?!#)|@import", page) == []
    assert "default-src 'none'" in page
    assert re.findall(r"\b(?:nan|inf|none)\b", without_data(page), re.IGNORECASE) == re.findall(
        r"\bnone\b", without_data(page)
    ), "neither values that are no numbers nor values that are not there"
    assert "None" not in without_data(page)
    return page


def without_data(page: str) -> str:
    return re.sub(r"data:image/png;base64,[A-Za-z0-9+/=\s]+", "", page)


def charts(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>\s*<svg", page)


def told(chart: str) -> list[str]:
    """Texts of a chart: matplotlib draws letters, and leaves the words in comments."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", chart, re.DOTALL)]


# --- the page


def test_a_page_without_a_champion_says_so_and_shows_no_pictures() -> None:
    report = DriftReport(champion=None, rows=12)
    page = sound(draw_page(report))
    assert "Drift: no-champion" in Elements(page).text
    assert report.sentence in Elements(page).text
    assert not {"svg", "img", "table"} & set(Elements(page).tags)


def test_a_page_of_a_window_without_new_images_can_be_drawn() -> None:
    page = sound(draw_page(DriftReport(champion="v1", rows=0, undecided="no image of it is new")))
    assert "Drift: undecided" in Elements(page).text
    assert "no image of it is new" in Elements(page).text
    assert charts(page) == []


def test_a_page_tells_what_changed(moved: Compared) -> None:
    report = moved[0]
    page = drawn(moved, [look(1), look(2, changed=True)])
    text = Elements(page).text
    assert "Drift: drifted" in text
    assert report.sentence in text
    assert report.p_value is not None
    assert report.level is not None
    assert f"{report.p_value:.4f}" in text
    assert f"p ≤ {report.level:.4f}" in text
    assert len(report.views) == 8
    for view in report.views:
        row = re.search(rf"<td>{view.name}( \(shown only\))?</td>.*?</tr>", page, re.DOTALL)
        assert row, view.name
        assert bool(row[1]) != view.decides
        assert f"{view.p_value:.4f}" in row[0]
        assert f"{view.effect:.3f}" in row[0]
        assert ("–" if view.smallest_effect is None else f"{view.smallest_effect:.3f}") in row[0]
        assert view.unit in row[0]
    assert report.moved_classes
    for one in report.moved_classes:
        assert f"<td>{one.name}</td>" in page
        assert f"{100 * one.novel:.0f} %" in page


def test_a_page_has_three_charts(moved: Compared) -> None:
    page = drawn(moved, [look(1), look(2)])
    assert charts(page) == list(TITLES)
    assert page.count("<svg") == page.count("</svg>") == 3
    assert "<?xml" not in page
    assert "<!DOCTYPE svg" not in page


def test_the_word_has_its_colour(moved: Compared) -> None:
    report, past, seen = moved
    broken = report.model_copy(update={"faults": (Fault(name="f", effect=0.5, sentence="Half are black."),)})
    for one, colour in ((compared()[0], "yes"), (report, "maybe"), (broken, "no")):
        assert f'<span class="{colour}">{one.word}</span>' in draw_page(one, past, seen)
    assert "Half are black." in Elements(draw_page(broken, past, seen)).text


def test_names_of_classes_cannot_become_markup() -> None:
    report, past, seen = compared(shift=2.0, classes=("cat", "dog", HOSTILE))
    assert HOSTILE in [one.name for one in report.moved_classes]
    fault = Fault(name="permuted-labels", effect=0.5, sentence=f"'cat' and '{HOSTILE}' are exchanged.")
    report = report.model_copy(update={"new_classes": {HOSTILE: 3, '"&<b>': 1}, "faults": (fault,)})
    page = drawn((report, past, seen), [look(1)])
    assert HOSTILE not in page
    assert "<b>" not in page
    assert page.count(ESCAPED) == 3  # moved, new and in a fault
    assert report.sentence in Elements(page).text


def test_names_of_views_and_windows_cannot_become_markup(moved: Compared) -> None:
    view = DriftView(name=HOSTILE, p_value=0.5, effect=1.0, smallest_effect=0.5)
    report = moved[0].model_copy(update={"views": (view,), "change": HOSTILE, "drifted": True})
    hostile = look(1).model_copy(update={"window": "<b>$x$"})
    page = drawn((report, *moved[1:]), [hostile])
    assert HOSTILE not in page
    assert "<b>" not in page


def test_the_same_report_gives_the_same_bytes(moved: Compared) -> None:
    looks = [look(n, drop=n / 50, changed=n % 2 == 0, measured=n % 3 == 0) for n in range(7)]
    assert draw_page(*moved, looks) == draw_page(*moved, looks)
    assert draw_page(*moved, looks) != draw_page(*moved, looks[:-1])


def test_drawing_leaves_torchs_random_numbers_alone(moved: Compared) -> None:
    before = torch.get_rng_state()
    draw_page(*moved, [look(1)])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_tiny_windows_have_a_page(rows: int) -> None:
    parts = compared(rows=rows)
    page = drawn(parts, [look(1)])
    assert parts[0].sentence in Elements(page).text
    assert TITLES[1] in charts(page)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_tiny_references_have_a_page(rows: int) -> None:
    past, seen = reference_of(sample(0, rows=rows)), window_of(sample(1, rows=40))
    drawn((compare("v1", ("cat", "dog", "owl"), past, seen, (), DriftConfig()), past, seen), [look(1)])


def test_images_that_all_look_the_same_have_a_page() -> None:
    past, now = sample(0, rows=60), sample(1, rows=60)
    for seen in (past, now):
        for name in ("embeddings", "early", "properties"):
            seen[name] = torch.full_like(seen[name], 0.25)
    then, here = reference_of(past), window_of(now)
    drawn((compare("v1", ("cat", "dog", "owl"), then, here, (), DriftConfig()), then, here), [look(1, drop=0.0)])


# --- the charts


def test_charts_on_one_page_do_not_refer_to_each_others_parts(moved: Compared) -> None:
    """Ids of one chart count on the whole page: where two charts share one, it must stand for the same."""
    page = drawn(moved, [look(n, changed=n % 2 == 0) for n in range(4)])
    meant: dict[str, set[str]] = {}
    for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        parts = ElementTree.fromstring(chart).iter()  # noqa: S314  # our own
        named = {part.get("id"): ElementTree.tostring(part).decode().strip() for part in parts}
        for used in set(re.findall(r'(?:href="#|url\(#)([^")]+)', chart)):
            meant.setdefault(used, set()).add(named[used])
    assert len(meant) > 20
    assert [used for used, meanings in meant.items() if len(meanings) > 1] == []


def test_effects_are_in_units_of_what_alarms() -> None:
    views = [
        DriftView(name="twice", p_value=0.01, effect=0.5, smallest_effect=0.25),
        DriftView(name="just", p_value=0.02, effect=0.5, smallest_effect=0.5),
        DriftView(name="half", p_value=0.5, effect=0.25, smallest_effect=0.5),
        DriftView(name="never", p_value=0.5, effect=0.25, smallest_effect=None),
        DriftView(name="nothing", p_value=1.0, effect=0.0, smallest_effect=0.0),
    ]
    chart = effect_chart(views)
    assert {view.name for view in views} <= set(told(chart))
    assert chart.count("fill: #cf222e") == 2  # those that alarm
    assert chart.count("fill: #9aa4b2") == 3


def test_one_view_is_a_chart() -> None:
    assert "only" in told(effect_chart([DriftView(name="only", p_value=0.5, effect=0.1, smallest_effect=0.2)]))


def test_large_samples_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    past, now = torch.randn(5000, 6, generator=seeded(0)), torch.randn(30, 6, generator=seeded(1))
    ends = past[torch.linspace(0, 4999, 1500).long()]
    assert scatter_chart(past, now) == scatter_chart(ends, now)
    assert {"reference", "this window"} <= set(told(scatter_chart(past, now)))


def test_one_look_is_a_chart(moved: Compared) -> None:
    page = drawn(moved, [look(0)])
    assert charts(page)[-1] == TITLES[2]
    assert "000000" in told(page)


@pytest.mark.parametrize("number", [12, 13, 100, 101])
def test_many_looks_are_a_chart(moved: Compared, number: int) -> None:
    page = drawn(moved, [look(n, drop=n / 200 - 0.2) for n in range(number)])
    assert charts(page)[-1] == TITLES[2]


def test_looks_without_a_drop_are_no_chart(moved: Compared) -> None:
    for looks in ([], [look(0, drop=None)], [look(n, drop=None, measured=False) for n in range(3)]):
        assert charts(drawn(moved, looks)) == list(TITLES[:2])


def test_looks_without_a_drop_keep_their_place_among_others(moved: Compared) -> None:
    page = drawn(moved, [look(1, drop=None), look(2), look(3, drop=None)])
    assert [text for text in told(page) if text.startswith("00000")] == ["000001", "000002", "000003"]


def test_a_drop_of_nothing_is_a_drop(moved: Compared) -> None:
    assert charts(drawn(moved, [look(0, drop=0.0)]))[-1] == TITLES[2]


def test_measured_and_estimated_drops_are_told_apart() -> None:
    kinds = {"measured": (True, False), "measured, drifted": (True, True)}
    kinds |= {"estimated": (False, False), "estimated, drifted": (False, True)}
    looks = [look(n, measured=measured, changed=changed) for n, (measured, changed) in enumerate(kinds.values())]
    assert [text for text in told(history_chart(looks)) if text in kinds] == list(kinds)
    for one, kind in zip(looks, kinds, strict=True):
        assert [text for text in told(history_chart([one])) if text in kinds] == [kind]


# --- the step, on a champion in a store


class House:
    """A store with a champion and windows after its own: a quiet one, and three of brighter images."""

    def __init__(self, place: Path) -> None:
        self.path, self.store = place / "retrain.yaml", DirectoryStore(place / "store")
        self.registry = Registry(self.store, "classifier")

    def begin(self, run_id: str) -> Run:
        run = Run(self.store, run_id)
        asked = RunParameters(run_id=run_id, model="classifier", dataset="images", source="s", strategy="auto")
        run.begin(load_config(self.path), asked)
        return run

    def look_at(self, window: str, run_id: str) -> tuple[DriftReport, str]:
        self.begin(run_id)
        return step.run(str(self.path), run_id, window)

    def looks(self) -> list[str]:
        return [listed.key for listed in self.store.list_objects("models/classifier/drift/")]

    def opened(self, window: str) -> Window:
        return Window.open(self.store, "images", window)


WINDOWS = {"own": (160, 0), "quiet": (50, 0), "bright-1": (50, 40), "bright-2": (50, 40), "bright-3": (50, 40)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of a house, made once, and the ids of its windows; a champion that was promoted on `own`."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("house")
    written = {
        "store": {"uri": "store", "cache": "cache"},
        "ingest": {"workers": 1, "holdout_fraction": 0.5},
        "training": {"architecture": "small-cnn", "image_size": 8, "channels": 3},
    }
    (place / "retrain.yaml").write_text(yaml.safe_dump(written))
    config = load_config(place / "retrain.yaml")
    store = DirectoryStore(place / "store")
    ids = {}
    for seed, (name, (rows, light)) in enumerate(WINDOWS.items()):
        ids[name] = ingest(store, config, deliver(place / name, *pictures(rows, 50 + seed, light))).id
    known = deliver(place / "known", *(part[:20] for part in pictures(*WINDOWS["own"][:1], 50)))
    ids["known"] = ingest(store, config, known).id
    own, cache = Window.open(store, "images", ids["own"]), PixelCache(config.store)
    holdout = load_images([own], "holdout", champion().spec, CLASSES, cache, columns=SCHEMA.names)
    loop = Recipe(epochs=1, learning_rate=0.1)
    lineage = Lineage(parent=None, windows=(ids["own"],), strategy="retrain", hyperparameters=loop, seed=0, package="0")
    registry = Registry(store, "classifier")
    files = save_classifier(champion()) | build_reference(champion(), holdout, 256, 1000, seeded(0))
    version = registry.save_version({**files, "lineage.json": to_json(lineage)})
    registry.append(
        "promotion", version, expected_champion=None, window=ids["own"], run_id=None, actor="test", reason="test"
    )
    return place, ids


@pytest.fixture
def ids(built: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return built[1]


@pytest.fixture
def house(built: tuple[Path, dict[str, str]], tmp_path: Path) -> House:
    shutil.copytree(built[0], tmp_path / "house")
    return House(tmp_path / "house")


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("looked again")


def test_a_quiet_window_is_stable_and_its_page_has_every_chart(house: House, ids: dict[str, str]) -> None:
    report, page = house.look_at(ids["quiet"], "one")
    assert (report.word, report.rows, report.alarm) == ("stable", 50, False)
    assert report.accuracy_drop == pytest.approx(0, abs=0.1)
    assert report.estimated_drop is not None
    assert charts(sound(page)) == list(TITLES)
    assert report.sentence in Elements(page).text


def test_brighter_images_are_drift_and_are_shown(house: House, ids: dict[str, str]) -> None:
    report, page = house.look_at(ids["bright-1"], "one")
    assert (report.word, report.drifted, report.alarm) == ("drifted", True, True)
    assert report.moved_images
    images, _ = pictures(50, 52, light=40)
    rows = house.opened(ids["bright-1"]).rows(columns=("sha256", "source"))
    number = {sha: number_of(name) for sha, name in zip(*(rows[n].to_pylist() for n in rows.column_names), strict=True)}
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)"', sound(page))
    assert len(shown) == len(report.moved_images)
    for digest, data in zip(report.moved_images, shown, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            wanted = Image.fromarray(images[number[digest]].permute(1, 2, 0).numpy())
            assert picture.tobytes() == wanted.tobytes()


def test_report_and_page_are_filed(house: House, ids: dict[str, str]) -> None:
    report, page = house.look_at(ids["bright-1"], "one")
    run = Run(house.store, "one")
    assert run.need("detect_drift", DriftReport) == report
    assert house.store.get(run.key(step.PAGE)).decode() == page


def test_a_second_run_on_the_same_window_says_the_same_and_does_not_look_again(
    house: House, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = house.look_at(ids["bright-1"], "one")
    monkeypatch.setattr(features, "load_images", refuse)
    monkeypatch.setattr(features, "load_classifier", refuse)
    shutil.rmtree(house.path.parent / "cache")
    assert house.look_at(ids["bright-1"], "two") == first
    with pytest.raises(AssertionError, match="looked again"):
        house.look_at(ids["bright-2"], "three")


def test_the_second_time_only_the_images_that_are_shown_are_read(
    house: House, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _ = house.look_at(ids["bright-1"], "one")
    read: list[str] = []
    images = Window.images

    def counted(window: Window, rows: pa.Table) -> Iterator[tuple[int, bytes]]:
        read.extend(rows["sha256"].to_pylist())
        return images(window, rows)

    monkeypatch.setattr(Window, "images", counted)
    house.look_at(ids["bright-1"], "two")
    assert tuple(read) == report.moved_images
    assert len(read) <= EXAMPLES


def test_the_same_run_again_hands_out_what_is_filed(house: House, ids: dict[str, str]) -> None:
    first = house.look_at(ids["bright-1"], "one")
    shutil.rmtree(house.store.root / "models")
    shutil.rmtree(house.store.root / "datasets")
    assert step.run(str(house.path), "one", ids["bright-1"]) == first


def test_a_look_is_filed_once_a_window(house: House, ids: dict[str, str]) -> None:
    report, _ = house.look_at(ids["bright-1"], "one")
    house.look_at(ids["bright-1"], "two")
    assert len(house.looks()) == 1
    version = house.registry.versions()[0]
    assert house.looks()[0].startswith(f"models/classifier/drift/{version}/")
    (filed,) = earlier_looks(house.store, "classifier", version, house.opened(ids["bright-2"]))
    assert (filed.window, filed.changed, filed.measured) == (ids["bright-1"], True, True)
    assert (filed.drop, filed.p_value) == (report.accuracy_drop, report.p_value)


def test_the_page_shows_the_windows_before(house: House, ids: dict[str, str]) -> None:
    house.look_at(ids["quiet"], "one")
    house.look_at(ids["bright-2"], "three")
    _, page = house.look_at(ids["bright-1"], "two")
    shown = [text for text in told(page) if text in {name[:6] for name in ids.values()}]
    assert shown == [ids["quiet"][:6], ids["bright-1"][:6]]


def test_the_second_of_two_changed_windows_alarms(house: House, ids: dict[str, str]) -> None:
    written = yaml.safe_load(house.path.read_text())
    house.path.write_text(yaml.safe_dump({**written, "drift": {"alarm_windows": 2, "alarm_memory": 2}}))
    found = [house.look_at(ids[name], name)[0] for name in ("quiet", "bright-1", "bright-2", "bright-3")]
    assert [report.drifted for report in found] == [False, True, True, True]
    assert [report.alarm for report in found] == [False, False, True, True]
    again, _ = house.look_at(ids["bright-1"], "again")
    assert again == found[1], "windows that came later do not count"


def test_a_quiet_window_between_resets_the_alarm(house: House, ids: dict[str, str]) -> None:
    """Windows count in the order in which they came: the quiet one came before all that changed."""
    written = yaml.safe_load(house.path.read_text())
    house.path.write_text(yaml.safe_dump({**written, "drift": {"alarm_windows": 2, "alarm_memory": 2}}))
    found = [house.look_at(ids[name], name)[0] for name in ("bright-3", "bright-1", "quiet", "bright-2")]
    assert [report.alarm for report in found] == [False, False, False, True]


def test_a_window_before_the_first_champion_has_report_and_page_and_no_look(house: House, ids: dict[str, str]) -> None:
    shutil.rmtree(house.store.root / "models")
    report, page = house.look_at(ids["quiet"], "one")
    assert (report.word, report.champion, report.rows) == ("no-champion", None, 50)
    assert "There is no champion to compare with." in Elements(sound(page)).text
    assert Run(house.store, "one").need("detect_drift", DriftReport) == report
    assert house.looks() == []


def test_a_window_that_the_champion_knows_already_has_no_look(house: House, ids: dict[str, str]) -> None:
    report, page = house.look_at(ids["known"], "one")
    assert (report.rows, report.p_value, report.drifted) == (0, None, False)
    assert charts(sound(page)) == []
    assert house.looks() == []


def test_the_champions_own_window_is_compared_as_any_other(house: House, ids: dict[str, str]) -> None:
    report, _ = house.look_at(ids["own"], "one")
    assert report.rows == 160
    assert report.p_value is not None


def test_a_damaged_reference_is_an_error_and_nothing_is_filed(house: House, ids: dict[str, str]) -> None:
    (path,) = (house.store.root / "models").rglob("reference.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"reference\.safetensors"):
        house.look_at(ids["quiet"], "one")
    assert Run(house.store, "one").read("detect_drift", DriftReport) is None
    assert house.looks() == []


# --- pictures of a window's images


def test_moved_images_that_the_window_does_not_hold_are_left_out(
    house: House, ids: dict[str, str], moved: Compared
) -> None:
    window = house.opened(ids["quiet"])
    held = window.rows(columns=("sha256",))["sha256"].to_pylist()
    report = moved[0].model_copy(update={"moved_images": (held[7], "0" * 64, held[3])})
    page = drawn((report, *moved[1:]), window=window)
    assert Elements(page).tags.count("img") == 2
    nothing = drawn((report.model_copy(update={"moved_images": ("0" * 64,)}), *moved[1:]), window=window)
    assert Elements(nothing).tags.count("img") == 0
    assert "Images furthest" not in nothing


def test_a_report_of_classes_that_hardly_moved_is_told_without_surprise(moved: Compared) -> None:
    least = MovedClass(name="cat", images=10, novel=0.004)
    page = drawn((moved[0].model_copy(update={"moved_classes": (least,)}), *moved[1:]))
    assert "0 %" in Elements(page).text
