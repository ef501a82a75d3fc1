"""How long certificates are still good, in files and on an address."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flask_stability.health.certificates import Certificates, end_of, ends
from flask_stability.health.checks import CheckWarning

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")


def _certificate(folder: Path, days: int, kind: str = "rsa:2048") -> tuple[Path, Path]:
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", *kind.split(" "), "-nodes", "-keyout", key, "-out", cert,
                    "-subj", "/CN=localhost/O=Größe", "-utf8", "-days", str(days)], check=True, capture_output=True)
    return key, cert


@pytest.mark.parametrize("days", [10, 20_000])  # after 2049 the date has another form
def test_the_end_is_what_openssl_says(tmp_path: Path, days: int) -> None:
    """Of both forms of dates."""
    _, cert = _certificate(tmp_path, days, "ec -pkeyopt ec_paramgen_curve:prime256v1")
    said = subprocess.run(["openssl", "x509", "-in", cert, "-noout", "-enddate"], check=True, capture_output=True,
                          text=True).stdout.strip().partition("=")[2]
    expected = datetime.strptime(said, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp()
    assert ends(str(cert), 5.0) == [expected]


def test_a_certificate_warns_21_days_before_its_end(tmp_path: Path) -> None:
    """The first of a chain's to end; what cannot be read is told too, and the others are looked at all the same."""
    (tmp_path / "long").mkdir()
    _, short = _certificate(tmp_path, 20)
    _, long = _certificate(tmp_path / "long", 40)
    assert Certificates((str(long),), 2.0)()[str(long)]["days_left"] == pytest.approx(40, abs=0.1)
    chain = tmp_path / "chain.pem"
    chain.write_text(long.read_text() + short.read_text())
    with pytest.raises(CheckWarning, match="ends in 20 days: renew it") as caught:
        Certificates((str(chain), str(tmp_path / "none.pem")), 2.0)()
    assert "none.pem cannot be read (No such file" in str(caught.value)
    assert set(caught.value.details) == {str(chain), str(tmp_path / "none.pem")}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[int]:
    """The port of a TLS server whose certificate ends tomorrow."""
    key, cert = _certificate(tmp_path, 1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve() -> None:
            try:
                with context.wrap_socket(listener.accept()[0], server_side=True) as link:
                    link.recv(1)
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(30)


def test_one_that_is_served_on_an_address_is_looked_at(served: int) -> None:
    """Whoever signed it."""
    with pytest.raises(CheckWarning, match=r"127\.0\.0\.1:\d+ ends in 1 days"):
        Certificates((f"127.0.0.1:{served}",), 30.0)()


def test_an_address_that_does_not_answer_is_given_up_in_time() -> None:
    """Whatever it accepts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun = time.monotonic()
        with pytest.raises(CheckWarning, match="cannot be read"):
            Certificates((f"127.0.0.1:{listener.getsockname()[1]}",), 0.5)()
        assert time.monotonic() - begun < 30


@pytest.mark.parametrize("data", [b"", b"\x30", b"\x30\x82", b"\x30\x03\x02\x01\x01", b"\x30\x84\xff\xff\xff\xff",
                                  bytes(200)])
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    """Never another error."""
    with pytest.raises(ValueError):
        end_of(data)
