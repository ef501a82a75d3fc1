"""The sample's orders with Flask-SQLAlchemy: ``sample_app/run sqlalchemy``. What the extension needs are two lines."""

from __future__ import annotations

import os

from flask import Flask, abort, jsonify, request
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL, String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flask_stability import StabilityExt
from flask_stability.sqlalchemy import StabilityPool


class Base(DeclarativeBase):  # type: ignore[misc]
    """Of all tables."""


db = SQLAlchemy(model_class=Base)
stability = StabilityExt()


class Item(Base):
    """What can be ordered."""

    __tablename__ = "item"
    sku: Mapped[str] = mapped_column(String(16), primary_key=True)
    quantity: Mapped[int]


class Order(Base):
    """What was ordered."""

    __tablename__ = "item_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str] = mapped_column(String(16))
    quantity: Mapped[int]
    customer: Mapped[str] = mapped_column(String(100))

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {"id": self.id, "sku": self.sku, "quantity": self.quantity, "customer": self.customer}


def _address(app: Flask) -> str | URL:
    if host := os.environ.get("DB_HOST"):
        return URL.create("mysql+mysqldb", os.environ.get("DB_USER"), os.environ.get("DB_PASSWORD"), host,
                          int(os.environ.get("DB_PORT") or 3306), os.environ.get("DB_NAME"), {"charset": "utf8mb4"})
    os.makedirs(app.instance_path, exist_ok=True)
    return f"sqlite:///{app.instance_path}/sqlalchemy.db"


def create_app(config: dict[str, object] | None = None) -> Flask:
    """The app.

    :param config: overrides for ``app.config``.
    """
    app = Flask(__name__, instance_path=os.path.abspath(os.environ.get("SAMPLE_INSTANCE") or "instance"))
    app.config["MAX_CONTENT_LENGTH"] = 16 << 10  # an order is small
    app.config["STABILITY_HEALTH_DETAILS"] = os.environ.get("STABILITY_HEALTH_DETAILS") or "always"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": StabilityPool}
    app.config.update(config or {})
    if "SQLALCHEMY_DATABASE_URI" not in app.config:
        app.config["SQLALCHEMY_DATABASE_URI"] = _address(app)
    stability.init_app(app)
    db.init_app(app)

    @app.get("/")
    def index() -> ResponseReturnValue:
        return jsonify(service="orders", orders="/orders", stock="/stock", health="/health")

    @app.get("/stock")
    def stock() -> ResponseReturnValue:
        _prepare()
        return jsonify(stock=[{"sku": item.sku, "quantity": item.quantity}
                              for item in db.session.scalars(select(Item).order_by(Item.sku))])

    @app.get("/orders")
    def orders() -> ResponseReturnValue:
        _prepare()
        latest = db.session.scalars(select(Order).order_by(Order.id.desc()).limit(50))
        return jsonify(orders=[order.document() for order in latest])

    @app.post("/orders")
    def create() -> ResponseReturnValue:
        body = request.get_json(silent=True)
        match body:
            case {"sku": str(sku), "quantity": int(quantity), "customer": str(customer)} if (
                    0 < quantity <= 1000 and sku.isascii() and customer.strip() and len(customer) <= 100):
                _prepare()
                return jsonify(place_order(sku, quantity, customer)), 201
        return jsonify(error="send {\"sku\": \"A-1\", \"quantity\": 1 to 1000, \"customer\": \"a name\"}"), 400

    return app


@stability.transaction(session=db.session)  # the whole unit again after a deadlock or a lost link
def place_order(session: Session, sku: str, quantity: int, customer: str) -> dict[str, object]:
    """Take from the stock and write the order, both or neither."""
    item = session.get(Item, sku, with_for_update=True)
    if item is None or item.quantity < quantity:
        abort(409, description=f"there are not {quantity} of {sku[:16]}")
    item.quantity -= quantity
    order = Order(sku=sku, quantity=quantity, customer=customer)
    session.add(order)
    session.flush()
    return order.document()


_prepared: set[str] = set()


def _prepare() -> None:
    """Make the tables and the stock once; in a real service that is Alembic's."""
    address = str(db.engine.url)
    if address in _prepared:
        return
    Base.metadata.create_all(db.engine)
    with db.engine.begin() as connection:
        for sku in ("A-1", "B-2", "C-3"):
            table = Item.__table__
            verb = table.insert().prefix_with("OR IGNORE" if db.engine.dialect.name == "sqlite" else "IGNORE")
            connection.execute(verb.values(sku=sku, quantity=1000000))
    _prepared.add(address)
