"""The app of the exceptions' matrix: the path names the place where it fails and how."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import errno
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    g,
    got_request_exception,
    render_template_string,
    request,
    request_finished,
    request_started,
)
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import TooManyRequests, Unauthorized

from flask_stability import StabilityExt


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("str")


class Odd(BaseException):
    """Known to nobody."""


KINDS: dict[str, Any] = {
    "value": lambda: ValueError("value"), "memory": MemoryError, "stop": StopIteration, "mute": Mute, "odd": Odd,
    "oserror": lambda: OSError(errno.EIO, "disk"), "reset": lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
    "pipe": lambda: BrokenPipeError(errno.EPIPE, "pipe"), "exit0": lambda: SystemExit(0),
    "exit3": lambda: SystemExit(3), "exit4": lambda: SystemExit(4), "interrupt": KeyboardInterrupt,
    "genexit": GeneratorExit,
    "cancelled": asyncio.CancelledError}


def fail(kind: str) -> None:
    if kind == "recursion":
        fail(kind)
    raise KINDS[kind]()


class Sessions(SecureCookieSessionInterface):
    def open_session(self, app: Flask, request: Any) -> Any:
        here("session")
        return super().open_session(app, request)


app = Flask(__name__)
app.secret_key = "matrix"
app.session_interface = Sessions()
app.config["MAX_CONTENT_LENGTH"] = 10
if os.path.exists("broken"):
    raise ImportError("broken")
stability = StabilityExt(app)


def here(place: str) -> None:
    """Fail if the path asks for it: /at/<place>/<kind>."""
    parts = request.path.split("/")
    if parts[1:3] == ["at", place]:
        fail(parts[3])


@app.get("/ok")
def ok() -> str:
    return "ok"


@app.get("/at/<place>/<kind>")
def at(place: str, kind: str) -> str:
    here("view")
    return "ok"


@app.before_request
def before() -> None:
    g.path = request.path
    if "forged" in request.path:
        raise ValueError(request.path)
    here("before_request")


@app.after_request
def after(response: Response) -> Response:
    here("after_request")
    return response


@app.teardown_request
def teardown_request(error: BaseException | None) -> None:
    here("teardown_request")


@app.teardown_appcontext
def teardown_appcontext(error: BaseException | None) -> None:
    if g.get("path") == "/at/teardown_appcontext/value":
        fail("value")


def _receiver(place: str) -> Any:
    def receive(sender: Flask, **_: Any) -> None:
        here(place)
    return receive


receivers = [(request_started, _receiver("request_started")), (request_finished, _receiver("request_finished")),
             (got_request_exception, _receiver("got_request_exception"))]
for a_signal, receiver in receivers:
    a_signal.connect(receiver, app)


@app.get("/at/got_request_exception/<kind>")
def and_a_receiver(kind: str) -> str:
    raise KeyError("view")


@app.get("/none")
def none() -> Any:
    return None


@app.get("/template")
def template() -> str:
    return render_template_string("{{ 1 / 0 }}")


@app.get("/async")
async def a_sync() -> str:
    raise ValueError("async")


# -- HTTP exceptions ----------------------------------------------------------------------------------------------


@app.post("/json")
def needs_json() -> Any:
    return request.get_json()


@app.get("/busy")
def busy() -> str:
    raise TooManyRequests(retry_after=7)


@app.get("/login")
def login() -> str:
    raise Unauthorized(response=None, www_authenticate=_challenge())


def _challenge() -> Any:
    from werkzeug.datastructures import WWWAuthenticate
    return WWWAuthenticate("basic", {"realm": "matrix"})


@app.get("/abort/<int:code>")
def aborts(code: int) -> str:
    abort(code)


@app.get("/abort/response")
def abort_response() -> str:
    abort(Response("kept", 500))


# -- handlers that fail -------------------------------------------------------------------------------------------

failing = Blueprint("failing", __name__)


@failing.errorhandler(LookupError)
def handler_fails(error: LookupError) -> str:
    raise ValueError("handler")


@failing.errorhandler(500)
def handler_of_500(error: Exception) -> Any:
    if request.path.endswith("/both"):
        raise OSError("handler of 500")
    return "the app's own page", 500


@failing.get("/handler/<which>")
def handled(which: str) -> str:
    raise KeyError("view")


app.register_blueprint(failing)


# -- bodies -------------------------------------------------------------------------------------------------------


@app.get("/first/<kind>")
def first_chunk(kind: str) -> Response:
    def body() -> Iterator[str]:
        fail(kind)
        yield "never"
    return Response(body())


class _Iterator:
    """No generator: what it raises comes out as it is."""

    def __init__(self, kind: str) -> None:
        self.kind, self.given = kind, False

    def __iter__(self) -> _Iterator:
        return self

    def __next__(self) -> bytes:
        if self.given:
            fail(self.kind)
        self.given = True
        return b"half"


@app.get("/middle/<kind>")
def middle(kind: str) -> Response:
    return Response(_Iterator(kind), direct_passthrough=True)


@app.get("/close/<kind>")
def on_close(kind: str) -> Response:
    response = Response("whole")
    response.call_on_close(lambda: fail(kind))
    return response


@app.get("/endless")
def endless() -> Response:
    def body() -> Iterator[bytes]:
        while True:
            yield b"x" * 65536
    return Response(body())


# -- outside of a request -----------------------------------------------------------------------------------------


@app.get("/thread/<kind>")
def thread(kind: str) -> str:
    started = threading.Thread(target=fail, args=(kind,), name="matrix-thread")
    started.start()
    started.join()
    return "ok"


@app.get("/timer")
def timer() -> str:
    started = threading.Timer(0, fail, ("value",))
    started.start()
    started.join()
    return "ok"


@app.get("/future")
def future() -> str:
    with ThreadPoolExecutor(1) as pool:
        stability.watch(pool.submit(fail, "value"))
    return "ok"


@app.get("/task")
def task() -> str:
    async def work() -> None:
        fail("value")

    async def main() -> None:
        unread = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        del unread

    asyncio.run(main())
    gc.collect()
    return "ok"


@app.get("/coroutine")
def coroutine() -> str:
    async def never() -> None:
        """Not awaited."""

    never()
    gc.collect()
    return "ok"


class Fails:
    def __del__(self) -> None:
        fail("value")


@app.get("/del")
def finalizer() -> str:
    Fails()
    gc.collect()
    return "ok"


class Plain:
    pass


@app.get("/weakref")
def callback() -> str:
    plain = Plain()
    reference = weakref.ref(plain, lambda _: fail("value"))
    del plain
    gc.collect()
    return "ok" if reference() is None else "?"


@app.get("/atexit")
def at_exit() -> str:
    atexit.register(fail, "value")
    return str(os.getpid())


def _on_alarm(number: int, frame: FrameType | None) -> None:
    raise RuntimeError("alarm")


signal.signal(signal.SIGALRM, _on_alarm)


@app.get("/signal")
def signal_handler() -> str:
    os.kill(os.getpid(), signal.SIGALRM)
    for _ in range(100):
        time.sleep(0.02)
    return "ok"


@app.get("/fork")
def fork() -> str:
    child = os.fork()
    if child == 0:
        threading.Timer(2, os._exit, (0,)).start()  # the child must not stay as a second worker
        fail("value")
    return str(child)


@app.get("/slow/<float:seconds>")
def slow(seconds: float) -> str:
    Path("slow-began").touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
    return "ok"


@app.get("/die/<int:status>")
def die(status: int) -> str:
    os._exit(status)


@app.get("/kill/<name>")
def kill(name: str) -> str:
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(30)
    return "?"


@app.get("/swallow")
def swallow() -> str:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except BaseException as error:
            del error
    return "ok"


@app.get("/gil")
def hold_the_gil() -> str:
    return str(ctypes.PyDLL(None).sleep(20))


@app.post("/body")
def body() -> str:
    return str(len(request.stream.read()))


@app.get("/stderr-full")
def stderr_full() -> str:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    return "ok"


# -- WSGI middleware outside of Flask ------------------------------------------------------------------------------

PLAIN = [("Content-Type", "text/plain")]
GARBAGE: dict[str, tuple[Any, Any, Any]] = {
    "none": ("200 OK", PLAIN, None), "status": ("two hundred", PLAIN, [b"x"]),
    "header": ("200 OK", [("X-A", "a\r\nX-Injected: b")], [b"x"]), "str": ("200 OK", PLAIN, "text"),
    "no-start": (None, None, [b"x"]), "short": ("200 OK", [*PLAIN, ("Content-Length", "10")], [b"five!"])}


class Outside:
    def __init__(self, wsgi_app: Any) -> None:
        self.wsgi_app = wsgi_app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        parts = environ["PATH_INFO"].split("/")
        if parts[1] == "outside":
            fail(parts[2])
        if parts[1] == "garbage":
            if parts[2] == "twice":
                start_response("200 OK", PLAIN)
                start_response("200 OK", PLAIN)
            status, headers, body = GARBAGE[parts[2]]
            if status is not None:
                start_response(status, headers)
            return body
        return self.wsgi_app(environ, start_response)


app.wsgi_app = Outside(app.wsgi_app)  # type: ignore[method-assign]
sys.setrecursionlimit(1000)
