"""Tables of webhook endpoints and of what is to be, or was, delivered to them."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base

ID = String(40)


class WebhookEndpoint(Base):
    """Where a hospital wants to hear of something. Its secrets lie sealed (`vault`)."""

    __tablename__ = "webhook_endpoint"
    __table_args__ = (
        CheckConstraint("state IN ('active', 'disabled', 'deleted')", name="state"),
        CheckConstraint(
            "(previous_secret IS NULL) = (previous_until IS NULL)", name="previous_secret"
        ),
        Index("ix_webhook_endpoint_tenant_id_state", "tenant_id", "state"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    created_by: Mapped[str] = mapped_column(ForeignKey("principal.id"))
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16))
    disabled_reason: Mapped[str | None] = mapped_column(String(24))
    secret: Mapped[str] = mapped_column(Text)
    previous_secret: Mapped[str | None] = mapped_column(Text)  # still signs, until
    previous_until: Mapped[int | None] = mapped_column(BigInteger)
    version: Mapped[int]  # grows with each change by a person
    created_at: Mapped[int] = mapped_column(BigInteger)


class WebhookDelivery(Base):
    """One event owed to one endpoint, written with the change that it tells of."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
        Index("ix_webhook_delivery_endpoint_id_created_at_id", "endpoint_id", "created_at", "id"),
        Index("ix_webhook_delivery_state_not_before", "state", "not_before"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoint.id"))
    event_id: Mapped[str] = mapped_column(ID)  # `webhook-id`: the same at every try and replay
    type: Mapped[str] = mapped_column(String(40))
    body: Mapped[str] = mapped_column(Text)  # exactly what is signed and sent
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    not_before: Mapped[int] = mapped_column(BigInteger)
    held_until: Mapped[int] = mapped_column(BigInteger)  # one dispatcher is sending it
    last_error: Mapped[str | None] = mapped_column(String(24))
    last_status: Mapped[int | None]
    created_at: Mapped[int] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)
