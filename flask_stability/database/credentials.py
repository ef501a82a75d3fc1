"""Provide address and login for each new connection, since passwords change while a service runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .. import logs
from ..config import Settings
from ..config_types import secret_file
from ..dburl import DatabaseURL
from ..exceptions import DatabaseUnavailable

#: Returns the password, or user and password (a pair, or a mapping with these keys).
Source = Callable[[], "str | tuple[str, str] | Mapping[str, str]"]


class Credentials:
    """The address for the next connect: from the settings, overruled by the files that they name, and by a callable.

    If a source fails, for example during a rotation, the latest address stays in force.

    :param source: the app's callable, for passwords that expire.
    :ivar latest: the latest address.
    """

    def __init__(self, settings: Settings, source: Source | None = None) -> None:
        self._settings, self._source = settings, source
        self.latest = DatabaseURL.parse(settings.db_url or "")
        self._failing = False
        self._known = source is None

    def __call__(self) -> DatabaseURL:
        """Read the credentials and return the address with them.

        :raises DatabaseUnavailable: if the app's source fails and has never succeeded.
        """
        try:
            self.latest = self._asked()
            self._failing, self._known = False, True
        except Exception as error:
            if not self._failing:
                self._failing = True
                logs.error("credentials_unreadable", level="WARNING", error=type(error).__name__,
                           remedy="the last ones are used: mend the file or the function that gives them")
            if not self._known:
                raise DatabaseUnavailable(f"no credentials for the database: {type(error).__name__}") from error
        return self.latest

    def _asked(self) -> DatabaseURL:
        settings, found = self._settings, self.latest
        if settings.db_url_file:
            found = DatabaseURL.parse(secret_file(settings.db_url_file))
        if settings.db_password_file:
            found = replace(found, password=secret_file(settings.db_password_file))
        return found if self._source is None else _login(found, self._source())


def _login(address: DatabaseURL, given: Any) -> DatabaseURL:
    """Return the address with this password, or with this user and password."""
    if isinstance(given, str):
        return replace(address, password=given)
    user, password = (given["user"], given["password"]) if isinstance(given, Mapping) else given
    if not isinstance(user, str) or not isinstance(password, str):
        raise TypeError("credentials: give a password, or user and password")
    return replace(address, user=user, password=password)
