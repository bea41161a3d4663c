"""Fixtures for all tests: the object stores a test runs on.

`backend` is a place of its own on each of a directory, moto, Swift and versitygw; a test that only some of them can
pass names those with `servers.on(...)`. Servers start once a session, when the first test needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from components.core.storage import ObjectStore
from tests import servers
from tests.servers import Backend, LossyProxy, Server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (servers.BIN / "swift-proxy-server").exists():
        pytest.skip("needs swift: pip install swift (Linux)")
    with servers.swift(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="session")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not servers.VERSITYGW.exists():
        pytest.skip("needs versitygw: make test-deps")
    with servers.versitygw(tmp_path_factory.mktemp("versitygw")) as server:
        yield server


@pytest.fixture(params=servers.params("directory", "moto", "swift", "versitygw"))
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A fresh, empty place on one kind of store, with its credentials in the environment."""
    if request.param == "directory":
        return servers.directory_backend(tmp_path)
    server: Server = request.getfixturevalue(request.param)
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", server.session)  # one a server: it keeps what credentials it finds
    return servers.server_backend(server)


@pytest.fixture
def store(backend: Backend) -> ObjectStore:
    return backend.open()


@pytest.fixture
def proxy(backend: Backend) -> Iterator[LossyProxy]:
    """A way to the backend's server that loses replies on demand."""
    assert backend.server, "only a server has replies to lose"
    lossy = LossyProxy(backend.server.port)
    yield lossy
    lossy.stop()
