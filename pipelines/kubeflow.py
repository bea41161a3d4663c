"""The way to the Kubeflow Pipelines API: where it is, who we are to it, how patient we are, what its errors mean.

Uses the client that is generated from the API's description, and not `kfp.Client`, which knows no time limits, does not
try again, and never returns from waiting for a cancelled run. What is asked is in `pipelines.client`.

Not covered: a server that answers byte by byte, for ever: the time limit is for each wait, not for a whole answer.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.core.config import KubeflowConfig
from components.core.errors import ConfigurationError, RetrainError, RunFailed
from pipelines.trigger.launcher import LauncherUnavailable

TOKEN_FILE = Path("/var/run/secrets/kubeflow/pipelines/token")  # where Kubeflow's profiles and our manifests mount it
PORT = 8888
BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.5, 10.0
LONGEST_RETRY_AFTER_SECONDS = 30  # what a server may ask for
REFUSED_FOR_NOW = (429, 503)  # said before anything was done, if it is the API that says it
UNWELL = (429, 502, 503, 504)
MESSAGE_CHARACTERS = 500


class KubeflowUnavailable(RunFailed, LauncherUnavailable):
    """The API did not answer, or not in time, or is unwell: what was asked may have happened or not.

    `refused` says that it answered that it does not do it now.
    """

    refused = False


class KubeflowUnreachable(KubeflowUnavailable):
    """Nothing answers at that address."""

    exit_code = 2


class KubeflowRefused(ConfigurationError):
    """The API answered, and does not do it: trying again would change nothing. `status` is HTTP's, `code` gRPC's (None
    where it was not the API that answered)."""

    status = 0
    code: int | None = None


class Connection:
    """The generated services, each called through `call`."""

    def __init__(self, config: KubeflowConfig) -> None:
        """
        Raises:
            ConfigurationError: It is not known where the API is, or a file that is named is not there.
        """
        import kfp_server_api as api  # type: ignore[import-untyped]

        self.host = find_host(config)
        self._config, self._token_file = config, _token_file(config)
        if config.ca_file and not Path(config.ca_file).is_file():
            raise ConfigurationError(
                f"kubeflow.ca_file: no file {config.ca_file}",
                expected="a PEM file with the authority of the API's certificate",
                next_command="mend kubeflow.ca_file",
            )
        client = _json_client(self._settings())
        self.experiments = api.ExperimentServiceApi(client)
        self.pipelines = api.PipelineServiceApi(client)
        self.uploads = api.PipelineUploadServiceApi(client)
        self.runs = api.RunServiceApi(client)
        self.recurring_runs = api.RecurringRunServiceApi(client)

    def call(self, operation: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Make one request. GET and DELETE are tried again, others only where the connection was not made at all.

        Raises:
            KubeflowRefused: See there.
            KubeflowUnavailable: See there.
            ConfigurationError: The token or the certificate does not do.
        """
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        # An integer: the generated client takes a float, and then waits for ever.
        timeout = math.ceil(self._config.timeout_seconds)
        try:
            return operation(*arguments, _request_timeout=timeout, **keywords)
        except ApiException as error:
            raise self._explain(error.status, error.body) from error
        except HTTPError as error:
            raise self._explain_silence(error) from error
        except UnicodeDecodeError as error:
            raise self._stranger("something that is no text") from error

    def _settings(self) -> Any:
        import kfp_server_api as api
        from urllib3.util import Retry

        settings = api.Configuration(host=self.host)
        settings.ssl_ca_cert = self._config.ca_file or None
        settings.retries = Retry(
            total=self._config.max_attempts - 1,
            other=0,  # a certificate does not become valid by asking again
            redirect=False,  # to a login page
            allowed_methods=("GET", "DELETE"),
            status_forcelist=UNWELL,
            backoff_factor=BACKOFF_SECONDS,
            backoff_jitter=BACKOFF_SECONDS,
            backoff_max=LONGEST_BACKOFF_SECONDS,
            retry_after_max=LONGEST_RETRY_AFTER_SECONDS,
            raise_on_status=False,
        )
        if self._token_file:
            settings.api_key["authorization"] = ""
            settings.api_key_prefix["authorization"] = "Bearer"
            settings.refresh_api_key_hook = self._read_token
        return settings

    def _read_token(self, settings: Any) -> None:
        """Called before each request: a projected token is replaced by the kubelet before it expires."""
        assert self._token_file
        try:
            token = self._token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise _no_token(self._token_file, getattr(error, "strerror", None) or "no text") from error
        if not token:
            raise _no_token(self._token_file, "empty")
        settings.api_key["authorization"] = token

    def _explain(self, status: int, body: str | None) -> RetrainError:
        code, message = _read_error(body)
        where = f"the Kubeflow API at {self.host}"
        if status in (401, 403):
            who = f"the token in {self._token_file}" if self._token_file else "no token (kubeflow.token_file)"
            namespace = self._config.namespace or "none (kubeflow.namespace)"
            error = KubeflowRefused(
                f"{where} refuses ({status}): {message}; sent were {who} and the namespace {namespace}",
                expected="a token for the audience pipelines.kubeflow.org, whose owner may use runs in that namespace",
                next_command="kubectl create token SERVICE_ACCOUNT --audience pipelines.kubeflow.org > token, and set "
                "kubeflow.token_file to it",
            )
        elif 300 <= status < 400:
            return self._stranger(f"a redirection ({status}), as of a login page")
        elif status in UNWELL or status >= 500:
            unwell = KubeflowUnavailable(
                f"{where} is unwell ({status}): {message}",
                expected="an answer",
                next_command="the same command again; kubectl get pods shows whether ml-pipeline is ready",
            )
            unwell.refused = status in REFUSED_FOR_NOW
            return unwell
        elif code is None:
            return self._stranger(f"status {status}: {message}")
        else:
            error = KubeflowRefused(
                f"{where} refuses ({status}): {message}",
                expected="a request that it takes",
                next_command="mend the section kubeflow of the configuration, then run again",
            )
        error.status, error.code = status, code
        return error

    def _explain_silence(self, error: Exception) -> RetrainError:
        from urllib3.exceptions import ConnectTimeoutError, SSLError, TimeoutError

        reason = getattr(error, "reason", None) or error
        if isinstance(reason, SSLError):
            return ConfigurationError(
                f"the certificate of {self.host} does not hold: {reason}",
                expected="one that kubeflow.ca_file, or else the system, vouches for",
                next_command="set kubeflow.ca_file to the authority of the API's certificate",
            )
        if isinstance(reason, ConnectTimeoutError):
            return KubeflowUnreachable(
                f"nothing answers at {self.host}, where the Kubeflow API should be",
                expected="an address that is reached from here (kubeflow.host)",
                next_command=f"kubectl port-forward --namespace {self._config.api_namespace} service/ml-pipeline "
                f"{PORT}:{PORT}, and kubeflow.host: http://localhost:{PORT}",
            )
        how = "in time" if isinstance(reason, TimeoutError) else f"({type(reason).__name__})"
        return KubeflowUnavailable(
            f"the Kubeflow API at {self.host} did not answer {how}",
            expected=f"an answer within {self._config.timeout_seconds:g} s",
            next_command="the same command again; or raise kubeflow.timeout_seconds",
        )

    def _stranger(self, found: str) -> ConfigurationError:
        return stranger(self.host, found)


def stranger(host: str, found: str) -> ConfigurationError:
    """What answers is not the Kubeflow Pipelines API, or something in front of it."""
    return ConfigurationError(
        f"{host} answers with {found}",
        expected="the Kubeflow Pipelines API (kubeflow.host), and a token where it asks for one (kubeflow.token_file)",
        next_command=f"curl {host}/apis/v2beta1/healthz shows what is there",
    )


def find_host(config: KubeflowConfig) -> str:
    """Address of the API, without a slash at its end.

    Raises:
        ConfigurationError: None is configured, and this is no pod of a cluster.
    """
    if config.host:
        return config.host.rstrip("/")
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return f"http://ml-pipeline.{config.api_namespace}.svc:{PORT}"
    raise ConfigurationError(
        "kubeflow.host is not set, and this is no pod of a cluster",
        expected="the address of the Kubeflow Pipelines API",
        next_command=f"kubectl port-forward --namespace {config.api_namespace} service/ml-pipeline {PORT}:{PORT}, and "
        f"kubeflow.host: http://localhost:{PORT}",
    )


def _token_file(config: KubeflowConfig) -> Path | None:
    if config.token_file:
        return Path(config.token_file)
    return TOKEN_FILE if TOKEN_FILE.exists() else None


def _no_token(path: Path, found: str) -> ConfigurationError:
    return ConfigurationError(
        f"no token in {path}: {found}",
        expected="a file with a bearer token",
        next_command="kubectl create token SERVICE_ACCOUNT --audience pipelines.kubeflow.org > token, and set "
        "kubeflow.token_file to it",
    )


def _read_error(body: str | None) -> tuple[int | None, str]:
    """gRPC's code and the message of an error; no code where it is not the API's."""
    try:
        error = json.loads(body or "")
    except ValueError:
        return None, (body or "nothing more").strip()[:MESSAGE_CHARACTERS]
    if not isinstance(error, dict):
        return None, str(error)[:MESSAGE_CHARACTERS]
    code = error.get("code")
    message = str(error.get("message") or error.get("error") or error)[:MESSAGE_CHARACTERS]
    return (code if isinstance(code, int) else None), message


def _json_client(settings: Any) -> Any:
    """The generated client, which of a page of HTML makes a model without values, so that nothing seems to be there."""
    import kfp_server_api as api

    class JsonClient(api.ApiClient):  # type: ignore[misc]
        def deserialize(self, response: Any, response_type: str) -> Any:
            try:
                json.loads(response.data)
            except ValueError as error:
                raise stranger(settings.host, "something that is no JSON") from error
            return super().deserialize(response, response_type)

    return JsonClient(settings)
