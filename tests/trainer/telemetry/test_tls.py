"""The metrics endpoint behind certificates: who shows none gets nothing."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from trainer.telemetry import prometheus
from trainer.telemetry.metrics import Metrics
from trainer.telemetry.prometheus import Exporter, RunRegistry, TelemetryConfig

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl, which makes the certificates, is missing")

ANSWER = 'earlybird_iteration{rank="0",run="run"} 7.0'


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME.pem and NAME.key of an authority, of a server and of a client that it vouches for, and of a stranger."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("authority", "stranger"):
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2),
            *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem", "-subj", f"/CN={name}"),
        )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr", "-subj", f"/CN={name}"),
        )
        _openssl(
            *("x509", "-req", "-in", folder / f"{name}.csr", "-CA", folder / "authority.pem", "-days", 2),
            *("-CAkey", folder / "authority.key", "-CAcreateserial", "-extfile", folder / "names"),
            *("-out", folder / f"{name}.pem"),
        )
    return folder


def _scrape(port: int, folder: Path, client: str = "") -> str:
    context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    if client:
        context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=context, timeout=10) as answer:
        return str(answer.read().decode())


def _exporter(**settings: Any) -> Exporter:
    metrics = Metrics()
    metrics.set("iteration", 7)
    return Exporter(RunRegistry(metrics, "run", 0), 0, TelemetryConfig(**settings))


def test_only_known_clients_are_answered(certificates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"tls_certificate": str(certificates / "server.pem"), "tls_key": str(certificates / "server.key")}
    with closing(_exporter(**own)) as open_to_all:
        assert ANSWER in _scrape(open_to_all.port, certificates)
        with pytest.raises(OSError):  # noqa: PT011 - plain HTTP finds no answer, of whatever kind
            urllib.request.urlopen(f"http://127.0.0.1:{open_to_all.port}/metrics", timeout=10)
    with closing(_exporter(**own, tls_client_ca=str(certificates / "authority.pem"))) as asking:
        assert ANSWER in _scrape(asking.port, certificates, "client")
        for stranger in ("", "stranger"):
            with pytest.raises((URLError, OSError)):
                _scrape(asking.port, certificates, stranger)
        assert ANSWER in _scrape(asking.port, certificates, "client"), "the strangers did not end it"
    assert capsys.readouterr().err == "", "nor fill the job's log"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_who_says_nothing_holds_nobody_up(certificates: Path, monkeypatch: pytest.MonkeyPatch, tls: bool) -> None:
    """Connections that stay silent, with and without certificates: others are answered, closing does not wait, and in
    the end they are hung up on."""
    monkeypatch.setattr(prometheus, "PATIENCE", 1.0)
    own = {"tls_certificate": str(certificates / "server.pem"), "tls_key": str(certificates / "server.key")}
    with closing(_exporter(**(own if tls else {}))) as exporter:
        silent = [socket.create_connection(("127.0.0.1", exporter.port), timeout=60) for _ in range(3)]
        if tls:
            assert ANSWER in _scrape(exporter.port, certificates)
        else:
            assert ANSWER in urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}", timeout=10).read().decode()
    for connection in silent:
        with closing(connection):
            assert connection.recv(1) == b""


def test_what_does_not_serve_is_refused(certificates: Path, tmp_path: Path) -> None:
    server, key = str(certificates / "server.pem"), str(certificates / "server.key")
    with pytest.raises(ValueError, match="set both, or neither"):
        TelemetryConfig(tls_certificate=server)
    with pytest.raises(ValueError, match="plain HTTP"):
        TelemetryConfig(tls_client_ca=server)
    with pytest.raises(ValueError, match=r"tls_certificate is .*nothing\.pem, which cannot be read"):
        _exporter(tls_certificate=str(tmp_path / "nothing.pem"), tls_key=key)
    with pytest.raises(ValueError, match="the key being the certificate's own"):
        _exporter(tls_certificate=server, tls_key=str(certificates / "client.key"))
