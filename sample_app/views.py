"""Orders: list, read, create in one transaction."""

from __future__ import annotations

import datetime
import re
import uuid
from typing import Any

from flask import Blueprint, abort, jsonify, request
from flask.typing import ResponseReturnValue

from flask_stability.database import PooledConnection

from . import schema, stability

blueprint = Blueprint("orders", __name__)
_FIELDS = ("id", "sku", "quantity", "customer", "created")


@blueprint.get("/")
def index() -> ResponseReturnValue:
    """What is here; needs no database."""
    return jsonify(service="orders", orders="/orders", stock="/stock", health="/health")


@blueprint.get("/stock")
@stability.keep(fresh=1, stale=300, vary=())
def stock() -> ResponseReturnValue:
    """What can be ordered; the same for all, and the last good answer while the database is away."""
    with stability.connection() as connection:
        schema.ensure(connection)
        cursor = connection.cursor()
        cursor.execute("SELECT sku, name, quantity FROM stock ORDER BY sku")
        return jsonify(stock=[dict(zip(("sku", "name", "quantity"), row, strict=True)) for row in cursor.fetchall()])


@blueprint.get("/orders")
def list_orders() -> ResponseReturnValue:
    """The latest orders, at most ``limit`` (50, up to 500)."""
    limit = request.args.get("limit", "50")
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= 500:
        abort(400, description="limit: give a number between 1 and 500")
    with stability.connection() as connection:
        schema.ensure(connection)
        cursor = connection.cursor()
        cursor.execute("SELECT id, sku, quantity, customer, created FROM orders ORDER BY created DESC LIMIT %s",
                       (int(limit),))
        return jsonify(orders=[dict(zip(_FIELDS, row, strict=True)) for row in cursor.fetchall()])


@blueprint.get("/orders/<order_id>")
def read_order(order_id: str) -> ResponseReturnValue:
    """One order."""
    with stability.connection() as connection:
        schema.ensure(connection)
        cursor = connection.cursor()
        cursor.execute("SELECT id, sku, quantity, customer, created FROM orders WHERE id = %s", (order_id,))
        row = cursor.fetchone()
    if row is None:
        abort(404, description=f"there is no order {order_id[:40]}")
    return jsonify(dict(zip(_FIELDS, row, strict=True)))


@blueprint.post("/orders")
def create_order() -> ResponseReturnValue:
    """Take from the stock and write the order, both or neither."""
    sku, quantity, customer = _checked(_body())
    with stability.connection() as connection:
        schema.ensure(connection)
    order = place_order(uuid.uuid4().hex, sku, quantity, customer)
    if order is None:
        abort(409, description=f"not enough of {sku} in stock, or no such sku: see /stock")
    return jsonify(order), 201, {"Location": f"/orders/{order['id']}"}


@stability.transaction
def place_order(connection: PooledConnection, order_id: str, sku: str, quantity: int,
                customer: str) -> dict[str, Any] | None:
    """One unit of work; None if the stock does not suffice."""
    cursor = connection.cursor()
    cursor.execute("UPDATE stock SET quantity = quantity - %s WHERE sku = %s AND quantity >= %s",
                   (quantity, sku, quantity))
    if cursor.rowcount != 1:
        return None
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    values = (order_id, sku, quantity, customer, created)
    cursor.execute("INSERT INTO orders (id, sku, quantity, customer, created) VALUES (%s, %s, %s, %s, %s)", values)
    return dict(zip(_FIELDS, values, strict=True))


def _body() -> Any:
    """The request's JSON, None if it is none."""
    try:
        return request.get_json(silent=True)
    except RecursionError:  # nested deeper than Python's parser goes
        return None


def _checked(body: Any) -> tuple[str, int, str]:
    """sku, quantity and customer of a request's body; 400 with what is wrong."""
    if not isinstance(body, dict):
        abort(400, description='send JSON such as {"sku": "A-1", "quantity": 2, "customer": "Ada"}')
    sku, quantity, customer = body.get("sku"), body.get("quantity"), body.get("customer")
    problems = []
    if not isinstance(sku, str) or not re.fullmatch(r"[A-Za-z0-9-]{1,32}", sku):
        problems.append("sku: give letters, digits and dashes, such as A-1")
    if not isinstance(quantity, int) or isinstance(quantity, bool) or not 1 <= quantity <= 1000:
        problems.append("quantity: give a whole number between 1 and 1000")
    if not isinstance(customer, str) or not 1 <= len(customer.strip()) <= 100 or not customer.isprintable():
        problems.append("customer: give a name of 1 to 100 printable characters")
    if problems:
        abort(400, description="; ".join(problems))
    assert isinstance(sku, str)
    assert isinstance(quantity, int)
    assert isinstance(customer, str)
    return sku, quantity, customer.strip()


@blueprint.app_errorhandler(404)
def not_found(error: Any) -> ResponseReturnValue:
    """In JSON: this service is for programs."""
    return jsonify(error=error.description), 404


@blueprint.app_errorhandler(400)
@blueprint.app_errorhandler(409)
@blueprint.app_errorhandler(413)
def refused(error: Any) -> ResponseReturnValue:
    """In JSON, saying what to change."""
    return jsonify(error=error.description), error.code


@blueprint.teardown_app_request
def lost_tables(error: BaseException | None) -> None:
    """A database that was dropped and came back has no tables: make them at the next request."""
    code = error.args[0] if error is not None and error.args else None
    if code in (1146, 1049, 1046) or "no such table" in str(code):
        schema.forget()
