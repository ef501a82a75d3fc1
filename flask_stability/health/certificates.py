"""How long certificates are still valid: those in PEM files, and those served on an address.

Only the end of validity counts. Whether to trust a certificate is the clients' decision, and a private authority's is
as good as any.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from .checks_base import CheckWarning

DAYS = 21.0  #: days before its end from which a certificate warns
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----")
_MOST = 1 << 20  #: bytes of a file to read


class Certificates:
    """The check.

    :param names: paths of PEM files, or ``host:port``.
    :param timeout: seconds for all of them.
    """

    def __init__(self, names: tuple[str, ...], timeout: float) -> None:
        self._names, self._timeout = names, 0.8 * timeout

    def __call__(self) -> dict[str, Any]:
        """Return the days that each certificate remains valid.

        :raises CheckWarning: if one ends within `DAYS`, or cannot be read.
        """
        details: dict[str, Any] = {}
        troubles = []
        deadline = time.monotonic() + self._timeout
        for name in self._names:
            try:
                end = min(ends(name, max(0.1, deadline - time.monotonic())))
            except (OSError, ValueError) as error:
                details[name] = {"error": type(error).__name__}
                why = getattr(error, "strerror", None) or error
                troubles.append(f"the certificate of {name} cannot be read ({why})")
                continue
            days = (end - time.time()) / 86400
            details[name] = {"days_left": round(days, 1),
                             "ends": datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
            if days <= 0:
                troubles.append(f"the certificate of {name} has expired")
            elif days < DAYS:
                troubles.append(f"the certificate of {name} ends in {days:.0f} days: renew it")
        if troubles:
            raise CheckWarning("; ".join(troubles), **details)
        return details


def ends(name: str, timeout: float) -> list[float]:
    """Return when each certificate of a file (the chain's too), or the one that an address serves, ends.

    :param timeout: seconds for an address to answer, each time it is waited for.
    :returns: seconds since the epoch, at least one.
    :raises OSError: if the file cannot be read, or no server answers.
    :raises ValueError: if there is no certificate.
    """
    host, colon, port = name.rpartition(":")
    if colon and port.isdecimal() and "/" not in name:
        return [end_of(_served(host.strip("[]"), int(port), timeout))]
    with open(name, "rb") as file:
        found = _PEM.findall(file.read(_MOST))
    if not found:
        raise ValueError("no PEM certificate in it")
    return [end_of(ssl.PEM_cert_to_DER_cert(one.decode("ascii"))) for one in found]


def _served(host: str, port: int, timeout: float) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (socket.create_connection((host, port), timeout) as link,
          context.wrap_socket(link, server_hostname=host) as tls):
        certificate = tls.getpeercert(binary_form=True)
    if certificate is None:
        raise ValueError("it served none")
    return certificate


def end_of(certificate: bytes) -> float:
    """Return notAfter of an X.509 certificate in DER (RFC 5280, section 4.1), seconds since the epoch.

    The standard library decodes only certificates that it has verified.

    :raises ValueError: if it is not one.
    """
    _, outer = next(_parts(certificate), (0, b""))
    _, body = next(_parts(outer), (0, b""))
    # version (optional), serialNumber, signature, issuer, validity
    fields = [content for tag, content in _parts(body) if tag != 0xA0]
    validity = list(_parts(fields[3])) if len(fields) > 3 else []
    if len(validity) != 2:
        raise ValueError("no certificate")
    tag, text = validity[1]
    digits = text.decode("ascii")
    if tag == 0x17:  # UTCTime: two digits of the year, 50 and above are the last century's
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each DER element.

    :raises ValueError: if the data is not DER.
    """
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise ValueError("no certificate")
        tag, length, start = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            if not 0 < size <= 4:
                raise ValueError("no certificate")
            length, start = int.from_bytes(data[start:start + size], "big"), start + size
        at = start + length
        if at > len(data):
            raise ValueError("no certificate")
        yield tag, data[start:at]
