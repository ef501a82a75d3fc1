"""The address of a MySQL or MariaDB server, as SQLAlchemy's and mysqlclient's users write it.

``mysql://user:password@host:port/database?ssl_mode=VERIFY_IDENTITY&ssl_ca=/etc/ssl/db.pem``. Read by hand rather than
by `urllib`, which cuts a password at ``#``, ``/`` or ``?`` and takes the rest for something else. What can be read in
two ways is refused. No error shows any part of the address but the names of its options: a slip may put the password
anywhere.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, unquote

SCHEMES = ("mysql", "mariadb", "mysql+mysqldb", "mariadb+mysqldb", "mysql+pymysql", "mariadb+pymysql")
#: What is wrong with the driver of another scheme.
OTHER_DRIVER = "the drivers are mysqlclient, as in mysql://, and PyMySQL, as in mysql+pymysql://"
#: What `localhost` with a port means: the client library takes that name for its default socket, port or not. Where
#: the certificate has to name it, capitals keep the library from that.
LOOPBACK = "127.0.0.1"
SSL_MODES = ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")

_EXPECTED = "give mysql://user:password@host:port/database, optionally with ?option=value&…"
_ENCODE = "percent-encode it: %23 for #, %25 for %, %2F for /, %3F for ?, %40 for @"
_FULL_WIDTH = re.compile("[：／＠？＃％＝＆。]")
_SSL_FILES = ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_key")
_TEXTS = ("unix_socket", "charset", "collation", "init_command", "sql_mode", "auth_plugin", "server_public_key_path",
          "read_default_file", "read_default_group")
_SWITCHES = ("local_infile", "compress")
_NOT_IN_PYMYSQL = ("auth_plugin", "compress")
_ELSEWHERE = {
    "connect_timeout": "set STABILITY_DB_CONNECT_TIMEOUT", "autocommit": "set STABILITY_DB_AUTOCOMMIT",
    "read_timeout": "set STABILITY_DB_QUERY_TIMEOUT", "write_timeout": "set STABILITY_DB_QUERY_TIMEOUT",
    "user": "write it before the @", "password": "write it before the @", "passwd": "write it before the @",
    "host": "write it after the @", "port": "write it after the host", "database": "write it after the slash",
    "multi_statements": "leave it out: more than one statement in a call defeats every rule of the pool",
    "client_flag": "leave it out: it would switch on what the pool relies on to be off",
    "ssl_check_hostname": "write ssl_mode=VERIFY_IDENTITY", "ssl_disabled": "write ssl_mode=DISABLED",
    "usessl": "write ssl_mode=REQUIRED", "sslmode": "write ssl_mode", "tls": "write ssl_mode=REQUIRED"}
OPTIONS = ("ssl", "ssl_mode", *_SSL_FILES, "ssl_cipher", "ssl_verify_cert", "ssl_verify_identity", "use_unicode",
           *_TEXTS, *_SWITCHES)


@dataclass(frozen=True)
class DatabaseURL:
    """A MySQL or MariaDB address, decoded.

    :ivar host: "" if a socket's path is given instead.
    :ivar port: None where the address has none.
    :ivar ssl_mode: one of `SSL_MODES`, "" where nothing is said of TLS.
    :ivar ssl: files and ciphers, under mysqlclient's names (``ca``, ``cert``, ``key``, ``capath``, ``cipher``).
    :ivar options: further arguments of mysqlclient's ``connect``.
    :ivar init_command: a statement for each new session, "" for none.
    :ivar driver: "mysqlclient" or "pymysql".
    """

    host: str
    port: int | None
    user: str
    password: str = field(repr=False)
    name: str
    ssl_mode: str = ""
    ssl: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    init_command: str = ""
    driver: str = "mysqlclient"

    @classmethod
    def parse(cls, url: str) -> DatabaseURL:
        """Read an address.

        :raises ValueError: saying what is wrong and what to write, without any part of the address but the names of
            options.
        """
        scheme, found, body = url.partition("://")
        if not found or scheme.lower() not in SCHEMES:
            other = scheme.lower().startswith(("mysql+", "mariadb+"))
            raise ValueError(_EXPECTED + (f" ({OTHER_DRIVER})" if other else ""))
        wide = _FULL_WIDTH.search(url)
        if wide:
            raise ValueError(f"{_EXPECTED}; it contains a full-width character (U+{ord(wide[0]):04X}): write it as "
                             "ASCII, or percent-encode it if it belongs to the password")
        if "#" in body:
            raise ValueError(f"a # would end the address: if it belongs to the password, {_ENCODE}")
        if any(ord(char) <= 32 or ord(char) == 127 for char in body):
            raise ValueError("a space or control character: percent-encode it, as %20 for a space")
        if re.search(r"%(?![0-9A-Fa-f]{2})", body):
            raise ValueError(f"a % that begins no percent-encoding: if it belongs to the password, {_ENCODE}")
        main, _, query = body.partition("?")
        if "@" in query:
            raise ValueError("a ? before an @: if it belongs to the password, " + _ENCODE
                             + "; if it begins the options, write %40 for the @")
        login, at, place = main.rpartition("@")
        if "/" in login[login.find("@"):] and "@" in login:
            raise ValueError(f"more than one @ and a / between them can be read in two ways: {_ENCODE}")
        user, _, password = login.partition(":")
        if not at and ":" not in place and place.count("/") > 1:
            raise ValueError(_EXPECTED)
        address = cls._assembled(user, password, place, dict(_pairs(query)))
        if not scheme.lower().endswith("+pymysql"):
            return address
        for name in _NOT_IN_PYMYSQL:
            if address.options.get(name):
                raise ValueError(f"option {name} is not known to PyMySQL: leave it out, or use mysqlclient (mysql://)")
        return replace(address, driver="pymysql")

    @classmethod
    def _assembled(cls, user: str, password: str, place: str, given: dict[str, str]) -> DatabaseURL:
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]*)(?::(\d{1,5}))?/([^/]+)/?", place)
        if match is None or (match[2] and not 0 < int(match[2]) < 65536):
            raise ValueError(f"{_EXPECTED}; special characters in user or password percent-encoded")
        host = match[1].strip("[]")
        ssl_mode, ssl = _tls(given)
        options: dict[str, Any] = {name: given[name] for name in _TEXTS if name in given}
        options.update({name: _switch(name, given[name]) for name in _SWITCHES if name in given})
        init_command = str(options.pop("init_command", ""))
        if not host and "unix_socket" not in options:
            raise ValueError(_EXPECTED + ", or unix_socket=/path as an option")
        port = int(match[2]) if match[2] else None
        return cls(host, port, _decoded(user), _decoded(password), _decoded(match[3]), ssl_mode, ssl, options,
                   init_command)

    def check_files(self) -> None:
        """Check that the TLS files can be read.

        :raises ValueError: naming option and file.
        """
        for name in ("ca", "cert", "key", "capath"):
            path = self.ssl.get(name)
            if path and not os.access(path, os.R_OK):
                raise ValueError(f"ssl_{name}: {path} does not exist or cannot be read by this user: "
                                 "correct the path or its permissions")

    def arguments(self, **login: str) -> dict[str, Any]:
        """Return the arguments for mysqlclient's ``connect``.

        :param login: user and password, if they differ from the address's.
        """
        found: dict[str, Any] = {"user": self.user, "password": self.password, **login, "database": self.name,
                                 "charset": "utf8mb4", "local_infile": 0, **self.options}
        if "unix_socket" not in found:
            host = self.host
            if host == "localhost" and self.port is not None:
                host = "LOCALHOST" if self.ssl_mode.startswith("VERIFY") else LOOPBACK
            found.update(host=host, port=self.port or 3306)
        if self.ssl_mode:
            found["ssl_mode"] = self.ssl_mode
        if self.ssl:
            found["ssl"] = dict(self.ssl)
        return found

    @property
    def secure(self) -> bool:
        """Return whether the address requires an encrypted link."""
        return self.ssl_mode in SSL_MODES[2:]

    def describe(self) -> str:
        """Return the address without credentials."""
        if "unix_socket" in self.options:
            return f"{self.options['unix_socket']}/{self.name}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port or 3306}/{self.name}"


def _pairs(query: str) -> list[tuple[str, str]]:
    """Return the options with underscores for dashes.

    :raises ValueError: if one is unknown or appears twice.
    """
    try:
        pairs = [(name.replace("-", "_").lower(), value) for name, value in
                 parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")] if query else []
    except ValueError:
        raise ValueError("after the ? write option=value, several of them with & between") from None
    names = [name for name, _ in pairs]
    for name in names:
        if name not in OPTIONS:
            remedy = _ELSEWHERE.get(name) or _nearest(name)
            shown = name if re.fullmatch(r"[a-z0-9_]{1,40}", name) else "(not shown)"
            raise ValueError(f"option {shown} is unknown: {remedy}")
        if names.count(name) > 1:
            raise ValueError(f"option {name} stands there twice: leave one out")
    return pairs


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, OPTIONS, n=1)
    return f"did you mean {near[0]}?" if near else "known are " + ", ".join(OPTIONS)


def _tls(given: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return TLS mode and files; files without a mode imply one: a given CA certificate is used to verify.

    :raises ValueError: if options contradict each other.
    """
    ssl = {name.removeprefix("ssl_"): given[name] for name in (*_SSL_FILES, "ssl_cipher") if name in given}
    for name, path in ssl.items():
        if not path:
            raise ValueError(f"option ssl_{name} is empty: name a file, or leave it out")
    if ("cert" in ssl) != ("key" in ssl):
        raise ValueError("ssl_cert and ssl_key belong together: give both, or none")
    mode = given.get("ssl_mode", "").upper()
    if "ssl_mode" in given and mode not in SSL_MODES:
        raise ValueError(f"ssl_mode: give one of {', '.join(SSL_MODES)}")
    asked = ""
    if "ssl" in given:
        asked = "REQUIRED" if _switch("ssl", given["ssl"]) else "DISABLED"
    for name, meant in (("ssl_verify_cert", "VERIFY_CA"), ("ssl_verify_identity", "VERIFY_IDENTITY")):
        if name in given and _switch(name, given[name]):
            asked = meant
    if mode and asked and SSL_MODES.index(mode) < SSL_MODES.index(asked):
        raise ValueError(f"ssl_mode={mode} contradicts the other options of TLS: leave one of them out")
    implied = "VERIFY_CA" if "ca" in ssl or "capath" in ssl else "REQUIRED" if ssl else ""
    if not mode and asked != "DISABLED":
        asked = max(asked, implied, key=lambda name: SSL_MODES.index(name) if name else -1)
    mode = mode or asked
    if mode == "DISABLED" and ssl:
        raise ValueError("TLS is switched off and its files are named: leave one of them out")
    if _switch("use_unicode", given.get("use_unicode", "1")) != 1:
        raise ValueError("use_unicode=0: leave it out, text is text here")
    return mode, ssl


def _switch(name: str, value: str) -> int:
    if value.lower() in ("1", "true", "yes", "on"):
        return 1
    if value.lower() in ("0", "false", "no", "off"):
        return 0
    raise ValueError(f"{name}: give 1 or 0")


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("a percent-encoding that is no UTF-8: encode the characters' UTF-8 bytes") from None
