"""The sample app with Flask-SQLAlchemy."""

from __future__ import annotations

from pathlib import Path

from sample_app.sqlalchemy_app import create_app, db


def test_an_order_takes_from_the_stock_or_is_refused(tmp_path: Path) -> None:
    """Both or neither is stored."""
    app = create_app({"SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path}/orders.db", "TESTING": True})
    client = app.test_client()
    placed = client.post("/orders", json={"sku": "B-2", "quantity": 3, "customer": "爱达 · Ада"})
    assert placed.status_code == 201
    assert client.get("/orders").get_json() == {"orders": [placed.get_json()]}
    assert client.get("/stock").get_json()["stock"][1] == {"sku": "B-2", "quantity": 999997}
    assert client.post("/orders", json={"sku": "Z-9", "quantity": 1, "customer": "Ada"}).status_code == 409
    for body in ({}, [], {"sku": "B-2", "quantity": 0, "customer": "Ada"},
                 {"sku": "B-2", "quantity": 1, "customer": " "}):
        assert client.post("/orders", json=body).status_code == 400
    assert len(client.get("/orders").get_json()["orders"]) == 1
    with app.app_context():
        db.engine.dispose()
