"""Health: checks in the background, honest answers from the scoreboard, history, metrics, alerts.

Each worker writes its `results.CheckResult` of each check into the ``checks`` blob of its row, as JSON by name::

    {"disk": {"status": "pass", "settled": "pass", "down": false, "ok": true, "at_ns": 0, "took_ms": 1.2,
              "failures": 0, "critical": false, "shared": true, "interval": 30.0, "timeout": 2.0,
              "error": null, "note": null, "cause": null, "detail": {}, "state": [false, 0, 1],
              "trouble": [false, 0, 1], "age_s": 0.0}}

``status`` is what is shown: it warns from the first failure on. ``settled`` changes only after as many results in a
row as the thresholds ask for; alerts follow it. ``down``: failed so often, critical or not.
Shared checks are the leader's (`Scoreboard.leader`), which also writes them to the master's part of the board once the
first round is done: the next leader goes on from there, and a reader takes the newest result of any.
"""
