"""What a statement leaves behind in a session, so that only what is needed is cleared when a connection comes back."""

from __future__ import annotations

import re

#: Nothing to clear: what ran in autocommit is done.
CLEAN = 0
#: A transaction may be open: roll back.
TRANSACTION = 1
#: The session itself may be changed (variables, locks, temporary tables): reset it.
SESSION = 2

# what is quoted stays; comments become spaces, but for those that the server executes
_COMMENTS = re.compile(r"""('(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`[^`]*`|/\*M?!)"""
                       r"""|/\*.*?(?:\*/|\Z)|--(?=\s|\Z)[^\n]*|\#[^\n]*""", re.DOTALL)
_LEAD = r"[\s(]*"
_PLAIN = re.compile(_LEAD + r"(?:select|insert|update|delete|replace|show|with|explain|values)\b", re.IGNORECASE)
_MARKS = re.compile(r":=|\binto\s+@|/\*M?!|\bget_lock\b|\blast_insert_id`?\s*\(\s*[^)\s]|\bservice_get_\w+_locks\b"
                    r"|\bversion_tokens_lock_\w+|\bload_extension\b", re.IGNORECASE)
# the whole of what begins a transaction: `BEGIN NOT ATOMIC` begins a program
_CONTROL = re.compile(_LEAD + r"(?:(?:begin(?:\s+(?:work|deferred|immediate|exclusive))?(?:\s+transaction)?"
                             r"|start\s+transaction(?:[\s\w,]*))\s*;?\s*\Z"
                             r"|(?:commit|rollback|savepoint|release\s+savepoint|end|alter|drop|truncate"
                             r"|create\s+(?:or\s+replace\s+)?(?!temp|or\b)\w+)\b)", re.IGNORECASE)
# what leaves an open transaction open, beside what is plain
_WITHIN = re.compile(_LEAD + r"(?:(?:savepoint|release\s+savepoint|rollback\s+(?:work\s+)?to|use|do|describe|desc"
                             r"|pragma|load\s+data|(?:create|drop)\s+temporary)\b"
                             r"|set\s+(?!(?:statement|password|default)\b)(?!.*\bautocommit\b))",
                     re.IGNORECASE | re.DOTALL)
_known: dict[object, int] = {}


def effect_of(sql: object) -> int:
    """CLEAN, TRANSACTION or SESSION; what is not understood counts as SESSION."""
    try:
        return _known[sql]
    except (KeyError, TypeError):
        pass
    if not isinstance(sql, str):
        return SESSION
    if len(_known) >= 2000:
        _known.clear()
    effect = _effect(sql)
    if len(sql) < 2000:
        _known[sql] = effect
    return effect


def _effect(sql: str) -> int:
    bare = _bare(sql)
    if _MARKS.search(sql) or (bare is not sql and _MARKS.search(bare)):
        return SESSION
    return CLEAN if _PLAIN.match(bare) else TRANSACTION if _CONTROL.match(bare) else SESSION


def _bare(sql: str) -> str:
    """A statement without its comments; those that the server executes stay."""
    if "/*" not in sql and "--" not in sql and "#" not in sql:
        return sql
    return _COMMENTS.sub(lambda match: match[1] or " ", sql)


def stays_within(sql: object) -> bool:
    """Whether a statement cannot end the transaction that it runs in; many others commit it on the way."""
    if not isinstance(sql, str):
        return False
    sql = _bare(sql)
    return "/*" not in sql and bool(_PLAIN.match(sql) or _WITHIN.match(sql))
