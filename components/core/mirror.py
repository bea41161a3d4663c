"""A mirror of the ledger in an MLflow model registry: each champion is a version there, and the alias `champion` names
the present one.

Over MLflow's REST API, which takes none of its packages. One way: nothing is ever read from it that decides anything.
Not covered: rejections and holds, experiments and metrics.
"""

from __future__ import annotations

import json
import os
from typing import Any

from components.core.config import Config
from components.core.contracts import LedgerRecord

ALIAS = "champion"
TOKEN_VARIABLE, USER_VARIABLE, PASSWORD_VARIABLE = (
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)


class MirrorRefused(ValueError):
    """What MLflow answered: its error code, and nothing that could hold a secret."""


def mirror_record(config: Config, record: LedgerRecord, address: str, http: Any) -> None:
    """Make a ledger record's champion the one of the mirror. Doing it again changes nothing.

    A version is found again by an alias of its own, `retrain-<version>`.

    Args:
        config: Names the model and the store.
        record: A promotion or a rollback.
        address: Of the tracking server.
        http: A pool of urllib3, which has the timeouts.

    Raises:
        MirrorRefused: It answered with an error.
        urllib3.exceptions.HTTPError: It did not answer.

    Source:
        https://mlflow.org/docs/latest/api_reference/rest-api.html
    """
    own = f"retrain-{record.version}"
    aliases = _aliases(http, address, config.model)
    number = aliases.get(own)
    if number is None:
        number = _create_version(http, address, config, record)
        _ask(http, address, "registered-models/alias", name=config.model, alias=own, version=number)
    if aliases.get(ALIAS) != number:
        _ask(http, address, "registered-models/alias", name=config.model, alias=ALIAS, version=number)


def _aliases(http: Any, address: str, model: str) -> dict[str, str]:
    """Version numbers by alias; a model that is not there yet is made."""
    try:
        found = _ask(http, address, "registered-models/get", method="GET", name=model)
    except MirrorRefused as error:
        if "RESOURCE_DOES_NOT_EXIST" not in str(error):
            raise
        _ask(http, address, "registered-models/create", name=model)
        return {}
    return {one["alias"]: one["version"] for one in found["registered_model"].get("aliases", [])}


def _create_version(http: Any, address: str, config: Config, record: LedgerRecord) -> str:
    folder = f"evidence/{record.evidence}" if record.evidence else f"versions/{record.version}"
    named = {"version": record.version, "evidence": record.evidence, "run": record.run_id, "window": record.window}
    made = _ask(
        http,
        address,
        "model-versions/create",
        name=config.model,
        source=f"{config.store.uri}/models/{config.model}/{folder}",
        description=record.reason,
        tags=[{"key": f"retrain.{name}", "value": value} for name, value in named.items() if value],
    )
    number: str = made["model_version"]["version"]
    return number


def _ask(http: Any, address: str, what: str, *, method: str = "POST", **fields: Any) -> dict[str, Any]:
    from urllib3 import make_headers

    headers = {"Content-Type": "application/json"}
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        headers["Authorization"] = f"Bearer {token}"
    elif user := os.environ.get(USER_VARIABLE):
        headers |= make_headers(basic_auth=f"{user}:{os.environ.get(PASSWORD_VARIABLE, '')}")
    url = f"{address.rstrip('/')}/api/2.0/mlflow/{what}"
    content = {"fields": fields} if method == "GET" else {"body": json.dumps(fields)}
    answer = http.request(method, url, headers=headers, redirect=False, **content)
    try:
        document = json.loads(answer.data or b"{}")
        code = document.get("error_code", "")
    except (ValueError, AttributeError) as error:
        raise MirrorRefused(f"{answer.status} to {what}, and no JSON") from error
    if answer.status >= 300:
        raise MirrorRefused(f"{answer.status} {code} to {what}")
    return dict(document)
