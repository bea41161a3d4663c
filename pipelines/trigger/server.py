"""What the trigger answers over HTTP: whether it lives, whether it is ready, its metrics, and events that wake it.

An event says nothing but "look now": what there is shows the source. So a lost event costs `trigger.poll_seconds`, a
doubled or forged one a look; they are refused all the same. A client that is slow, large or numerous is bounded: a
request must be whole within `REQUEST_SECONDS` and `LARGEST_BYTES`, and connections are few.

Not covered: TLS, which an ingress ends.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask
from waitress.wasyncore import close_all

from components.core.errors import ConfigurationError

logger = logging.getLogger(__name__)

SECRET_VARIABLE = "RETRAIN_TRIGGER_SECRET"  # noqa: S105  # the variable's name
LARGEST_BYTES = 256 * 2**10  # of a body: what S3 servers send of a thousand objects
REQUEST_SECONDS = 10.0
CONNECTIONS = 64
TOLERANCE_SECONDS = 300.0  # between the sender's clock and ours, as Standard Webhooks' libraries have it
Refusal = str
"""Why an event is refused: a label of the metric."""


class Doorkeeper:
    """Tells whether an event may wake the trigger: signed, fresh, and not seen before.

    Source:
        https://www.standardwebhooks.com; the signature is that of `components.core.events.sign_event`.
    """

    def __init__(self, secret: str, now: Callable[[], float] = time.time) -> None:
        """
        Args:
            secret: Base64, with or without `whsec_` before it.
            now: Seconds since the epoch.

        Raises:
            ConfigurationError: The secret is no base64, or has fewer than 16 bytes.
        """
        try:
            self._key = base64.b64decode(secret.strip().removeprefix("whsec_"), validate=True)
        except ValueError:  # no base64, or no ASCII
            self._key = b""
        if len(self._key) < 16:
            raise ConfigurationError(
                f"{SECRET_VARIABLE} is not base64 of 16 bytes or more",
                expected="a secret that senders share",
                next_command=f"export {SECRET_VARIABLE}=$(openssl rand -base64 32)",
            )
        self._bearer = secret.strip()
        self._now = now
        self._seen: dict[str, float] = {}
        self._lock = Lock()

    def refuse(self, headers: dict[str, str], body: bytes) -> Refusal | None:
        """Why an event is refused; None for one that may pass.

        An S3 server that cannot sign may send the secret itself (`Authorization: Bearer`): over TLS, or inside a
        cluster.
        """
        if bearer := headers.get("authorization"):
            scheme, _, token = bearer.partition(" ")
            right = scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._bearer.encode())
            return None if right else "signature"
        identity, sent = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        if not self._is_signed(identity, sent, body, headers.get("webhook-signature", "")):
            return "signature"
        now = self._now()
        if abs(now - int(sent)) > TOLERANCE_SECONDS:
            return "stale"
        with self._lock:
            self._seen = {name: at for name, at in self._seen.items() if now - at <= 2 * TOLERANCE_SECONDS}
            if identity in self._seen:
                return "replayed"
            self._seen[identity] = now
        return None

    def _is_signed(self, identity: str, sent: str, body: bytes, signatures: str) -> bool:
        if not (identity and sent.isascii() and sent.isdecimal() and len(sent) < 20):
            return False
        signed = b".".join([identity.encode("latin-1"), sent.encode(), body])
        right = "v1," + base64.b64encode(hmac.new(self._key, signed, hashlib.sha256).digest()).decode()
        # Several where the sender is replacing its secret.
        return any(hmac.compare_digest(right.encode(), one.encode("latin-1")) for one in signatures.split())


class Application:
    """The WSGI application."""

    def __init__(
        self,
        registry: CollectorRegistry,
        wake: Callable[[], None],
        unhealthy: Callable[[], str | None],
        unready: Callable[[], str | None],
        tell: Callable[[str], None],
        doorkeeper: Doorkeeper | None,
    ) -> None:
        """
        Args:
            registry: What /metrics shows.
            wake: Called for an event that may pass.
            unhealthy: Why the process should be restarted, or None.
            unready: Why it cannot start runs now, or None.
            tell: Told of each event: accepted, or why not.
            doorkeeper: None: there is no secret, and no event passes.
        """
        self._metrics = make_wsgi_app(registry)
        self._wake, self._tell, self._doorkeeper = wake, tell, doorkeeper
        self._checks = {"/healthz": unhealthy, "/readyz": unready}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO", ""), environ["REQUEST_METHOD"]
        if path == "/metrics" and method == "GET":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        status, text = self._answer(path, method, environ)
        body = text.encode() + b"\n"
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response(status, headers)
        return [body]

    def _answer(self, path: str, method: str, environ: WSGIEnvironment) -> tuple[str, str]:
        if path in self._checks and method in ("GET", "HEAD"):
            wrong = self._checks[path]()
            return ("503 Service Unavailable", wrong) if wrong else ("200 OK", "ok")
        if path != "/events":
            return "404 Not Found", "there are /healthz, /readyz, /metrics and /events"
        if method != "POST":
            return "405 Method Not Allowed", "an event is sent with POST"
        return self._take_event(environ)

    def _take_event(self, environ: WSGIEnvironment) -> tuple[str, str]:
        headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name[:5] == "HTTP_"}
        refusal = self._doorkeeper.refuse(headers, environ["wsgi.input"].read()) if self._doorkeeper else "no-secret"
        if refusal:
            self._tell(refusal)
            status = "409 Conflict" if refusal == "replayed" else "401 Unauthorized"
            return status, f"refused: {refusal}"
        self._tell("accepted")
        self._wake()
        return "202 Accepted", "looking"


def _channel(refused: Callable[[Refusal], None]) -> type[HTTPChannel]:
    """A connection that is told of what waitress refuses by itself, and that knows since when its request is coming."""

    class CountedError(ErrorTask):  # type: ignore[misc]  # waitress has no types
        def execute(self) -> None:
            refused("too-large" if self.request.error.code == 413 else "malformed")
            super().execute()

    class Channel(HTTPChannel):  # type: ignore[misc]
        error_task_class = CountedError
        began: float | None = None

        def received(self, data: bytes) -> bool:
            if self.request is None:
                self.began = time.monotonic()
            return bool(super().received(data))

    return Channel


class _Server(TcpWSGIServer):  # type: ignore[misc]
    """waitress, which bounds sizes and connections, and here also how long a request may be on its way."""

    refused: Callable[[Refusal], None]

    def maintenance(self, now: float) -> None:
        for channel in self.active_channels.values():
            # One that has sent nothing yet has no request; its time runs from when it was accepted.
            began = channel.began or time.monotonic() - (now - channel.creation_time)
            coming = not channel.requests and (channel.request is not None or channel.began is None)
            if coming and time.monotonic() - began > REQUEST_SECONDS and not channel.will_close:
                channel.will_close = True
                self.refused("slow")
        super().maintenance(now)


@contextmanager
def serve(application: Application, listen: str, refused: Callable[[Refusal], None]) -> Iterator[int]:
    """Answer on an address from a thread of its own, until the block is left.

    Args:
        application: What to answer.
        listen: ADDRESS:PORT; port 0 takes a free one.
        refused: Told of each request that is refused before the application sees it.

    Yields:
        The port.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """
    address, _, port = listen.rpartition(":")
    try:
        listener = socket.create_server((address, int(port)), backlog=CONNECTIONS)
    except OSError as error:
        raise ConfigurationError(
            f"trigger.listen {listen}: {error}",
            expected="an address of this machine and a free port",
            next_command="mend trigger.listen",
        ) from error
    limits: dict[str, Any] = {
        "sockets": [listener],
        "threads": 4,
        "connection_limit": CONNECTIONS,
        "cleanup_interval": 1,
        "channel_timeout": int(2 * REQUEST_SECONDS),
        "max_request_body_size": LARGEST_BYTES,
        "max_request_header_size": 16 * 2**10,
        "log_socket_errors": False,
        "ident": None,
    }
    adjustments = Adjustments(**limits)
    with listener:
        place = (listener.family, listener.type, listener.proto, listener.getsockname())
        server = _Server(application, adj=adjustments, _sock=listener, bind_socket=False, sockinfo=place)
        server.channel_class, server.refused = _channel(refused), refused
        thread = Thread(target=server.run, name="http", daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.task_dispatcher.shutdown(timeout=1)
            left: dict[int, Any] = {}
            # The loop ends when its map is empty; what was in it is closed here, not under the loop's hands.
            server.trigger.pull_trigger(lambda: (left.update(server._map), server._map.clear()))
            thread.join(5)
            close_all(left, ignore_all=True)
