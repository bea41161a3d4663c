"""Telling others what became of a model: CloudEvents to a webhook, signed, tried again, and never in anybody's way.

A promotion is in the ledger before anyone is told. A receiver that is down loses the news, not the promotion: `retrain
status` has the ledger. Not covered: metrics (`metrics`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from components.core.config import Config, EventsConfig
from components.core.contracts import LedgerKind, LedgerRecord
from components.core.mirror import MirrorRefused, mirror_record

logger = logging.getLogger(__name__)

SECRET_VARIABLE = "RETRAIN_WEBHOOK_SECRET"  # noqa: S105  # the variable's name
TYPES: dict[LedgerKind, str] = {
    "promotion": "dev.retrain.model.promoted",
    "rejection": "dev.retrain.model.rejected",
    "rollback": "dev.retrain.model.rolled_back",
}
TRIES = 4
PASSING = (429, 500, 502, 503, 504)  # answers that another try may change


class Refused(ValueError):
    """What the webhook answered."""


class BadSecret(ValueError):
    """The secret of the webhook cannot sign anything."""


def announce(config: Config, record: LedgerRecord) -> bool:
    """Tell who the configuration names about a ledger record: the webhook about a promotion, a rejection or a rollback,
    the MLflow mirror about a new champion.

    The same record gives the same event with the same `id`, so whoever is told twice can tell. Takes no longer than
    `events.timeout_seconds` each, and raises nothing: what goes wrong is logged.

    Returns:
        Whether all took it; False too where there is nobody to tell, or nothing.
    """
    taken = [
        _tell_in_time(receiver, address, config, record) for receiver, address in _receivers(config.events, record)
    ]
    return bool(taken) and all(taken)


Receiver = Callable[[Config, LedgerRecord, str, Any], None]
"""Tells an address about a record over a pool of urllib3, and raises ValueError or what the pool raises."""


def _receivers(events: EventsConfig, record: LedgerRecord) -> Iterator[tuple[Receiver, str]]:
    if events.webhook and record.kind in TYPES:
        yield send_event, events.webhook
    if events.mlflow and record.makes_champion:
        yield mirror_record, events.mlflow


def _tell_in_time(receiver: Receiver, address: str, config: Config, record: LedgerRecord) -> bool:
    seconds, taken = config.events.timeout_seconds, list[bool]()
    # A thread: a timeout of a request does not bound a name server, nor a receiver that answers a byte a second.
    thread = Thread(target=lambda: taken.append(_tell(receiver, address, config, record)), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        logger.warning("%s was not told of ledger record %d within %g s", _host(address), record.number, seconds)
    return bool(taken and taken[0])


def _tell(receiver: Receiver, address: str, config: Config, record: LedgerRecord) -> bool:
    import urllib3

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # its warnings name the whole address
    retries = urllib3.Retry(
        total=TRIES - 1,
        backoff_factor=0.2,
        status_forcelist=PASSING,
        allowed_methods=None,
        redirect=False,
        raise_on_status=False,
    )
    timeout = urllib3.Timeout(config.events.timeout_seconds / TRIES)
    try:
        with urllib3.PoolManager(retries=retries, timeout=timeout) as http:
            receiver(config, record, address, http)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        ours = isinstance(error, Refused | BadSecret | MirrorRefused)
        why = error if ours else type(error).__name__  # urllib3 names the whole address
        logger.warning("%s was not told of ledger record %d: %s", _host(address), record.number, why)
        return False
    return True


def send_event(config: Config, record: LedgerRecord, webhook: str, http: Any) -> None:
    """Send a record as an event.

    Raises:
        Refused: The receiver answered with an error.
        BadSecret: See `sign_event`.
        urllib3.exceptions.HTTPError: It did not answer.
    """
    headers, body = write_event(config.model, record)
    headers |= sign_event(headers, body, os.environ.get(SECRET_VARIABLE), time.time())
    answer = http.request("POST", webhook, body=body, headers=headers, redirect=False)
    if answer.status >= 300:
        raise Refused(f"it answered {answer.status}")


def _host(webhook: str) -> str:
    """What of an address may be logged: paths and user names are where receivers put their tokens."""
    try:
        return urlsplit(webhook).hostname or "the webhook"
    except ValueError:
        return "the webhook"


def write_event(model: str, record: LedgerRecord) -> tuple[dict[str, str], bytes]:
    """A ledger record as a CloudEvent in structured JSON: headers and body.

    Source:
        CloudEvents 1.0.2, HTTP protocol binding, section 3.2.
    """
    from cloudevents.core.bindings.http import to_structured_event
    from cloudevents.core.v1.event import CloudEvent

    attributes = {
        "id": f"{record.run_id or record.nonce}-{record.number}",
        "type": TYPES[record.kind],
        "source": f"/retrain/models/{model}",
        "subject": record.version,
        "time": record.created,
        "datacontenttype": "application/json",
    }
    message = to_structured_event(CloudEvent(attributes, {"model": model, **record.model_dump(mode="json")}))
    identity = {"webhook-id": str(attributes["id"])}
    return {**message.headers, **identity}, message.body


def sign_event(headers: dict[str, str], body: bytes, secret: str | None, now: float) -> dict[str, str]:
    """Headers with the time and an HMAC-SHA256 over id, time and body; the time alone where there is no secret.

    Args:
        headers: With `webhook-id`.
        secret: Base64, with or without `whsec_` before it.
        now: Seconds since the epoch.

    Raises:
        BadSecret: It is no base64, or empty.

    Source:
        https://www.standardwebhooks.com, whose libraries check it.
    """
    sent = str(int(now))
    if not secret:
        return {"webhook-timestamp": sent}
    try:
        key = base64.b64decode(secret.strip().removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise BadSecret(f"{SECRET_VARIABLE} is not base64 (openssl rand -base64 32 makes one)") from error
    if not key:
        raise BadSecret(f"{SECRET_VARIABLE} has nothing in it (openssl rand -base64 32 makes one)")
    signed = b".".join([headers["webhook-id"].encode(), sent.encode(), body])
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {"webhook-timestamp": sent, "webhook-signature": f"v1,{signature}"}
