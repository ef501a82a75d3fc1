"""Classify the effects of a statement on its session, so that check-in clears only what is needed."""

from __future__ import annotations

import re

#: Nothing to clear: a statement in autocommit is complete.
CLEAN = 0
#: A transaction may be open: roll back.
TRANSACTION = 1
#: The session itself may have changed (variables, locks, temporary tables): reset it.
SESSION = 2

# Ordinary comments may stand between words; the server executes the text in /*! and /*M!. The groups are possessive or
# atomic (`*+`, `(?>…)`): with backtracking, a text of n comments could be divided in 2 ** n ways, each of them tried.
_GAP = r"(?:\s|(?>/\*(?!!|M!).*?\*/)|--\s[^\n]*\n|#[^\n]*\n)"
_LEAD = rf"(?:{_GAP}|\()*+"
_PLAIN = re.compile(_LEAD + r"(?:select|insert|update|delete|replace|show|with|explain|values)\b",
                    re.IGNORECASE | re.DOTALL)
_MARKS = re.compile(rf":=|\binto{_GAP}++@|/\*M?!|\bget_lock\b|\blast_insert_id`?{_GAP}*+\({_GAP}*+[^)]"
                    r"|\bservice_get_\w+_locks\b|\bversion_tokens_lock_\w+|\bload_extension\b",
                    re.IGNORECASE | re.DOTALL)
# match the whole statement that begins a transaction: `BEGIN NOT ATOMIC` begins a program
_CONTROL = re.compile(_LEAD + rf"(?:(?:begin(?:{_GAP}++(?:work|deferred|immediate|exclusive))?(?:{_GAP}++transaction)?"
                             rf"|start{_GAP}++transaction(?:{_GAP}|[\w,])*+){_GAP}*+;?{_GAP}*+\Z"
                             rf"|(?:commit|rollback|savepoint|release{_GAP}++savepoint|end|alter|drop|truncate"
                             rf"|create{_GAP}++(?:or{_GAP}++replace{_GAP}++)?(?!temp|or\b)\w+)\b)",
                      re.IGNORECASE | re.DOTALL)
# further statements, besides the plain ones, that leave an open transaction open
_WITHIN = re.compile(_LEAD + r"(?:(?:savepoint|release\s+savepoint|rollback\s+(?:work\s+)?to|use|do|describe|desc"
                             r"|pragma|load\s+data|(?:create|drop)\s+temporary)\b"
                             r"|set\s+(?!(?:statement|password|default)\b)(?!.*\bautocommit\b))",
                     re.IGNORECASE | re.DOTALL)


class _Known(dict[object, int]):
    """Effects by statement, computed at first use; a dict look-up costs a fraction of a function call."""

    def __missing__(self, sql: object) -> int:
        if not isinstance(sql, str):
            return SESSION
        if len(self) >= 2000:
            self.clear()
        effect = _effect(sql)
        if len(sql) < 2000:
            self[sql] = effect
        return effect


#: CLEAN, TRANSACTION or SESSION by statement, for hashable statements; see `effect_of`.
known = _Known()


def effect_of(sql: object) -> int:
    """Return CLEAN, TRANSACTION or SESSION; an unknown statement counts as SESSION."""
    try:
        return known[sql]
    except TypeError:
        return SESSION


def _effect(sql: str) -> int:
    if _MARKS.search(sql):
        return SESSION
    return CLEAN if _PLAIN.match(sql) else TRANSACTION if _CONTROL.match(sql) else SESSION


def stays_within(sql: object) -> bool:
    """Return whether a statement surely leaves its transaction open; many other statements commit it implicitly."""
    return isinstance(sql, str) and bool(_PLAIN.match(sql) or _WITHIN.match(sql))
