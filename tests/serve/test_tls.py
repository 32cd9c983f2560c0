"""With a certificate of its own the server is reached over TLS, and over nothing else."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from websockets.asyncio.client import connect

from echat.serve.settings import ServeConfig


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine that nobody signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run(["openssl", "req", *kind, *name, *files], check=True, capture_output=True)
    return certificate, key


def test_pages_and_sessions_are_reached_over_tls_alone(
    serving: Callable[..., Any], certificate: tuple[Path, Path]
) -> None:
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    with serving(tls_certificate=certificate[0], tls_key=certificate[1]) as live:
        where = f"127.0.0.1:{live.port}"
        assert httpx.get(f"https://{where}/healthz", verify=trust).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https://{where}/healthz")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://{where}/healthz")

        async def first_event() -> dict[str, Any]:
            async with connect(f"wss://{where}/v1/realtime", ssl=trust) as connection:
                event: dict[str, Any] = json.loads(await connection.recv())
                return event

        assert asyncio.run(first_event())["type"] == "session.created"


def test_half_of_a_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="expected certificate and key"):
        ServeConfig(tls_certificate=tmp_path / "cert.pem")
