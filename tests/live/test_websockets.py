"""WebSockets under WSGI with the libraries that do that: the request is the app's own from the handshake on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import websocket

from support import Server, wait_until

SOURCE = '''
from flask import Flask, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed, Server
from flask_stability import StabilityExt

app = Flask(__name__)
StabilityExt(app)
sock = Sock(app)

@app.get("/ping")
def ping():
    return "pong"

@sock.route("/echo")
def echo(ws):
    while (said := ws.receive()) != "bye":
        if said == "boom":
            raise ValueError("boom")
        ws.send(said)

@app.route("/plain", websocket=True)
def plain():
    ws = Server.accept(request.environ)
    try:
        while True:
            ws.send(ws.receive())
    except ConnectionClosed:
        return "what a view returns after it"
'''
SOCKETIO = '''
from flask import Flask
from flask_socketio import SocketIO
from flask_stability import StabilityExt

app = Flask(__name__)
StabilityExt(app)
socketio = SocketIO(app, async_mode="threading")

@app.get("/users/<name>")
def user(name):
    return name

@app.get("/fails/<name>")
def fails(name):
    raise ValueError(name)

@socketio.on("message")
def message(said):
    socketio.send(said)
'''
GEVENT = '''
from flask import Flask, request
from flask_stability import StabilityExt

app = Flask(__name__)
StabilityExt(app)

@app.route("/echo", websocket=True)
def echo():
    ws = request.environ["wsgi.websocket"]
    while (said := ws.receive()) not in (None, "bye"):
        ws.send(said)
    return ""
'''


def _connect(one: Server, path: str) -> Any:
    return websocket.create_connection(f"ws://127.0.0.1:{one.port}{path}", timeout=30)


def _say(client: Any, said: str = "hello") -> None:
    client.send(said)
    assert client.recv() == said


def _rest(client: Any) -> list[tuple[int, bytes]]:
    """What comes until the connection is closed."""
    frames = []
    try:
        while True:
            frames.append(client.recv_data())
    except websocket.WebSocketConnectionClosedException:
        return frames
    finally:
        client.shutdown()


def _answers(one: Server) -> dict[str, int]:
    by_class: dict[str, int] = one.health()["detailed"]["requests"]["by_class"]
    return by_class


def test_a_conversation_ends_without_an_error_and_nothing_of_http_follows(server: Callable[..., Server],
                                                                          worker_class: str) -> None:
    """Closed by the app or by the client; counted as 101, with the route and the time to the handshake alone."""
    one = server(source=SOURCE, worker_class=worker_class, workers=1)
    for path in ("/echo", "/echo", "/plain"):
        client = _connect(one, path)
        _say(client)
        client.close()
    client = _connect(one, "/echo")
    client.send("bye")
    assert _rest(client) == [(8, b"\x03\xe8")]
    wait_until(lambda: _answers(one)["1xx"] == 4, message="all are counted")
    assert _answers(one)["5xx"] == 0
    assert {entry["endpoint"] for entry in one.health()["detailed"]["requests"]["slowest"]} >= {"echo", "plain"}
    assert one.records() == []
    assert "Traceback" not in one.logs()


def test_an_error_of_the_app_is_recorded_and_cuts_the_stream(server: Callable[..., Server], worker_class: str) -> None:
    """Once, with its route; no 500 among the frames."""
    one = server(source=SOURCE, worker_class=worker_class, workers=1)
    client = _connect(one, "/echo")
    _say(client)
    client.send("boom")
    assert _rest(client) == []
    record, = wait_until(one.records, message="it is recorded")
    assert (record["event"], record["route"], record["exception"][0]["type"]) == ("exception", "/echo", "ValueError")
    assert one.get("/ping").text == "pong"


def test_a_live_one_has_no_deadline_and_is_told_goodbye_last(server: Callable[..., Server]) -> None:
    """Longer than STABILITY_REQUEST_TIMEOUT; when the service ends, a close frame with 1001, and no lost time."""
    one = server(source=SOURCE, workers=1, env={"STABILITY_REQUEST_TIMEOUT": "1"})
    client, started = _connect(one, "/echo"), time.monotonic()
    while time.monotonic() < started + 3:
        _say(client)
        assert one.get("/ping").text == "pong"
        time.sleep(0.1)
    assert one.records() == one.records("process-manager", "replacement_asked") == []
    one.signal(signal.SIGTERM)
    assert _rest(client)[0] == (8, b"\x03\xe9")
    assert one.process.wait(30) == 0
    assert one.records(event="request_cut") == []


def test_behind_flask_socketio_routes_are_known(server: Callable[..., Server]) -> None:
    """Its middleware copies the environ; a WebSocket of its own is a conversation as any other."""
    one = server(source=SOCKETIO, workers=1)
    assert one.get("/users/ann").text == "ann"
    assert one.get("/fails/ann").status_code == 500
    record, = wait_until(lambda: one.records(event="exception"), message="it is recorded")
    assert record["route"] == "/fails/<name>"
    endpoints = {entry["endpoint"] for entry in one.health()["detailed"]["requests"]["slowest"]}
    assert {"user", "fails"} <= endpoints
    client = _connect(one, "/socket.io/?EIO=4&transport=websocket")
    assert client.recv().startswith("0{")
    client.send("40")
    assert client.recv().startswith("40{")
    client.send('42["message","hello"]')
    assert client.recv() == '42["message","hello"]'
    client.close()
    wait_until(lambda: _answers(one)["1xx"] == 1, message="it is counted")
    assert len(one.records()) == 1


@pytest.mark.parametrize(("source", "path"), [(GEVENT, "/echo"), (SOURCE, "/plain"), (SOURCE, "/echo")])
def test_gevents_own_server_and_gevent_websocket(server: Callable[..., Server], source: str, path: str) -> None:
    """Its server shakes hands before the app is called, or simple-websocket takes the socket from its input."""
    kind = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker" if source is GEVENT else "gevent"
    one = server(source=source, worker_class=kind, workers=1, env={"PYTHONWARNINGS": "ignore"})
    client = _connect(one, path)
    _say(client)
    client.close()
    wait_until(lambda: _answers(one)["1xx"] == 1, message="it is counted")
    assert one.records() == []
    one.stop()
    assert "Exception ignored" not in one.logs()
