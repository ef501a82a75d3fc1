"""The admin listener's Unix socket among other users."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flask_stability.config import Settings
from flask_stability.health.admin import AdminListener


def test_the_socket_is_closed_to_others_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the umask; and no mode is changed by a name, which could be another file's by then."""
    seen: list[int] = []
    bind = socket.socket.bind

    def look(self: socket.socket, address: Any) -> None:
        bind(self, address)
        seen.append(stat.S_IMODE(os.lstat(address).st_mode))

    monkeypatch.setattr(socket.socket, "bind", look)
    path = tmp_path / "admin.sock"
    listener = AdminListener(replace(Settings(), admin_bind=f"unix:{path}"))
    umask = os.umask(0)
    try:
        listener.keep(True, 0.0)
    finally:
        os.umask(umask)
        listener.close()
    assert seen == [0o600]
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
