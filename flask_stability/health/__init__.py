"""Health: checks in the background, honest answers from the scoreboard, history, metrics, alerts.

Each worker writes its checks into the ``checks`` blob of its row, a JSON object by name::

    {"disk": {"status": "pass", "ok": true, "at_ns": 0, "took_ms": 1.2, "failures": 0, "critical": false,
              "shared": true, "interval": 30.0, "timeout": 2.0, "error": null, "detail": {}}}

Shared checks are the leader's (`Scoreboard.leader`); a reader takes the newest result of any row.
"""
