"""The evidence of a promotion: what is in it, that a repeated step finds it, and that whatever is changed is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from components.core import runs
from components.core.errors import ConfigurationError, IntegrityError
from components.core.registry import Registry
from components.core.storage import DirectoryStore, sha256_hex
from components.promote import step
from components.promote.signature import check_signature
from pipelines.audit import export_bundle, verify_folder, verify_version
from tests.unit.crashes import Crash, CrashingStore
from tests.unit.decision import no_rematch
from tests.unit.promotion import begin, judged, save, write_config

FILES = {"card.md", "decision.json", "evaluation.json", "provenance.json", "sbom.json", "verdict.json"}


def new_key(folder: Path, name: str) -> Path:
    """A key pair in PEM; returns the private one, its public one has the suffix .pub."""
    path = folder / f"{name}.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path], check=True)
    command = ["openssl", "ec", "-in", path, "-pubout", "-out", path.with_suffix(".pub")]
    subprocess.run(command, check=True, capture_output=True)
    return path


def promote(config_path: Path, run_id: str = "one", weights: bytes = b"1", champion: str | None = None) -> Registry:
    run, registry = begin(config_path, run_id)
    version = save(registry, weights, champion)
    judged(run, version, champion)
    assert step.promote(str(config_path), run_id, "w", version, 1, no_rematch).outcome == "promoted"
    return registry


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, keys, a store with a promotion that is signed, and its exported `bundle`."""
    folder = tmp_path_factory.mktemp("signed")
    new_key(folder, "key")
    new_key(folder, "other")
    config = write_config(folder, promotion={"exports": [], "signing_key": "key.pem", "license": "apache-2.0"})
    promote(config)
    export_bundle(config, None, folder / "bundle")
    return folder


@pytest.fixture
def bundle(signed: Path, tmp_path: Path) -> Path:
    """A copy of the exported bundle, to be tampered with."""
    return Path(shutil.copytree(signed / "bundle", tmp_path / "bundle"))


# --- what is in it


def test_ledger_names_evidence_that_holds_what_the_promotion_rests_on(tmp_path: Path):
    registry = promote(write_config(tmp_path))
    (record,) = registry.ledger()
    evidence = registry.evidence(str(record.evidence))
    assert set(evidence.verify().files) == FILES
    provenance = json.loads(evidence.read("provenance.json"))
    assert (provenance["version"], provenance["run_id"], provenance["actor"]) == (record.version, "one", "pipeline")
    assert provenance["plan"] == sha256_hex(evidence.read("decision.json"))
    assert provenance["config"] == sha256_hex(registry.store.get("runs/one/config.json"))
    assert json.loads(evidence.read("verdict.json"))["challenger"] == record.version
    assert b"file:" not in evidence.read("sbom.json")
    bill = json.loads(evidence.read("sbom.json"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert {"pydantic", "numpy"} <= {package["name"] for package in bill["components"]}
    assert "timestamp" not in bill["metadata"]


def test_image_and_revision_are_those_of_the_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RETRAIN_IMAGE", "trainer@sha256:abc")
    monkeypatch.setenv("RETRAIN_REVISION", "")
    registry = promote(write_config(tmp_path))
    told = json.loads(registry.evidence(str(registry.ledger()[0].evidence)).read("provenance.json"))
    assert (told["image"], told["revision"]) == ("trainer@sha256:abc", None)


def test_card_has_the_numbers_of_the_evaluation(tmp_path: Path):
    registry = promote(write_config(tmp_path))
    promotion = {"exports": [], "license": "mit", "intended_use": "Sorting holiday pictures."}
    config = write_config(tmp_path, promotion=promotion)
    promote(config, "two", b"2", registry.champion().version)
    card = registry.evidence(str(registry.ledger()[1].evidence)).read("card.md").decode()
    _, front, text = card.split("---\n", 2)
    told = yaml.safe_load(front)
    assert (told["license"], told["pipeline_tag"]) == ("mit", "image-classification")
    (model,) = told["model-index"]
    assert [(r["dataset"]["split"], r["metrics"][0]["value"]) for r in model["results"]] == [
        ("new-holdout", 0.9),
        ("old-holdout", 0.9),
    ]
    assert "| new | 40 | 90.0% | 85.0% | 90.0% | 3.1% |" in text
    assert "| cat | 20 | 90.0% | 90.0% |" in text
    assert "| new | brightness: dark | 20 | 75.0% |" in text
    assert "- As good." in text
    assert "Sorting holiday pictures." in text
    assert "this bundle is not signed" in text


# --- again


def test_step_that_is_cut_off_comes_to_the_same_evidence_although_signatures_differ(signed: Path, tmp_path: Path):
    shutil.copy(signed / "key.pem", tmp_path)
    config = write_config(tmp_path, promotion={"exports": [], "signing_key": "key.pem"})
    registry = promote(config)
    (before,) = registry.ledger()
    store = registry.store
    store.delete("runs/one/outcome.json")
    for key in ("models/m/ledger/0000000001.json", "models/m/heads/0000000001"):  # lost before the ledger was written
        store.delete(key)
    again = step.promote(str(config), "one", "w", str(before.version), 1, no_rematch)
    assert again.evidence == before.evidence
    assert [record.evidence for record in registry.ledger()] == [before.evidence]
    store.delete("runs/one/outcome.json")  # and after
    assert step.promote(str(config), "one", "w", str(before.version), 1, no_rematch).evidence == before.evidence
    assert len(registry.ledger()) == 1


def test_evidence_that_was_cut_short_is_filed_anew_with_the_same_digest_if_it_is_not_signed(tmp_path: Path):
    config = write_config(tmp_path)
    registry = promote(config)
    (before,) = registry.ledger()
    for name in [o.key for o in registry.store.list_objects("runs/one/") if "/evidence-" in o.key]:
        registry.store.delete(name)
    for key in ("runs/one/outcome.json", "models/m/ledger/0000000001.json", "models/m/heads/0000000001"):
        registry.store.delete(key)
    registry.store.delete(f"models/m/evidence/{before.evidence}/manifest.json")
    assert step.promote(str(config), "one", "w", str(before.version), 1, no_rematch).evidence == before.evidence


def test_evidence_that_was_tampered_with_is_not_promoted_on(tmp_path: Path):
    config = write_config(tmp_path)
    registry = promote(config)
    (before,) = registry.ledger()
    for key in ("runs/one/outcome.json", "models/m/ledger/0000000001.json", "models/m/heads/0000000001"):
        registry.store.delete(key)
    registry.store.put(f"models/m/evidence/{before.evidence}/card.md", b"better")
    with pytest.raises(IntegrityError, match=r"card\.md"):
        step.promote(str(config), "one", "w", str(before.version), 1, no_rematch)
    assert registry.ledger() == []


def test_key_that_is_none_stops_the_promotion_and_a_later_attempt_mends_it(tmp_path: Path):
    (tmp_path / "key.pem").write_text("no key")
    config = write_config(tmp_path, promotion={"exports": [], "signing_key": "key.pem"})
    with pytest.raises(ConfigurationError, match=r"promotion\.signing_key .*key\.pem"):
        promote(config)
    registry = Registry(DirectoryStore(tmp_path / "store"), "m")
    assert registry.ledger() == []
    new_key(tmp_path, "key")
    version = registry.versions()[0]
    assert step.promote(str(config), "one", "w", version, 1, no_rematch).outcome == "promoted"


@pytest.mark.parametrize("after", [False, True])
def test_pod_that_is_lost_at_any_write_leaves_a_promotion_that_is_finished_by_running_again(
    signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
):
    shutil.copy(signed / "key.pem", tmp_path)
    config = write_config(tmp_path, promotion={"exports": [], "signing_key": "key.pem"})
    champion: str | None = None
    for number in range(1, 100):
        run_id = f"run-{number}"
        run, registry = begin(config, run_id)
        version = save(registry, bytes([number]), champion)
        judged(run, version, champion)
        with monkeypatch.context() as patch, suppress(Crash):
            patch.setattr(runs, "open_store", lambda _, n=number: CrashingStore(tmp_path / "store", n, after=after))
            step.promote(str(config), run_id, "w", version, 1, no_rematch)
            break  # more writes than there are
        assert registry.champion() is None or registry.champion().version in (champion, version)
        told = step.promote(str(config), run_id, "w", version, 1, no_rematch)
        mine = [record for record in registry.ledger() if record.run_id == run_id]
        assert [record.evidence for record in mine] == [told.evidence]
        champion = registry.champion().version
        assert champion == version
        registry.evidence(str(told.evidence)).verify()
    # One more than the probe's three, seven files, manifest, where they are, ledger, its head and the outcome.
    assert number == 16
    assert f"signed with {signed / 'key.pub'}" in verify_version(config, champion, signed / "key.pub")


# --- verifying


def test_what_was_promoted_verifies_in_the_store_and_in_the_folder(signed: Path):
    config, key = signed / "retrain.yaml", signed / "key.pub"
    told = verify_version(config, None)
    assert "7 files as written, signed (not checked: give --key PUBLIC.pem)" in told
    assert f"signed with {key}" in verify_version(config, None, key)
    assert "10 files as written, signed (not checked" in verify_folder(signed / "bundle")
    assert f"signed with {key}" in verify_folder(signed / "bundle", key)


def places(data: bytes) -> Iterator[int]:
    """Where a file is bent: its first, middle and last byte; a small one everywhere."""
    return iter(range(len(data)) if len(data) < 200 else (0, len(data) // 2, len(data) - 1))


def test_any_bent_file_of_the_folder_is_named(signed: Path, bundle: Path):
    paths = [path for path in sorted(bundle.rglob("*")) if path.is_file()]
    assert len(paths) == 3 + 7 + 1 + 2
    for path in paths:
        sound = path.read_bytes()
        for place in places(sound):
            for bit in (0, 5):
                bent = bytearray(sound)
                bent[place] ^= 1 << bit
                path.write_bytes(bent)
                with pytest.raises(IntegrityError, match=path.name):
                    verify_folder(bundle)
        for cut in (sound[:-1], b"", sound + b"\n"):
            path.write_bytes(cut)
            with pytest.raises(IntegrityError, match=path.name):
                verify_folder(bundle)
        path.unlink()
        with pytest.raises(IntegrityError, match=path.name):
            verify_folder(bundle)
        path.write_bytes(sound)
    verify_folder(bundle, signed / "key.pub")


def test_any_bent_file_of_the_store_is_named(signed: Path, tmp_path: Path):
    store = Path(shutil.copytree(signed / "store", tmp_path / "store"))
    config = write_config(tmp_path)
    paths = [path for path in sorted(store.glob("models/m/*/*/*")) if path.is_file()]
    assert len(paths) == 4 + 8
    ledger = [store / "models/m/ledger/0000000001.json", store / "models/m/heads/0000000001"]
    for path in [*paths, *ledger]:
        sound = path.read_bytes()
        named = "record 1 " if path in ledger else path.name
        for place in places(sound):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
            with pytest.raises(IntegrityError, match=named):
                verify_version(config, None)
        path.write_bytes(sound)
    verify_version(config, None)


@pytest.mark.parametrize("name", ["version/extra.py", "evidence/sub/extra", "version/.hidden", ".hidden", "extra"])
def test_extra_file_is_named(bundle: Path, name: str):
    path = bundle / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(IntegrityError, match=path.name):
        verify_folder(bundle)


@pytest.mark.parametrize("name", ["bundle.json", "evidence/card.md", "version/extra"])
def test_pipe_in_place_of_a_file_is_not_read(bundle: Path, name: str):
    (bundle / name).unlink(missing_ok=True)
    os.mkfifo(bundle / name)
    with pytest.raises(IntegrityError, match="is no file"):
        verify_folder(bundle)


def test_link_in_place_of_a_file_is_refused(bundle: Path, tmp_path: Path):
    outside = shutil.move(bundle / "evidence" / "card.md", tmp_path / "card.md")
    (bundle / "evidence" / "card.md").symlink_to(outside)
    with pytest.raises(IntegrityError, match=r"card\.md is a link"):
        verify_folder(bundle)


def test_large_file_is_checked_in_blocks(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("components.core.artifacts.BLOCK", 7)
    verify_folder(bundle)
    path = bundle / "evidence" / "card.md"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(IntegrityError, match=r"card\.md has SHA-256"):
        verify_folder(bundle)


@pytest.mark.parametrize("name", ["a" * 101, "/".join("a" * 9), "a" * 5000])
def test_manifest_that_lists_an_endless_name_is_refused(bundle: Path, name: str):
    point(bundle, evidence=reseal(bundle / "evidence", name))
    with pytest.raises(IntegrityError, match=r"manifest\.json lists"):
        verify_folder(bundle)


def test_swapped_files_are_named(bundle: Path):
    first, second = bundle / "evidence" / "verdict.json", bundle / "evidence" / "decision.json"
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    with pytest.raises(IntegrityError, match=r"verdict\.json|decision\.json"):
        verify_folder(bundle)


def reseal(part: Path, name: str = "") -> str:
    """Write a manifest that fits the files (and lists `name` too), as a forger without a key would. Its digest."""
    files = {str(p.relative_to(part)): sha256_hex(p.read_bytes()) for p in part.rglob("*") if p.is_file()}
    files.pop("manifest.json")
    files |= {name: "0" * 64} if name else {}
    manifest = json.dumps({"files": dict(sorted(files.items()))}, indent=1, sort_keys=True) + "\n"
    (part / "manifest.json").write_text(manifest)
    return sha256_hex(manifest.encode())[:32]


def point(bundle: Path, **digests: str) -> None:
    index = {**json.loads((bundle / "bundle.json").read_text()), **digests}
    (bundle / "bundle.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../b", "a//b", "./a", ".hidden", "a\\b", "manifest.json", "a\nb", "a/", "é"]
)
@pytest.mark.parametrize("part", ["version", "evidence"])
def test_manifest_that_lists_an_odd_name_is_refused_before_anything_is_read(bundle: Path, part: str, name: str):
    point(bundle, **{part: reseal(bundle / part, name)})
    for path in (bundle / part).iterdir():
        if path.name != "manifest.json":
            path.unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.json lists .*no name of a file"):
        verify_folder(bundle)


def test_evidence_of_another_version_is_refused(signed: Path, bundle: Path, tmp_path: Path):
    config = write_config(tmp_path)
    promote(config, weights=b"other")
    export_bundle(config, None, tmp_path / "theirs")
    shutil.rmtree(bundle / "version")
    shutil.copytree(tmp_path / "theirs" / "version", bundle / "version")
    point(bundle, version=json.loads((tmp_path / "theirs" / "bundle.json").read_text())["version"])
    with pytest.raises(IntegrityError, match=r"provenance\.json is about version"):
        verify_folder(bundle)


# --- signatures


def improve_the_card(bundle: Path) -> None:
    (bundle / "evidence" / "card.md").write_text("accuracy: 100 %")


def swap_the_weights(bundle: Path) -> None:
    (bundle / "version" / "weights").write_bytes(b"2")


def add_a_file(bundle: Path) -> None:
    (bundle / "evidence" / "setup.py").write_bytes(b"")


@pytest.mark.parametrize(
    ("forge", "named"),
    [(improve_the_card, r"card\.md"), (swap_the_weights, "version/weights"), (add_a_file, r"setup\.py")],
)
def test_forged_files_under_new_manifests_are_caught_by_the_signature_alone(
    signed: Path, bundle: Path, forge: Callable[[Path], None], named: str
):
    forge(bundle)
    version = reseal(bundle / "version")
    provenance = bundle / "evidence" / "provenance.json"
    provenance.write_text(json.dumps({**json.loads(provenance.read_text()), "version": version}))
    point(bundle, version=version, evidence=reseal(bundle / "evidence"))
    assert "signed (not checked" in verify_folder(bundle), "without a key there is nothing to tell it by"
    with pytest.raises(IntegrityError, match=rf"model\.sig is not valid: (.|\n)*{named}"):
        verify_folder(bundle, signed / "key.pub")


def test_signature_of_another_key_is_refused(signed: Path):
    with pytest.raises(IntegrityError, match=r"model\.sig is not valid"):
        verify_folder(signed / "bundle", signed / "other.pub")
    with pytest.raises(IntegrityError, match=r"model\.sig is not valid"):
        verify_version(signed / "retrain.yaml", None, signed / "other.pub")


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON", b"\xff\xfe"])
def test_forged_signature_is_refused(signed: Path, bundle: Path, content: bytes):
    (bundle / "evidence" / "model.sig").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.sig is not valid"):
        check_signature(bundle, signed / "key.pub")


def test_missing_signature_is_refused_where_a_key_is_given(signed: Path, tmp_path: Path):
    config = write_config(tmp_path)
    promote(config)
    export_bundle(config, None, tmp_path / "bundle")
    assert verify_folder(tmp_path / "bundle").endswith("not signed")
    with pytest.raises(IntegrityError, match=r"model\.sig is missing"):
        verify_folder(tmp_path / "bundle", signed / "key.pub")
    with pytest.raises(ConfigurationError, match=r"none\.pub"):
        verify_folder(tmp_path / "bundle", tmp_path / "none.pub")


def test_the_tool_of_openssf_agrees(signed: Path, bundle: Path):
    command = [sys.executable, "-m", "model_signing", "verify", "key", bundle, "--signature"]
    command += [bundle / "evidence" / "model.sig"]
    command += ["--public_key", signed / "key.pub"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "succeeded" in done.stdout) == (0, True), done.stdout + done.stderr
    swap_the_weights(bundle)
    assert subprocess.run(command, capture_output=True).returncode != 0


# --- exporting


def test_bundle_is_not_written_into_a_folder_in_use(signed: Path, tmp_path: Path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        export_bundle(signed / "retrain.yaml", None, tmp_path)


def test_version_that_was_not_promoted_has_nothing_to_export(signed: Path, tmp_path: Path):
    config = write_config(tmp_path)
    _, registry = begin(config, "one")
    version = save(registry, b"1")
    with pytest.raises(ConfigurationError, match="names no evidence"):
        export_bundle(config, version[:6], tmp_path / "bundle")
    assert "no evidence" in verify_version(config, version[:6])
    with pytest.raises(IntegrityError, match="no signature"):
        verify_version(config, version[:6], signed / "key.pub")
