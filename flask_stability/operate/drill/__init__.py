"""The stability test that a team runs against its own app before it goes live.

Starts the app under gunicorn with its own configuration on a free port (or takes a running one), puts an open-loop
load on chosen paths, and in turn kills, freezes and retires workers, sends a storm of bad requests, reloads and, if
allowed, drops the database's connections; then holds what was measured against targets.
``python -m flask_stability.operate.drill app:app`` or ``flask stability drill app:app``.

With ``--compare`` the same is done to the app without the extension (`without`), and both are shown (`compare`).

`service` is what is under test, `faults` what is done to it, `run` when, `report` what is made of it, `show` how a
person sees it, `command` the command.
"""
