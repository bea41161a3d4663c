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
from threading import Thread
from urllib.parse import urlsplit

from components.core.config import Config
from components.core.contracts import LedgerKind, LedgerRecord

logger = logging.getLogger(__name__)

SECRET_VARIABLE = "RETRAIN_WEBHOOK_SECRET"  # noqa: S105  # the variable's name
TYPES: dict[LedgerKind, str] = {
    "promotion": "dev.retrain.model.promoted",
    "rejection": "dev.retrain.model.rejected",
    "rollback": "dev.retrain.model.rolled_back",
}
TRIES = 4
PASSING = (429, 500, 502, 503, 504)  # answers that another try may change


class BadSecret(ValueError):
    """The secret of the webhook cannot sign anything."""


def announce(config: Config, record: LedgerRecord) -> bool:
    """Tell the webhook of the configuration about a ledger record: a promotion, a rejection or a rollback.

    The same record gives the same event with the same `id`, so whoever is told twice can tell. Takes no longer than
    `events.timeout_seconds`, and raises nothing: what goes wrong is logged.

    Returns:
        Whether the receiver took it; False too where there is nobody to tell, or nothing.
    """
    webhook, seconds = config.events.webhook, config.events.timeout_seconds
    if webhook is None or record.kind not in TYPES:
        return False
    taken: list[bool] = []
    # A thread: a timeout of a request does not bound a name server, nor a receiver that answers a byte a second.
    thread = Thread(target=lambda: taken.append(_send(config.model, record, webhook, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        logger.warning("%s was not told of ledger record %d within %g s", _host(webhook), record.number, seconds)
    return bool(taken and taken[0])


def _send(model: str, record: LedgerRecord, webhook: str, seconds: float) -> bool:
    import urllib3

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # its warnings name the whole address
    retries = urllib3.Retry(
        total=TRIES - 1, backoff_factor=0.2, status_forcelist=PASSING, allowed_methods=None, redirect=False
    )
    try:
        headers, body = write_event(model, record)
        headers |= sign_event(headers, body, os.environ.get(SECRET_VARIABLE), time.time())
        with urllib3.PoolManager(retries=retries, timeout=urllib3.Timeout(seconds / TRIES)) as pool:
            answer = pool.request("POST", webhook, body=body, headers=headers, redirect=False)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        why = error if isinstance(error, BadSecret) else type(error).__name__  # urllib3 names the whole address
        logger.warning("%s was not told of ledger record %d: %s", _host(webhook), record.number, why)
        return False
    if answer.status >= 300:
        logger.warning("%s answered %d to the event of ledger record %d", _host(webhook), answer.status, record.number)
    return answer.status < 300


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
