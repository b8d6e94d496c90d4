"""Alerts that somebody knows of: they leave the strip until their cause is over.

Guarantee: an acknowledgement silences one alert of one hospital, as bad as it was then. A
worse one, another episode, or the same cause after it was over is told anew; whoever
acknowledged stands in the access log, and the row is kept. That a cause is over is noticed
by the dispatcher (`end_what_is_over`), so that nobody has to look at the right moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Select, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.database import Database, clock_us
from service.errors import NotFound
from service.ids import new_id
from service.ledger import access
from service.operations.alerts import Acknowledged, Alert, alerts_of
from service.operations.fleet import fleet_of
from service.operations.models import AlertAcknowledgement

NOTE_MAX = 200
ROUTE = "/v1/operations/alerts/{alert_id}/acknowledgement"


def known_alerts(session: Session, subject: Subject, data_dir: Path) -> list[Alert]:
    """Every alert that stands now, with who knows of it."""
    fleet = fleet_of(session, subject)
    return with_acknowledgements(session, subject, alerts_of(session, subject, fleet, data_dir))


def with_acknowledgements(
    session: Session, subject: Subject, alerts: Iterable[Alert]
) -> list[Alert]:
    """The same alerts in their order, each with who knows of it as it is now."""
    said = {one.alert_id: one for one in session.scalars(_standing(subject.tenant_id))}
    return [_with(alert, said.get(alert.id)) for alert in alerts]


def acknowledge(
    session: Session, subject: Subject, data_dir: Path, alert_id: str, note: str | None
) -> Alert:
    """Notes that the subject knows of an alert. Known already, it stays as it was.

    `note` is plain text of at most 200 characters, told to the admins of the hospital alone.

    Raises:
        NotFound: no such alert stands; its cause may be over.
    """
    alert = standing_alert(session, subject, data_dir, alert_id)
    if alert.acknowledged is not None:
        return alert
    _end(session, _standing(subject.tenant_id), [alert_id])  # of a lesser degree
    if _insert(session, subject, alert, note):
        access.record(
            session,
            tenant_id=subject.tenant_id,
            actor=subject.principal_id,
            role=subject.role,
            route=ROUTE,
            status=200,
            shown=alert_id,
        )
    (known,) = with_acknowledgements(session, subject, [alert])
    return known


def standing_alert(session: Session, subject: Subject, data_dir: Path, alert_id: str) -> Alert:
    """One alert that stands now.

    Raises:
        NotFound: it does not, or never did.
    """
    for alert in known_alerts(session, subject, data_dir):
        if alert.id == alert_id:
            return alert
    raise NotFound


def end_what_is_over(db: Database, data_dir: Path) -> int:
    """Ends acknowledgements whose alert no longer stands; how many there were.

    Works for all hospitals, outside of any request. Costs one query while nothing is
    acknowledged.
    """
    with db.reading() as session:
        said = session.scalars(_standing()).all()  # before the look: what comes later stays
        by_tenant: dict[str, list[AlertAcknowledgement]] = {}
        for one in said:
            by_tenant.setdefault(one.tenant_id, []).append(one)
        over = {
            tenant: [one.alert_id for one in of_tenant if one.alert_id not in stands]
            for tenant, of_tenant in by_tenant.items()
            for stands in [_ids(session, of_tenant[0], data_dir)]
        }
    if not any(over.values()):
        return 0
    with db.transaction() as session:
        return sum(_end(session, _standing(tenant), ids) for tenant, ids in over.items())


def change_mark(session: Session) -> str:
    """Changes with each acknowledgement that begins or ends, of any hospital."""
    row = session.execute(
        select(
            func.count(),
            func.max(AlertAcknowledgement.created_at),
            func.max(AlertAcknowledgement.ended_at),
        )
    ).one()
    return repr(tuple(row))


def _standing(tenant_id: str | None = None) -> Select[AlertAcknowledgement]:
    found = select(AlertAcknowledgement).where(AlertAcknowledgement.ended_at.is_(None))
    return found if tenant_id is None else found.where(AlertAcknowledgement.tenant_id == tenant_id)


def _with(alert: Alert, said: AlertAcknowledgement | None) -> Alert:
    if said is None or said.degree < alert.degree:
        return alert
    known = Acknowledged(by=said.acknowledged_by, at=said.created_at, note=said.note)
    return replace(alert, acknowledged=known)


def _insert(session: Session, subject: Subject, alert: Alert, note: str | None) -> bool:
    """False when somebody else was faster."""
    make = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    made = make(AlertAcknowledgement).values(
        id=new_id("ack_"),
        tenant_id=subject.tenant_id,
        alert_id=alert.id,
        code=alert.code,
        subject=alert.subject,
        degree=alert.degree,
        acknowledged_by=subject.principal_id,
        note=note,
        created_at=clock_us(session),
        ended_at=None,
    )
    inserted = made.on_conflict_do_nothing().returning(AlertAcknowledgement.id)
    return session.scalar(inserted) is not None


def _ids(session: Session, one: AlertAcknowledgement, data_dir: Path) -> set[str]:
    """Alerts of a hospital, as its admins see them."""
    admin = Subject(principal_id=one.acknowledged_by, tenant_id=one.tenant_id, role="admin")
    fleet = fleet_of(session, admin)
    return {alert.id for alert in alerts_of(session, admin, fleet, data_dir)}


def _end(session: Session, standing: Select[AlertAcknowledgement], alert_ids: Sequence[str]) -> int:
    ids = [one.id for one in session.scalars(standing) if one.alert_id in alert_ids]
    if not ids:
        return 0
    ended = update(AlertAcknowledgement).where(AlertAcknowledgement.id.in_(ids))
    session.execute(ended.values(ended_at=clock_us(session)))
    return len(ids)
