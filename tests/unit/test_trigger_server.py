"""What the trigger answers over HTTP, to clients that mean well and to others."""

from __future__ import annotations

import base64
import http.client
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from components.core.errors import ConfigurationError
from components.core.events import sign_event
from components.core.metrics import EVENT_RESULTS, TriggerMetrics
from pipelines.trigger import server
from pipelines.trigger.server import LARGEST_BYTES, Application, Doorkeeper, serve

SECRET = "whsec_" + base64.b64encode(b"a secret of two dozen bytes").decode()
EVENT = b'{"specversion": "1.0", "id": "1", "type": "s3:ObjectCreated:Put", "source": "/incoming"}'


@dataclass
class Trigger:
    """A server under test: its port, how often it was woken, and what it says of itself."""

    port: int = 0
    wakes: int = 0
    told: Counter[str] = field(default_factory=Counter)
    unhealthy: str | None = None
    unready: str | None = None

    def wake(self) -> None:
        self.wakes += 1

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def send(self, body: bytes = EVENT, identity: str = "one", secret: str = SECRET, **changes: str) -> tuple[int, str]:
        headers = {"webhook-id": identity}
        headers |= sign_event(headers, body, secret, time.time()) | {k.replace("_", "-"): v for k, v in changes.items()}
        return self.ask("POST", "/events", body, headers)


@contextmanager
def serving(secret: str | None = SECRET, metrics: TriggerMetrics | None = None) -> Iterator[Trigger]:
    trigger = Trigger()
    metrics = metrics or TriggerMetrics(CollectorRegistry(), "m")

    def tell(result: str) -> None:
        trigger.told[result] += 1
        metrics.on_event(result)

    application = Application(
        metrics.registry,
        wake=trigger.wake,
        unhealthy=lambda: trigger.unhealthy,
        unready=lambda: trigger.unready,
        tell=tell,
        doorkeeper=Doorkeeper(secret) if secret else None,
    )
    with serve(application, "127.0.0.1:0", tell) as trigger.port:
        yield trigger
        assert trigger.ask("GET", "/healthz")[0] == (503 if trigger.unhealthy else 200), "it is alive to the end"


@pytest.fixture(scope="module")
def shared() -> Iterator[Trigger]:
    with serving() as trigger:
        yield trigger


@pytest.fixture
def trigger(shared: Trigger) -> Trigger:
    shared.wakes, shared.told, shared.unhealthy, shared.unready = 0, Counter(), None, None
    return shared


def test_signed_event_wakes_the_trigger(trigger: Trigger) -> None:
    assert trigger.send(identity="good") == (202, "looking\n")
    assert (trigger.wakes, trigger.told) == (1, Counter(accepted=1))


def test_the_bearer_of_the_secret_may_wake_it_too(trigger: Trigger) -> None:
    right, wrong = (
        trigger.ask("POST", "/events", b"{}", {"Authorization": f"Bearer {s}"}) for s in (SECRET, SECRET[:-1])
    )
    assert (right[0], wrong[0], trigger.wakes) == (202, 401, 1)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"secret": base64.b64encode(b"another secret of some bytes").decode()}, "signature"),
        ({"webhook_signature": "v1,bm9uc2Vuc2U="}, "signature"),
        ({"webhook_signature": ""}, "signature"),
        ({"webhook_signature": "v1,\xff\xfe"}, "signature"),
        ({"webhook_timestamp": "0"}, "signature"),
        ({"webhook_timestamp": "9" * 400}, "signature"),
        ({"webhook_timestamp": "yesterday"}, "signature"),
        ({"webhook_id": "another"}, "signature"),
        ({"Authorization": "Bearer"}, "signature"),
        ({"Authorization": "Basic " + SECRET}, "signature"),
    ],
)
def test_forged_event_is_refused_and_counted(trigger: Trigger, changes: dict[str, str], why: str) -> None:
    status, text = trigger.send(**{"identity": "forged", **changes})  # type: ignore[arg-type]
    assert (status, text, trigger.wakes, trigger.told) == (401, f"refused: {why}\n", 0, Counter({why: 1}))


def test_changed_body_is_refused(trigger: Trigger) -> None:
    headers = {"webhook-id": "changed"}
    headers |= sign_event(headers, EVENT, SECRET, time.time())
    assert trigger.ask("POST", "/events", EVENT + b" ", headers)[0] == 401


def test_replayed_event_is_refused(trigger: Trigger) -> None:
    headers = {"webhook-id": "twice"}
    headers |= sign_event(headers, EVENT, SECRET, time.time())
    answers = [trigger.ask("POST", "/events", EVENT, headers)[0] for _ in range(3)]
    assert (answers, trigger.wakes, trigger.told) == ([202, 409, 409], 1, Counter(accepted=1, replayed=2))


def test_old_event_is_refused(trigger: Trigger) -> None:
    headers = {"webhook-id": "old"}
    headers |= sign_event(headers, EVENT, SECRET, time.time() - 301)
    assert trigger.ask("POST", "/events", EVENT, headers) == (401, "refused: stale\n")


def test_a_replay_is_remembered_for_as_long_as_it_is_fresh() -> None:
    now = 1_000_000.0
    keeper = Doorkeeper(SECRET, lambda: now)
    headers = {"webhook-id": "x"}
    headers |= sign_event(headers, EVENT, SECRET, now + 299)  # the sender's clock is ahead
    assert keeper.refuse(headers, EVENT) is None
    for later in (0.0, 299.0, 598.0):
        now = 1_000_000.0 + later
        assert keeper.refuse(headers, EVENT) == "replayed"
    now = 1_000_000.0 + 601
    assert keeper.refuse(headers, EVENT) == "stale"


def test_what_it_remembers_is_bounded_by_time() -> None:
    now = 0.0
    keeper = Doorkeeper(SECRET, lambda: now)
    for number in range(3):
        now = 1000.0 * number
        headers = {"webhook-id": str(number)}
        assert keeper.refuse(headers | sign_event(headers, EVENT, SECRET, now), EVENT) is None
    assert list(keeper._seen) == ["2"]


@pytest.mark.parametrize("secret", ["", "c2hvcnQ=", "not base64!", "whsec_", "sécret"])
def test_secret_that_protects_nothing_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="RETRAIN_TRIGGER_SECRET"):
        Doorkeeper(secret)


def test_without_a_secret_no_event_passes() -> None:
    with serving(secret=None) as trigger:
        assert trigger.send() == (401, "refused: no-secret\n")
        assert (trigger.wakes, trigger.told) == (0, Counter({"no-secret": 1}))


def test_large_body_is_refused_before_it_is_read(trigger: Trigger) -> None:
    """10 MiB are announced, and the answer comes without them."""
    with socket.create_connection(("127.0.0.1", trigger.port), timeout=5) as client:
        client.sendall(b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 10485760\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
    assert trigger.told == Counter({"too-large": 1})


def test_large_body_without_a_length_is_refused(trigger: Trigger) -> None:
    with socket.create_connection(("127.0.0.1", trigger.port), timeout=5) as client:
        client.sendall(b"POST /events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
        with _until_refused():
            for _ in range(2 * LARGEST_BYTES // 0x8000):
                client.sendall(chunk)
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
    assert trigger.told == Counter({"too-large": 1})


@contextmanager
def _until_refused() -> Iterator[None]:
    with suppress(ConnectionError):  # it may hang up while the rest is still being sent
        yield


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 9000 + b"\r\n"]
)
def test_nonsense_is_refused_and_counted(trigger: Trigger, nonsense: bytes) -> None:
    with socket.create_connection(("127.0.0.1", trigger.port), timeout=5) as client, _until_refused():
        client.sendall(nonsense)
        assert client.recv(100).startswith((b"HTTP/1.0 4", b"HTTP/1.1 4"))
    assert sum(trigger.told.values()) == 1


@pytest.mark.parametrize(
    "beginning",
    [b"", b"POST /events HTTP/1.1\r\nX: ", b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"],
)
def test_slow_clients_are_cut_off_and_others_served_meanwhile(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow-loris: a byte now and then, which keeps a connection from ever looking idle."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 1.0)
    with serving() as trigger:
        clients = [socket.create_connection(("127.0.0.1", trigger.port), timeout=5) for _ in range(20)]
        try:
            for client in clients:
                client.sendall(beginning)
            open_still, began = list(clients), time.monotonic()
            while open_still and time.monotonic() - began < 10:
                assert trigger.ask("GET", "/healthz")[0] == 200
                open_still = [client for client in open_still if _drips(client, bool(beginning))]
                time.sleep(0.1)
            assert not open_still
            assert trigger.told == Counter(slow=20)
        finally:
            for client in clients:
                client.close()


def _drips(client: socket.socket, anything: bool) -> bool:
    """Send one more byte; False once the server has hung up."""
    try:
        if anything:
            client.sendall(b"a")
        client.setblocking(False)
        try:
            return client.recv(1) != b""
        except BlockingIOError:
            return True
        finally:
            client.setblocking(True)
    except OSError:
        return False


def test_more_connections_than_it_takes_do_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(server, "CONNECTIONS", 16)
    with serving() as trigger:
        clients = [socket.create_connection(("127.0.0.1", trigger.port), timeout=5) for _ in range(40)]
        try:
            began = time.monotonic()
            assert trigger.ask("GET", "/healthz")[0] == 200
            assert time.monotonic() - began < 9
        finally:
            for client in clients:
                client.close()


def test_health_and_readiness_say_what_is_wrong(trigger: Trigger) -> None:
    assert [trigger.ask("GET", path) for path in ("/healthz", "/readyz")] == [(200, "ok\n"), (200, "ok\n")]
    trigger.unready = "the store does not answer"
    assert trigger.ask("GET", "/readyz") == (503, "the store does not answer\n")
    assert trigger.ask("GET", "/healthz")[0] == 200
    trigger.unready, trigger.unhealthy = None, "stuck"
    assert trigger.ask("GET", "/healthz") == (503, "stuck\n")
    trigger.unhealthy = None


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/events", 405), ("POST", "/healthz", 404), ("GET", "/../etc/passwd", 404)],
)
def test_other_paths_and_methods(trigger: Trigger, method: str, path: str, status: int) -> None:
    assert trigger.ask(method, path)[0] == status
    assert not trigger.told


def test_metrics_show_what_was_refused() -> None:
    registry = CollectorRegistry()
    with serving(metrics=TriggerMetrics(registry, "m")) as trigger:
        trigger.send(identity="1")
        trigger.send(identity="2", webhook_signature="v1,no")
        families = {f.name: f for f in text_string_to_metric_families(trigger.ask("GET", "/metrics")[1])}
    events = {
        s.labels["result"]: s.value for s in families["retrain_trigger_events"].samples if s.name.endswith("_total")
    }
    assert set(events) == set(EVENT_RESULTS)
    assert {result for result, count in events.items() if count} == {"accepted", "signature"}


@pytest.mark.parametrize("listen", ["127.0.0.1:{}", "256.0.0.1:80"])
def test_address_that_cannot_be_listened_on(listen: str) -> None:
    registry = CollectorRegistry()
    application = Application(registry, print, lambda: None, lambda: None, print, None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = listen.format(other.getsockname()[1])
        with pytest.raises(ConfigurationError, match=r"trigger\.listen"), serve(application, listen, print):
            pass
