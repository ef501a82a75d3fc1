"""Find what contradicts itself in a configuration, or leaves the service unguarded. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...config_types import SHORTEST_TOKEN
from ...memory.policy import default_limit, limit_too_low
from ...server.timeouts import breaches
from ..finding import Finding
from ..inspect import Facts

MB = 1 << 20
LOOPBACK = ("127.", "::1", "localhost", "[::1]")


def settings(facts: Facts) -> Iterator[Finding]:
    """Report bad values, and names that are nearly right."""
    for problem in facts.problems:
        yield Finding("settings", "fail", problem)
    for name, nearest in facts.unknown.items():
        if nearest is not None:
            yield Finding("settings", "warn", f"{name} is no setting", f"did you mean {nearest}?")
    if not facts.problems:
        yield Finding("settings", "ok", "every value can be read")


def wiring(facts: Facts) -> Iterator[Finding]:
    """Check that hooks and extension are in place."""
    if facts.hooked:
        yield Finding("hooks", "ok", "our server hooks are in gunicorn's configuration")
    else:
        yield Finding("hooks", "fail", "gunicorn's configuration is without our hooks: no replacement, no deadlines, "
                      "no restart limit", "end it with `from flask_stability.server import install; "
                      "install(globals())`, or start gunicorn with -c python:flask_stability.server.conf and give "
                      "the doctor the same -c")
    if facts.app_error:
        yield Finding("app", "fail", f"it cannot be loaded: {facts.app_error}", "repair it: no worker would boot")
    elif facts.loaded and not facts.apps:
        yield Finding("app", "fail", "it does not use the extension: no /health, no answer for its errors",
                      "add StabilityExt(app), or stability.init_app(app) in its factory")
    elif facts.apps:
        yield Finding("app", "ok", ", ".join(app.name for app in facts.apps))


def workers(facts: Facts) -> Iterator[Finding]:
    """Check the kind and number of workers."""
    gunicorn, name = facts.gunicorn, facts.worker_class.rpartition(".")[2]
    if not facts.threaded and "gunicorn.workers.sync" not in facts.worker_modules:
        yield Finding("worker class", "warn", f"{name}: the guard (deadlines of requests, memory) is off there",
                      "use gthread or sync")
    elif facts.threaded:
        yield Finding("worker class", "ok", f"{name} with {gunicorn['threads']} threads")
    else:
        yield Finding("worker class", "ok", f"{name}: one request at a time; with gthread a slow database leaves "
                      "threads for requests that do not need it")
    few = gunicorn["workers"] < 2
    yield Finding("workers", "warn" if few else "ok", str(gunicorn["workers"]),
                  "give at least 2: with one, nothing answers from its death until the next has loaded" if few else "")
    most = gunicorn.get("worker_connections", 0)
    if facts.threaded and most > 3 * gunicorn["threads"]:
        yield Finding("worker_connections", "warn", f"{most}: a worker whose threads are stuck still accepts that "
                      "many requests, which wait with it", f"set worker_connections = {3 * gunicorn['threads']}, "
                      "three times the threads")
    if gunicorn.get("max_requests") and not gunicorn.get("max_requests_jitter"):
        yield Finding("max_requests", "warn", f"{gunicorn['max_requests']} without jitter: all workers leave together",
                      "set max_requests_jitter, or leave max_requests off: memory is watched anyway")


def switches(facts: Facts) -> Iterator[Finding]:
    """Report options that defeat supervision."""
    gunicorn = facts.gunicorn
    if gunicorn.get("preload_app"):
        yield Finding("preload_app", "warn", "HUP does not load new code",
                      "leave it off, or deploy by a restart behind a proxy")
    elif facts.settings.gc_freeze:
        yield Finding("gc_freeze", "warn", "STABILITY_GC_FREEZE does nothing without preload_app",
                      "set preload_app = True, or leave it out")
    if gunicorn.get("reload"):
        yield Finding("reload", "warn", "gunicorn restarts workers at every change of a file", "for development only")
    if gunicorn.get("daemon"):
        yield Finding("daemon", "warn", "nothing restarts the master",
                      "let systemd or a container run it in the foreground")
    if gunicorn.get("reuse_port"):
        yield Finding("reuse_port", "warn", "queued connections are lost at every replacement, so it is switched off "
                      "unless net.ipv4.tcp_migrate_req is 1", "leave reuse_port out")
    if facts.control_shared:
        yield Finding("control socket", "warn", f"{gunicorn['control_socket']} is the path of all services of this "
                      "user: a second one takes it from the first",
                      "set control_socket to a path of its own, or control_socket_disable = True")
    if facts.threaded and "h2" in (gunicorn.get("http_protocols") or ()):
        yield Finding("HTTP/2", "warn", f"an HTTP/2 connection holds a thread of its worker for as long as it is open, "
                      f"idle too: {gunicorn['threads']} such clients fill a worker",
                      "speak HTTP/2 at the proxy, and leave h2 out of http_protocols")
    if not gunicorn.get("timeout"):
        yield Finding("timeout", "warn", "0: a worker whose main loop hangs is never replaced by gunicorn",
                      "set timeout = 30")
    if any(app.debug for app in facts.apps):
        yield Finding("debug", "fail", "the app is in debug mode: errors show internals",
                      "unset FLASK_DEBUG and app.debug")


def timeouts(facts: Facts) -> Iterator[Finding]:
    """Check that inner timeouts end before outer ones."""
    graceful, found = float(facts.gunicorn["graceful_timeout"]), facts.app_settings
    lines = breaches(found, graceful=graceful, app=bool(facts.apps))
    for line in lines:
        what, _, remedy = line.rpartition("; ")
        yield Finding("timeouts", "warn", what, remedy)
    timeout, deadline = float(facts.gunicorn.get("timeout") or 0), facts.settings.request_timeout
    longest = max(app.longest for app in facts.apps) if facts.apps else 0.0
    if not facts.threaded and 0 < timeout < longest + 5 and longest > deadline:
        yield Finding("timeouts", "warn", f"timeout = {timeout:g} on sync workers ends a view that may take "
                      f"{longest:g} s", f"set timeout = {longest + 5:g}")
    elif not lines:
        yield Finding("timeouts", "ok", f"statement {found.db_query_timeout:g} s, request {deadline:g} s, leaving "
                      f"{graceful:g} s")
    if not deadline:
        yield Finding("request deadline", "warn", "STABILITY_REQUEST_TIMEOUT=0: a hung request holds its thread for "
                      "ever", "set it to what the slowest honest request needs")


def memory(facts: Facts, *, container: int | None, total: int) -> Iterator[Finding]:
    """Compare the memory that workers may take with what there is.

    :param container: the container's limit in bytes, None without one.
    :param total: the machine's memory, bytes.
    """
    workers = int(facts.gunicorn["workers"])
    given = facts.settings.memory_limit
    limit = given or default_limit(container, workers)
    room, whose = container or total, "the container" if container else "the machine"
    too_low = bool(limit and facts.resident and limit_too_low(limit, facts.resident))
    if not limit:
        yield Finding("memory limit", "ok", "none: growth, and scarcity on the machine, are what replaces a worker")
    elif given and limit * (workers + 1) > room:
        yield Finding("memory limit", "warn", f"{workers} workers and one replacement may take "
                      f"{limit * (workers + 1) // MB} MB, {whose} has {room // MB} MB",
                      "use fewer workers" if too_low else f"set STABILITY_MEMORY_LIMIT to at most "
                      f"{int(0.8 * room / (workers + 1)) // MB}M, or leave it out")
    else:
        yield Finding("memory limit", "ok", f"{limit // MB} MB a worker, {whose} has {room // MB} MB")
    if too_low:
        yield Finding("memory limit", "warn", f"the app alone takes {facts.resident // MB} MB of a limit of "
                      f"{limit // MB} MB: workers that do nothing wrong would be replaced",
                      _roomier(given, facts.resident, workers, room))
    elif facts.resident * (workers + 1) > room:
        yield Finding("memory", "warn", f"{workers} workers and one replacement take with nothing to do "
                      f"{facts.resident * (workers + 1) // MB} MB, {whose} has {room // MB} MB", "use fewer workers")


def _roomier(given: int | None, resident: int, workers: int, room: int) -> str:
    """Return the remedy for a limit below what the app needs: raise one that was set by hand, if there is room."""
    needed = int(1.5 * resident)
    if given and needed * (workers + 1) <= room:
        return f"raise STABILITY_MEMORY_LIMIT to {-(-needed // MB)}M, or leave it out"
    return "use fewer workers, or give more memory"


def health_paths(facts: Facts) -> Iterator[Finding]:
    """Report routes of the app under the health path."""
    for app in facts.apps:
        path = app.settings.health_path
        if app.health_own:
            yield Finding("health paths", "warn", f"{app.name} answers {', '.join(app.health_own)} itself, the "
                          f"extension the rest under {path}",
                          "set STABILITY_HEALTH_PATH to another path to have all of them, or let probes and monitoring "
                          "know what they ask")
        if app.health_hidden:
            yield Finding("hidden routes", "warn", f"the extension answers under {path}, not {app.name}'s "
                          f"{', '.join(app.health_hidden)}",
                          "if the app is to, set STABILITY_HEALTH_PATH to a path that they do not match")


def exposure(facts: Facts) -> Iterator[Finding]:
    """Report what unauthenticated clients could see."""
    found = facts.app_settings
    public = any(isinstance(bind, list) and not str(bind[0]).startswith(LOOPBACK) for bind in facts.binds)
    if found.health_details == "token" and len(found.health_token or "") < SHORTEST_TOKEN:
        yield Finding("health details", "warn", f"STABILITY_HEALTH_TOKEN has fewer than {SHORTEST_TOKEN} characters: "
                      "no client is shown details", "set it to what `openssl rand -hex 20` prints")
    elif found.health_details == "always" and public:
        yield Finding("health details", "warn", "STABILITY_HEALTH_DETAILS=always, and the service listens on more than "
                      "the loopback: strangers see workers, errors and restarts",
                      "set STABILITY_HEALTH_TOKEN and leave STABILITY_HEALTH_DETAILS out")
    else:
        shown = {"always": "to every client", "token": "to clients with the token"}
        yield Finding("health details", "ok", f"shown {shown.get(found.health_details or '', 'to no client')}")
    if found.admin_bind and not found.admin_bind.startswith(("unix:", *LOOPBACK)):
        yield Finding("admin listener", "warn", f"STABILITY_ADMIN_BIND={found.admin_bind} shows details to any client "
                      "that reaches it", "bind it to 127.0.0.1 or a unix socket, or close it off by a firewall")
    if "*" in (facts.gunicorn.get("forwarded_allow_ips") or ()):
        yield Finding("forwarded_allow_ips", "warn", "*: every client may claim to be HTTPS or another host",
                      "name the proxy's address")


#: Every look that needs only the facts.
LOOKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (settings, wiring, workers, switches, timeouts, health_paths,
                                                            exposure)
