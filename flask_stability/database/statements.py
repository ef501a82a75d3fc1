"""What a statement leaves behind in a session, so that only what is needed is cleared when a connection comes back."""

from __future__ import annotations

import re

#: Nothing to clear: what ran in autocommit is done.
CLEAN = 0
#: A transaction may be open: roll back.
TRANSACTION = 1
#: The session itself may be changed (variables, locks, temporary tables): reset it.
SESSION = 2

_PLAIN = re.compile(r"\s*\(?\s*(?:select|insert|update|delete|replace|show|with|explain|values)\b", re.IGNORECASE)
_MARKS = re.compile(r":=|\binto\s+@|\b(?:get_lock|last_insert_id\s*\(\s*[^)\s])\b", re.IGNORECASE)
_CONTROL = re.compile(r"\s*(?:begin|start|commit|rollback|savepoint|release\s+savepoint|end)\b", re.IGNORECASE)
_known: dict[str, int] = {}


def effect_of(sql: object) -> int:
    """CLEAN, TRANSACTION or SESSION; what is not understood counts as SESSION."""
    if not isinstance(sql, str):
        return SESSION
    effect = _known.get(sql)
    if effect is None:
        if len(_known) >= 2000:
            _known.clear()
        effect = _known[sql] = _effect(sql)
    return effect


def _effect(sql: str) -> int:
    if _PLAIN.match(sql):
        return SESSION if _MARKS.search(sql) else CLEAN
    return TRANSACTION if _CONTROL.match(sql) else SESSION
