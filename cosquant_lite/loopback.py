"""A real Flower deployment on this machine: a SuperLink and SuperNodes as processes of their own, for tests and lessons.

With TLS, and only nodes whose key was registered. Certificates and keys are made for the occasion and live in `home`.
All that nodes and SuperLink say to each other is counted on its way: `Deployment.wire`.
"""

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cosquant_lite.relay import Counted, relay

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
except ImportError as error:
    raise ImportError(f'a Flower deployment needs: pip install "cosquant-lite[flower]" ({error})') from None

BIN = Path(sys.executable).parent
WAIT = 60  # seconds until a process must be there


@dataclass
class Deployment:
    """Processes and where they keep their things. port: the SuperLink's; wire: bytes of all nodes; nodes: by partition."""

    home: Path
    port: int
    wire: Counted
    superlink: subprocess.Popen | None = None
    nodes: dict[int, subprocess.Popen] = field(default_factory=dict)

    def start_superlink(self, simulated: bool = False) -> None:
        """Start the server side and wait until it answers."""
        words = ["--host", "127.0.0.1", "--port", str(self.port)]
        words.append("--simulation" if simulated else "--enable-supernode-auth")
        words += ["--disable-runtime-dependency-installation", "--database", str(self.home / "state.db")]
        words += [f"--ssl-{part}={self.home / file}" for part, file in CERTIFICATES.items()]
        self.superlink = self._start("flower-superlink", words, "superlink.log")
        deadline = time.monotonic() + WAIT
        while not _answers(self.port):
            if self.superlink.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"the SuperLink did not start: {(self.home / 'superlink.log').read_text()[-500:]}")
            time.sleep(0.2)

    def start_node(self, partition: int, nodes: int) -> None:
        """Register a key for this node, and start it."""
        key = self.home / f"node{partition}"
        if not key.exists():
            _write_key(key)
            self.flwr("supernode", "register", f"{key}.pub", "loopback")
        words = ["--superlink", f"127.0.0.1:{self.wire.port}", "--root-certificates", str(self.home / "ca.pem")]
        words += ["--auth-supernode-private-key", str(key), "--port", str(free_port())]
        words += ["--node-config", f"partition-id={partition} num-partitions={nodes}"]
        self.nodes[partition] = self._start("flower-supernode", words, f"node{partition}.log")

    def flwr(self, *words: str, timeout: float = 120) -> str:
        """A `flwr` command against this deployment; what it printed. OSError if it failed, or took too long."""
        try:
            done = subprocess.run(
                [BIN / "flwr", *words], env=self._env(), capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"flwr {' '.join(words)} did not end within {timeout} s{self._ended()}") from None
        if done.returncode:
            raise OSError(f"flwr {' '.join(words)} failed: {(done.stdout + done.stderr)[-800:]}{self._ended()}")
        return done.stdout

    def run(self, app: Path, limit: float = 300, **settings) -> str:
        """Run an app to its end, `limit` seconds at most; its log. settings: of its run configuration, with _ for -."""
        chosen = " ".join(f"{key.replace('_', '-')}={_toml(value)}" for key, value in settings.items())
        return self.flwr("run", str(app), "loopback", "--stream", "--run-config", chosen, timeout=limit)

    def kill(self, process: subprocess.Popen) -> None:
        """End a process and all that it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _ended(self) -> str:
        """Which nodes are not there any more, each with the end of its log."""
        ended = [partition for partition, process in self.nodes.items() if process.poll() is not None]
        logs = [(self.home / f"node{partition}.log").read_text()[-300:] for partition in ended]
        return "".join(f"; SuperNode {partition} has ended: {log}" for partition, log in zip(ended, logs))

    def _start(self, program: str, words: list[str], log: str) -> subprocess.Popen:
        with (self.home / log).open("a") as file:
            return subprocess.Popen(
                [BIN / program, *words], env=self._env(), stdout=file, stderr=file, start_new_session=True
            )

    def _env(self) -> dict[str, str]:
        path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"  # Flower's programs start each other by name
        return {**os.environ, "PATH": path, "FLWR_HOME": str(self.home / "flwr"), "FLWR_TELEMETRY_ENABLED": "0"}


@contextmanager
def deployment(home: Path, nodes: int, simulated: bool = False) -> Iterator[Deployment]:
    """A SuperLink and so many SuperNodes, all ended on the way out. simulated: no processes for nodes, but Flower's
    simulation engine behind the SuperLink."""
    (home / "flwr").mkdir(parents=True)
    _write_certificates(home.resolve())
    port = free_port()
    with relay(port) as wire:
        running = Deployment(home.resolve(), port, wire)
        (home / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\naddress = "127.0.0.1:{port}"\n'
            f'root-certificates = "{running.home / "ca.pem"}"\n'
            + (f"options.num-supernodes = {nodes}\n" if simulated else "")
        )
        try:
            running.start_superlink(simulated)
            for partition in range(0 if simulated else nodes):
                running.start_node(partition, nodes)
            yield running
        finally:
            for process in [*running.nodes.values(), running.superlink]:
                if process:
                    running.kill(process)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


CERTIFICATES = {"ca-certfile": "ca.pem", "certfile": "server.pem", "keyfile": "server.key"}


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _toml(value) -> str:
    return json.dumps(str(value)) if isinstance(value, (str, Path)) else str(value).lower()


def _write_key(path: Path) -> None:
    """A key pair as `ssh-keygen -t ecdsa -b 384` makes it, which is what Flower reads."""
    key = ec.generate_private_key(ec.SECP384R1())
    ssh, none = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    _write_private(path, key.private_bytes(serialization.Encoding.PEM, ssh, none))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_name(f"{path.name}.pub").write_bytes(public + b"\n")


def _write_certificates(home: Path) -> None:
    """An authority of our own, and a certificate of it for 127.0.0.1, both for a day."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    home.joinpath("ca.pem").write_bytes(_certificate("cosquant-lite loopback CA", authority, authority, ca=True))
    home.joinpath("server.pem").write_bytes(_certificate("cosquant-lite loopback CA", authority, server, ca=False))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    _write_private(home / "server.key", server.private_bytes(serialization.Encoding.PEM, *plain))


def _write_private(path: Path, content: bytes) -> None:
    """A file that nobody else can read, not even while it is written."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def _certificate(issuer: str, issuer_key, key, ca: bool) -> bytes:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    start = datetime.now(UTC) - timedelta(hours=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name(issuer if ca else "localhost"))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)
