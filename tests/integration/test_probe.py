"""The probe of a store and the race on it, on real servers, through the command line that people use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from components.core.contention import race_store
from components.core.probe import check_store, probe_optional, probe_required
from components.core.storage import DirectoryStore, ObjectStore, S3Store
from pipelines.cli import app
from tests.servers import Backend, LossyProxy, on

# What each is known to take as if it were right, of what is not required.
WARNINGS = {"moto": {"wrong MD5", "wrong SHA-256"}}


def test_stores_of_the_tests_are_fit_for_a_ledger_and_left_clean(backend: Backend, store: ObjectStore) -> None:
    check_store(store)
    assert all(finding.passed for finding in probe_required(store))
    failed = {finding.name for finding in probe_optional(store) if not finding.passed}
    assert failed == WARNINGS.get(backend.name, set())
    assert list(store.list_objects()) == []


@on("versitygw")
def test_check_before_a_promotion_is_eight_requests(store: ObjectStore) -> None:
    assert isinstance(store, S3Store)
    sent: list[str] = []
    store._client.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.method))
    check_store(store)
    assert sorted(sent) == ["DELETE", "GET", "GET", "GET", "GET", "HEAD", "PUT", "PUT"]


@on("versitygw")
def test_lost_replies_do_not_make_a_sound_store_unsound(backend: Backend, proxy: LossyProxy) -> None:
    store = backend.open(endpoint_url=proxy.endpoint, max_attempts=4)
    proxy.lose("PUT", 2)
    check_store(store)
    assert proxy.lost == 2


@on("directory", "versitygw")
def test_one_of_fifty_writers_wins_each_round(backend: Backend) -> None:
    finding = race_store(backend.config, rounds=2)
    assert finding.passed, finding.sentence


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "retrain.yaml"
    path.write_text(yaml.safe_dump({"store": {"uri": "store"}}))
    return path


def doctor(config: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["doctor", "--config", str(config), *options])
    return done.exit_code, done.stdout


def test_doctor_tells_a_line_for_each_check(config: Path) -> None:
    code, told = doctor(config)
    assert code == 0
    assert "ok   create-only: A key that is taken is refused.\n" in told
    assert told.endswith("fit for promotions\n")
    code, told = doctor(config, "--json", "--race")
    findings = [json.loads(line) for line in told.splitlines()]
    assert [f["name"] for f in findings][:2] == ["store", "create-only"]
    assert findings[-1]["name"] == "race"
    assert (code, all(f["passed"] for f in findings)) == (0, True)


def test_doctor_fails_for_a_store_that_keeps_no_condition(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(store: DirectoryStore, key: str, data: bytes) -> bool:
        store.put(key, data)
        return True

    monkeypatch.setattr(DirectoryStore, "put_new", overwrite)
    code, told = doctor(config)
    assert code == 1
    assert "FAIL create-only: It answered that it had created" in told
    assert told.endswith("nothing is promoted on this store: create-only\n")
