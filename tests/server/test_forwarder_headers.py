"""No client says which path a request is for: gunicorn's forwarder_headers are none unless somebody names some."""

from __future__ import annotations

from pathlib import Path

import pytest
from gunicorn.app.wsgiapp import WSGIApplication

CONFIG = "from flask_stability.server import install\n{own}\ninstall(globals())\n"


@pytest.mark.parametrize(("own", "arguments", "found"), [
    ("", [], []), ("forwarder_headers = 'SCRIPT_NAME'", [], ["SCRIPT_NAME"]),
    ("", ["--forwarder-headers", "SCRIPT_NAME,PATH_INFO"], ["SCRIPT_NAME", "PATH_INFO"])])
def test_they_are_none_unless_somebody_names_them(own: str, arguments: list[str], found: list[str], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """In the configuration or on the command line; whose forwarded headers are believed is untouched."""
    path = tmp_path / "gunicorn.conf.py"
    path.write_text(CONFIG.format(own=own))
    monkeypatch.setattr("sys.argv", ["gunicorn", "-c", str(path), *arguments, "app:app"])
    cfg = WSGIApplication("%(prog)s").cfg
    assert cfg.forwarder_headers == found
    assert "127.0.0.1" in cfg.forwarded_allow_ips
