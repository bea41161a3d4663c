"""Events of a model: what is told, how it is signed, and that a receiver of any kind stands in nobody's way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.core import events
from components.core.config import Config, EventsConfig, StoreConfig
from components.core.contracts import LedgerKind, LedgerRecord
from components.core.events import announce, sign_event, write_event
from components.promote import step
from components.report.step import tell
from tests.unit.decision import no_rematch
from tests.unit.promotion import begin, judged, save, write_config

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests").decode()


def record(kind: LedgerKind = "promotion", run_id: str | None = "one") -> LedgerRecord:
    return LedgerRecord(
        number=7,
        kind=kind,
        version="a" * 32,
        evidence="e" * 32,
        champion_before=None,
        window="w",
        run_id=run_id,
        actor="pipeline",
        reason="As good.",
        nonce="n" * 32,
        previous=None,
        created=datetime(2026, 5, 1, 12, tzinfo=UTC),
    )


class Receiver:
    """A webhook on loopback that gives these answers, the last one for ever; keeps what it got."""

    def __init__(self, *answers: int, seconds: float = 0.0) -> None:
        self.answers, self.seconds = list(answers), seconds
        self.got: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                time.sleep(outer.seconds)
                self.send_response(outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0])
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@contextmanager
def receiving(*answers: int, seconds: float = 0.0) -> Iterator[Receiver]:
    receiver = Receiver(*answers, seconds=seconds)
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


def config(webhook: str | None, seconds: float = 5.0) -> Config:
    return Config(
        model="m", store=StoreConfig(uri="store"), events=EventsConfig(webhook=webhook, timeout_seconds=seconds)
    )


# --- what is told


@pytest.mark.parametrize(
    ("kind", "type_"),
    [("promotion", "promoted"), ("rejection", "rejected"), ("rollback", "rolled_back")],
)
def test_record_is_told_as_a_cloud_event(kind: LedgerKind, type_: str):
    headers, body = write_event("m", record(kind))
    event = json.loads(body)
    data = event.pop("data")
    assert event == {
        "specversion": "1.0",
        "id": "one-7",
        "type": f"dev.retrain.model.{type_}",
        "source": "/retrain/models/m",
        "subject": "a" * 32,
        "time": "2026-05-01T12:00:00Z",
        "datacontenttype": "application/json",
    }
    assert headers["content-type"].startswith("application/cloudevents+json")
    assert data == {"model": "m", **record(kind).model_dump(mode="json")}
    assert write_event("m", record(kind)) == (headers, body), "told again, it is the same event"


def test_record_of_no_run_is_told_by_its_nonce():
    assert json.loads(write_event("m", record("rollback", None))[1])["id"] == "n" * 32 + "-7"


@pytest.mark.parametrize("kind", ["hold", "approval", "release"])
def test_records_that_change_nothing_are_not_told(kind: LedgerKind):
    with receiving(200) as receiver:
        assert not announce(config(receiver.url), record(kind))
        assert receiver.got == []


def test_without_a_webhook_nobody_is_told():
    assert not announce(config(None), record())


# --- signatures


def test_signature_is_the_one_of_the_specification():
    """The example of the Standard Webhooks specification's libraries: secret, id, time and payload."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = sign_event({"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek"}, b'{"test": 2432232314}', secret, 1614265330.9)
    assert headers == {
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_secret_that_is_no_base64_is_refused_and_nothing_is_sent_unsigned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("RETRAIN_WEBHOOK_SECRET", "not base64!")
    with receiving(200) as receiver:
        assert not announce(config(receiver.url), record())
        assert receiver.got == []
    assert "RETRAIN_WEBHOOK_SECRET is not base64" in caplog.text


@pytest.mark.parametrize("secret", ["whsec_", " \n"])
def test_secret_with_nothing_in_it_signs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, secret: str
):
    monkeypatch.setenv("RETRAIN_WEBHOOK_SECRET", secret)
    with receiving(200) as receiver:
        assert not announce(config(receiver.url), record())
        assert receiver.got == []
    assert "RETRAIN_WEBHOOK_SECRET has nothing in it" in caplog.text


def test_line_break_after_the_secret_is_none_of_it():
    headers = {"webhook-id": "one"}
    assert sign_event(headers, b"{}", f"{SECRET}\n", 1.0) == sign_event(headers, b"{}", SECRET, 1.0)


def test_tokens_in_the_address_are_not_logged(caplog: pytest.LogCaptureFixture):
    assert not announce(config(f"http://ada:PASSWORD@127.0.0.1:{free_port()}/TOKEN"), record())
    assert "127.0.0.1 was not told" in caplog.text
    assert not {"PASSWORD", "TOKEN"} & {word for word in ("PASSWORD", "TOKEN") if word in caplog.text}


# --- receivers


def test_receiver_can_check_who_sent_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RETRAIN_WEBHOOK_SECRET", SECRET)
    with receiving(204) as receiver:
        assert announce(config(receiver.url), record())
    ((headers, body),) = receiver.got
    assert json.loads(body)["id"] == headers["webhook-id"] == "one-7"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
    signed = f"one-7.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(b"a secret of the tests", signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


def test_receiver_that_fails_at_first_is_told_again_with_the_same_event():
    with receiving(500, 503, 200) as receiver:
        assert announce(config(receiver.url), record())
    assert len(receiver.got) == 3
    assert len({(headers["webhook-id"], body) for headers, body in receiver.got}) == 1


@pytest.mark.parametrize(("answer", "tries"), [(500, 4), (400, 1), (302, 1)])
def test_receiver_that_refuses_is_logged(answer: int, tries: int, caplog: pytest.LogCaptureFixture):
    with receiving(answer) as receiver:
        assert not announce(config(receiver.url), record())
    assert len(receiver.got) == tries
    assert "ledger record 7" in caplog.text


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://[::1"])
def test_nobody_there_is_logged(url: str, caplog: pytest.LogCaptureFixture):
    assert not announce(config(url.format(port=free_port())), record())
    assert "was not told of ledger record 7" in caplog.text


@pytest.mark.parametrize("url", ["no address", "ftp://127.0.0.1/", "http://", ""])
def test_address_that_is_none_is_found_when_the_configuration_is_read(url: str):
    with pytest.raises(ValueError, match="webhook"):
        config(url)


def test_slow_receiver_costs_bounded_time(caplog: pytest.LogCaptureFixture):
    with receiving(200, seconds=1.0) as receiver:
        began = time.monotonic()
        assert not announce(config(receiver.url, 0.4), record())
        assert time.monotonic() - began < 0.9
    assert "ledger record 7" in caplog.text


def test_receiver_that_answers_a_byte_at_a_time_costs_bounded_time(caplog: pytest.LogCaptureFixture):
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while not ended.wait(0.02):
                connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        began = time.monotonic()
        assert not announce(config(f"http://127.0.0.1:{listener.getsockname()[1]}/", 0.4), record())
        assert time.monotonic() - began < 0.9
        ended.set()
        thread.join()
    assert "was not told of ledger record 7 within 0.4 s" in caplog.text


# --- runs


def test_report_tells_what_a_run_did_from_its_record_and_again_with_the_same_event(tmp_path: Path):
    with receiving(200) as receiver:
        path = write_config(tmp_path, events={"webhook": receiver.url})
        run, registry = begin(path, "one")
        version = save(registry, b"1")
        judged(run, version, None)
        step.promote(str(path), "one", "w", version, 1, no_rematch)
        assert receiver.got == [], "promoting waits for nobody"
        tell(run)
        tell(run)
    told = [json.loads(body) for _, body in receiver.got]
    assert [(event["id"], event["subject"]) for event in told] == [("one-1", version)] * 2
    assert told[0]["data"]["evidence"] == registry.ledger()[0].evidence


def test_run_whose_receiver_is_dead_is_reported_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write_config(tmp_path, events={"webhook": f"http://127.0.0.1:{free_port()}/", "timeout_seconds": 1})
    run, registry = begin(path, "one")
    version = save(registry, b"1")
    judged(run, version, None, "reject")
    step.record_outcome(str(path), "one", "w", "reject", 1)
    with caplog.at_level(logging.WARNING, events.__name__):
        assert tell(run).outcome == "rejected"
    assert "was not told of ledger record 1" in caplog.text
