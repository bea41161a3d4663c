"""Real S3-compatible servers on loopback for the tests, and a proxy that loses replies.

Each server runs on free ports, is waited for with a bound, writes its output to a file, and is ended by its pid.
What a server cannot do is declared (`Server`), so that a test asserts it or is skipped by name. Not covered: TLS.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pwd
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from components.core.config import StoreConfig
from components.core.storage import ObjectStore, open_store

START_SECONDS = 30.0  # Swift needs four on an idle machine; a busy CI machine gets the rest
BUCKET = "retrain-tests"
REGION = "us-east-1"
BIN = Path(sys.executable).parent
VERSITYGW = Path(__file__).parents[1] / ".tools" / "versitygw"

# Processes that start from a clean one, since pytest's own may hold threads; it has the slow imports behind it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["boto3", "components.core.registry", "pytest"])

Work = Callable[[ObjectStore, int, Callable[[], object]], Any]
"""What one writer of a race does with its store, its number, and a call that waits for all others."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running S3 server and what it is known to keep."""

    name: str
    port: int
    access_key: str
    secret_key: str
    has_if_match: bool
    """False where If-Match on PUT is answered with 501."""
    one_winner: bool
    """True where conditional writes hold under concurrency, not only one after the other."""
    session: boto3.Session = field(default_factory=boto3.Session)
    """Stands in as boto3's default session: a new one for each test would read its data files for 0.3 s each time.
    It takes the credentials from the environment like any other, when it makes its first client."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def credentials(self) -> dict[str, str]:
        """What boto3's default chain reads; all other places it looks at are switched off."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A place of its own for one test, on a directory or a server."""

    name: str
    config: StoreConfig
    has_if_match: bool = True
    server: Server | None = None

    def open(self, **changes: Any) -> ObjectStore:
        """Open the store anew, as another process would, with some of its configuration changed."""
        return open_store(self.config.model_copy(update=changes))


def directory_backend(folder: Path) -> Backend:
    """A store in a folder that does not exist yet, below one that does."""
    return Backend(name="directory", config=StoreConfig(uri=str(folder / "store")))


def server_backend(server: Server) -> Backend:
    """A fresh prefix in the server's bucket. Two tries, so that a test of a dead server is a quick one."""
    config = StoreConfig(
        uri=f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}",
        endpoint_url=server.endpoint,
        region=REGION,
        max_attempts=2,
        connect_timeout_seconds=5,
        read_timeout_seconds=20,
    )
    return Backend(name=server.name, config=config, has_if_match=server.has_if_match, server=server)


def params(*names: str) -> list[Any]:
    """Parameters of the fixture `backend`: these kinds of store only."""
    return [pytest.param(name, marks=[] if name == "directory" else pytest.mark.integration) for name in names]


def on(*names: str) -> pytest.MarkDecorator:
    """Run a test on these kinds of store only."""
    return pytest.mark.parametrize("backend", params(*names), indirect=True)


def race(backend: Backend, work: Work, count: int) -> list[Any]:
    """Let `count` writers work at once, each with a store of its own: processes on a directory, else threads.

    Returns:
        What each writer returned, in order of their numbers.
    """
    if backend.server:
        stores = [backend.open() for _ in range(count)]
        barrier = threading.Barrier(count, timeout=START_SECONDS)
        with ThreadPoolExecutor(count) as pool:
            futures = [pool.submit(work, store, number, barrier.wait) for number, store in enumerate(stores)]
            return [future.result() for future in futures]
    shared, results = PROCESSES.Barrier(count, timeout=START_SECONDS), PROCESSES.SimpleQueue()
    writers = [
        PROCESSES.Process(target=_write, args=(backend, work, number, shared, results)) for number in range(count)
    ]
    for writer in writers:
        writer.start()
    answers: dict[int, Any] = dict(results.get() for _ in writers)
    for writer in writers:
        writer.join()
        writer.close()
    results.close()
    for answer in answers.values():
        if isinstance(answer, Exception):
            raise answer
    return [answers[number] for number in range(count)]


def _write(backend: Backend, work: Work, number: int, barrier: Any, results: Any) -> None:
    try:
        answer = work(backend.open(), number, barrier.wait)
    except Exception as error:  # noqa: BLE001  # raised again by `race`
        answer = error
    results.put((number, answer))


@contextmanager
def moto(folder: Path) -> Iterator[Server]:
    """Moto with signatures and rights enforced, which by itself accepts any key.

    It counts calls: the first four are free of checks, and make the user that all later calls must be signed by.
    Its conditional writes take no lock, so nothing about concurrency is to be concluded from it.
    """
    port = free_port()
    command = [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with running(command, folder / "moto.log", lambda: accepts(port), {"INITIAL_NO_AUTH_ACTION_COUNT": "4"}):
        everything = {"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
        with client("iam", port, "nobody", "nothing") as iam:
            iam.create_user(UserName="tester")
            key = iam.create_access_key(UserName="tester")["AccessKey"]
            arn = iam.create_policy(PolicyName="tester", PolicyDocument=policy)["Policy"]["Arn"]
            iam.attach_user_policy(UserName="tester", PolicyArn=arn)
        yield with_bucket(
            Server(
                name="moto",
                port=port,
                access_key=key["AccessKeyId"],
                secret_key=key["SecretAccessKey"],
                has_if_match=True,
                one_winner=False,
            )
        )


@contextmanager
def versitygw(folder: Path) -> Iterator[Server]:
    """The one server here that keeps conditional writes under concurrency: plain files below `folder`."""
    server = versitygw_server(free_port())
    (folder / "data").mkdir()
    with running(versitygw_command(server, folder), folder / "versitygw.log", lambda: accepts(server.port)):
        yield with_bucket(server)


def versitygw_server(port: int) -> Server:
    """What the server is known to keep once it runs."""
    return Server(
        name="versitygw",
        port=port,
        access_key="tester",
        secret_key="testing-secret",
        has_if_match=True,
        one_winner=True,
    )


def versitygw_command(server: Server, folder: Path) -> list[str]:
    """How it is started on the files below `folder`: anew on the same ones after it was killed."""
    command = [str(VERSITYGW), "--access", server.access_key, "--secret", server.secret_key, "--region", REGION]
    return [*command, "--port", f"127.0.0.1:{server.port}", "posix", str(folder / "data")]


@contextmanager
def swift(folder: Path) -> Iterator[Server]:
    """OpenStack Swift, all of it: account, container and object server, and a proxy that speaks S3.

    It says 501 to If-Match, and its create-only holds for writers that come one after the other only.
    """
    ports = {name: free_port() for name in ("account", "container", "object", "proxy")}
    for name in ("etc", "device/d1", "recon"):
        (folder / name).mkdir(parents=True)
    write_swift_configuration(folder, ports)
    with ExitStack() as stack:
        for name, port in ports.items():
            command = [str(BIN / f"swift-{name}-server"), str(folder / "etc" / f"{name}-server.conf")]
            ready = healthy(port) if name == "proxy" else (lambda: True)
            stack.enter_context(running(command, folder / f"{name}.log", ready))
        for name, port in ports.items():
            wait_until(lambda port=port: accepts(port), f"Swift's {name} server", folder / f"{name}.log")
        yield with_bucket(
            Server(
                name="swift",
                port=ports["proxy"],
                access_key="test:tester",
                secret_key="testing",
                has_if_match=False,
                one_winner=False,
            )
        )


# One device, one copy. A process of its own: the ring builder is the largest import of these tests.
BUILD_RINGS = """
import json, sys
from swift.common.ring import RingBuilder
folder, ports = sys.argv[1], json.loads(sys.argv[2])
for name in ("account", "container", "object"):
    builder = RingBuilder(6, 1, 0)
    builder.add_dev(
        {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": ports[name], "device": "d1", "weight": 1.0}
    )
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""


def write_swift_configuration(folder: Path, ports: Mapping[str, int]) -> None:
    """Write rings and the four configuration files below `folder`/etc."""
    etc = folder / "etc"
    everywhere = f"""
        [DEFAULT]
        bind_ip = 127.0.0.1
        workers = 0
        user = {pwd.getpwuid(os.getuid()).pw_name}
        swift_dir = {etc}
        devices = {folder / "device"}
        mount_check = false
        disable_fallocate = true
        log_level = WARNING
        log_udp_host = 127.0.0.1
        log_udp_port = 9
    """
    configurations = {
        "swift": """
            [swift-hash]
            swift_hash_path_prefix = retrain
            swift_hash_path_suffix = tests
            [storage-policy:0]
            name = default
            default = yes
        """,
        "proxy-server": f"""
            {everywhere}
            bind_port = {ports["proxy"]}
            [pipeline:main]
            pipeline = catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth slo proxy-server
            [app:proxy-server]
            use = egg:swift#proxy
            allow_account_management = true
            account_autocreate = true
            [filter:catch_errors]
            use = egg:swift#catch_errors
            [filter:gatekeeper]
            use = egg:swift#gatekeeper
            [filter:healthcheck]
            use = egg:swift#healthcheck
            [filter:listing_formats]
            use = egg:swift#listing_formats
            [filter:bulk]
            use = egg:swift#bulk
            [filter:s3api]
            use = egg:swift#s3api
            location = {REGION}
            [filter:tempauth]
            use = egg:swift#tempauth
            user_test_tester = testing .admin .reseller_admin
            [filter:slo]
            use = egg:swift#slo
        """,
    }
    for name in ("account", "container", "object"):
        configurations[f"{name}-server"] = f"""
            {everywhere}
            bind_port = {ports[name]}
            [pipeline:main]
            pipeline = {name}-server
            [app:{name}-server]
            use = egg:swift#{name}
            recon_cache_path = {folder / "recon"}
        """
    for name, text in configurations.items():
        (etc / f"{name}.conf").write_text("\n".join(line.strip() for line in text.splitlines()))
    subprocess.run([sys.executable, "-c", BUILD_RINGS, str(etc), json.dumps(ports)], check=True, timeout=START_SECONDS)


@contextmanager
def running(
    command: Sequence[str], log: Path, ready: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a server for as long as the block lasts. It sits in a session of its own: Ctrl-C reaches pytest only."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or ready(), command[0], log)
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(ready: Callable[[], bool], what: str, log: Path) -> None:
    """Wait for at most `START_SECONDS`; the error quotes the end of the log."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not start in {START_SECONDS:.0f} s:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)


def free_port() -> int:
    """A port that was free a moment ago."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody listens on a port. No request is made: moto counts those."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def healthy(port: int) -> Callable[[], bool]:
    """Whether Swift's proxy answers its health check."""

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return ready


@contextmanager
def client(service: str, port: int, access_key: str, secret_key: str) -> Iterator[Any]:
    """A boto3 client of one server, apart from the environment."""
    made = boto3.Session(access_key, secret_key, region_name=REGION).client(
        service, endpoint_url=f"http://127.0.0.1:{port}"
    )
    try:
        yield made
    finally:
        made.close()


def with_bucket(server: Server) -> Server:
    """Make the bucket of the tests."""
    with client("s3", server.port, server.access_key, server.secret_key) as s3:
        s3.create_bucket(Bucket=BUCKET)
    return server


def reset(connection: socket.socket) -> None:
    """Let a connection end in a reset once it is closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class LossyProxy:
    """Forwards connections to a server, and loses chosen replies after the server has acted.

    The client sees a connection reset: it cannot tell whether its request was carried out. With a `drop_rate` it also
    loses exchanges by chance: half of them before the server sees the request, half after it has acted.
    """

    def __init__(self, target_port: int, drop_rate: float = 0.0, seed: int = 0) -> None:
        self.lost = self.requests = 0
        self._drop_rate, self._chance = drop_rate, random.Random(seed)
        self._target_port = target_port
        self._to_lose: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def lose(self, verb: str, count: int) -> None:
        """Lose the replies to the next `count` requests of this HTTP method."""
        with self._lock:
            self._to_lose[verb] = count

    def stop(self) -> None:
        """End all connections and threads."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            if select.select([self._listener], [], [], 0.1)[0]:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._relay, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _relay(self, near: socket.socket) -> None:
        losing = False
        with near, suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self._target_port)) as far:
            while not self._stopped.is_set():
                ready = select.select([near, far], [], [], 0.1)[0]
                try:
                    if near in ready:
                        if not (block := near.recv(65536)):
                            return
                        if block.startswith((b"PUT ", b"GET ", b"HEAD ", b"DELETE ", b"POST ")):
                            fate = self._draw()
                            losing = self._loses(block.partition(b" ")[0].decode()) or fate == "no reply"
                            if fate == "no request":
                                reset(near)
                                return
                        far.sendall(block)
                    if far in ready:
                        if not (block := far.recv(65536)):
                            return
                        # These only ask for the body: nothing is done yet. A server may send two, in one block.
                        while losing and block.startswith(b"HTTP/1.1 100"):
                            interim, end, block = block.partition(b"\r\n\r\n")
                            near.sendall(interim + end)
                        if losing and block:
                            self.lost += 1
                            reset(near)
                            return
                        near.sendall(block)
                except OSError:
                    return

    def _draw(self) -> str:
        """What becomes of an exchange by chance."""
        with self._lock:
            self.requests += 1
            drawn = self._chance.random() / self._drop_rate if self._drop_rate else 1.0
        return "no request" if drawn < 0.5 else "no reply" if drawn < 1.0 else "both"

    def _loses(self, verb: str) -> bool:
        with self._lock:
            left = self._to_lose.get(verb, 0)
            self._to_lose[verb] = max(0, left - 1)
        return left > 0
