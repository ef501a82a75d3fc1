"""What strangers send to the sample app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from sample_app import create_app, schema


@pytest.fixture
def client(tmp_path: Path) -> Iterator[FlaskClient]:
    """Of an app with a database of its own."""
    schema.forget()
    app = create_app({"STABILITY_DB_URL": f"sqlite:///{tmp_path}/orders.db", "TESTING": True})
    yield app.test_client()
    app.extensions["stability"].pool.close()
    schema.forget()


@pytest.mark.parametrize("body", [
    b"", b"\xff\xfe", b"[]", b"null", b"{", b"[" * 10000,
    b'{"sku": "A-1", "quantity": 1}',
    b'{"sku": "A-1\\n", "quantity": 1, "customer": "Ada"}',
    b'{"sku": "A-1", "quantity": 1, "customer": "\\ud800"}',
    b'{"sku": "A-1", "quantity": 1, "customer": "a\\u0000b"}',
    b'{"sku": "A-1", "quantity": 1, "customer": "  "}',
    b'{"sku": "A-1", "quantity": 1.5, "customer": "Ada"}',
    b'{"sku": "A-1", "quantity": true, "customer": "Ada"}',
    b'{"sku": "A-1", "quantity": NaN, "customer": "Ada"}',
    b'{"sku": "A-1", "quantity": ' + b"9" * 5000 + b', "customer": "Ada"}'])
def test_an_order_that_is_none_is_refused_and_changes_nothing(client: FlaskClient, body: bytes) -> None:
    """400, saying in JSON what to send."""
    answer = client.post("/orders", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.get_json()["error"]
    assert client.get("/orders").get_json() == {"orders": []}
    assert {item["quantity"] for item in client.get("/stock").get_json()["stock"]} == {1000000}


def test_an_order_in_any_script_is_taken(client: FlaskClient) -> None:
    """And read back as it was written."""
    placed = client.post("/orders", json={"sku": "B-2", "quantity": 3, "customer": "爱达 · Ада"})
    assert placed.status_code == 201
    assert client.get(placed.headers["Location"]).get_json() == placed.get_json()
    assert placed.get_json()["customer"] == "爱达 · Ада"


def test_a_body_that_is_too_long_is_not_read(client: FlaskClient) -> None:
    """413, in JSON."""
    answer = client.post("/orders", data=b" " * (1 << 20), content_type="application/json")
    assert answer.status_code == 413
    assert answer.get_json()["error"]


@pytest.mark.parametrize("limit", ["0", "501", "-1", "x", "", "1e2", "9" * 5000, "\N{ARABIC-INDIC DIGIT THREE}"])
def test_a_limit_that_is_none_is_refused(client: FlaskClient, limit: str) -> None:
    """400, naming the bounds."""
    answer = client.get("/orders", query_string={"limit": limit})
    assert answer.status_code == 400
    assert "between 1 and 500" in answer.get_json()["error"]


def test_the_last_of_the_stock_is_sold_once(client: FlaskClient) -> None:
    """What is no longer there is a 409, and neither order nor stock changes."""
    order = {"sku": "C-3", "quantity": 1000, "customer": "Ada"}
    pool = client.application.extensions["stability"].pool
    client.get("/stock")
    with pool.connection() as connection:
        connection.execute("UPDATE stock SET quantity = 1500 WHERE sku = 'C-3'")
    assert client.post("/orders", json=order).status_code == 201
    assert client.post("/orders", json=order).status_code == 409
    assert len(client.get("/orders").get_json()["orders"]) == 1
    assert {item["sku"]: item["quantity"] for item in client.get("/stock").get_json()["stock"]}["C-3"] == 500
