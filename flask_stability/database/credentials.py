"""Where the database is and who we are there, asked for each new connection: passwords change while a service runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .. import logs
from ..config import Settings
from ..config_types import secret_file
from ..dburl import DatabaseURL
from ..exceptions import DatabaseUnavailable

#: Gives the password, or user and password (a pair, or a mapping with these keys).
Source = Callable[[], "str | tuple[str, str] | Mapping[str, str]"]


class Credentials:
    """The address for the next connect: settings, over them the files that these name, over all a callable.

    A source that fails, as in the middle of a rotation, leaves what was read last.

    :param source: an app's own, for passwords that expire.
    :ivar latest: what was given out last.
    """

    def __init__(self, settings: Settings, source: Source | None = None) -> None:
        self._settings, self._source = settings, source
        self.latest = DatabaseURL.parse(settings.db_url or "")
        self._failing = False
        self._known = source is None

    def __call__(self) -> DatabaseURL:
        """Ask for them.

        :raises DatabaseUnavailable: if an app's own source failed and has never given any.
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
    """With this password, or with this user and password."""
    if isinstance(given, str):
        return replace(address, password=given)
    user, password = (given["user"], given["password"]) if isinstance(given, Mapping) else given
    if not isinstance(user, str) or not isinstance(password, str):
        raise TypeError("credentials: give a password, or user and password")
    return replace(address, user=user, password=password)
