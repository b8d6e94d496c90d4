"""Releases: two stewards let a job's artifacts leave, after the entry stands (P9, P11)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from dp_core.events import canonical_json
from service.certificates.models import Certificate
from service.certificates.service import reasons_of, visible_certificate
from service.database import now_us
from service.ids import new_id
from service.ledger import approvals, disclosures, repository
from service.ledger.approvals import Decision
from service.ledger.disclosures import Secret, Vault
from service.ledger.entries import Draft, Receipt, append
from service.ledger.errors import LedgerNotFound, ProposalClosed, ProposalInvalid, SelfApproval
from service.ledger.models import Entry, ReleaseRequest, Reservation
from service.ledger.views import utc_text
from service.webhooks import events


def visible_releases(tenant_id: str) -> Select[ReleaseRequest]:
    return select(ReleaseRequest).where(ReleaseRequest.tenant_id == tenant_id)


def visible_release(
    session: Session, tenant_id: str, release_id: str, *, for_update: bool = False
) -> ReleaseRequest:
    """The release, if it belongs to the tenant.

    Raises:
        LedgerNotFound: absent or another tenant's.
    """
    statement = visible_releases(tenant_id).where(ReleaseRequest.id == release_id)
    if for_update:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    found = session.scalar(statement)
    if found is None:
        raise LedgerNotFound("release")
    return found


def request_release(
    session: Session,
    *,
    tenant_id: str,
    actor: str,
    job_id: str,
    justification: str | None = None,
    vault: Vault | None = None,
) -> ReleaseRequest:
    """Enters the request for a settled job with a certificate that may leave.

    Repeated by who made it while it waits, it gives the standing request and writes nothing.
    A justification is personal: it needs a `vault` to lie in, and the entry commits to it.

    Raises:
        LedgerNotFound: no such job of this tenant.
        ProposalClosed: the job is not settled, or another's request or a release stands.
        ProposalInvalid: no certificate allows it, or there is nothing to release.
    """
    repository.visible_reservation(session, tenant_id, job_id)
    held = repository.locked_reservation(session, job_id)
    if held.state != "settled":
        raise ProposalClosed(proposal_id=job_id, reason="the job is not settled")
    standing = _standing(session, job_id)
    if (
        standing is not None
        and standing.state == "requested"
        and approvals.has_expired(standing.created_at)
    ):
        standing.state, standing = "expired", None
    if standing is not None and (standing.state, standing.proposed_by) == ("requested", actor):
        return standing  # the reply was lost; the two signatures stay as they are
    if standing is not None:
        raise ProposalClosed(proposal_id=job_id, reason=f"a release is {standing.state} already")
    certificate = session.get(Certificate, job_id)
    if certificate is None:
        raise ProposalInvalid(
            field="job", code="no_certificate", problem="has no certificate to release under."
        )
    settled = json.loads(session.get_one(Entry, (held.log_id, held.settled_idx)).body)["data"]
    if certificate.verdict == "none" or settled["certificate"] != certificate.digest:
        raise ProposalInvalid(
            field="job", code="verdict_none", problem="its certificate allows no release."
        )
    if not settled["artifacts"]:
        raise ProposalInvalid(field="job", code="no_artifacts", problem="has nothing to release.")
    given = disclosures.commit(justification=justification)
    made = _request(session, held, actor, certificate.digest, settled["artifacts"], given)
    receipt = approvals.proposal_of(session, made.log_id, made.idx)
    disclosures.keep(session, vault, receipt, given)
    return made


def _standing(session: Session, job_id: str) -> ReleaseRequest | None:
    return session.scalar(
        select(ReleaseRequest).where(
            ReleaseRequest.job_id == job_id, ReleaseRequest.state.in_(("requested", "published"))
        )
    )


def _request(
    session: Session,
    held: Reservation,
    actor: str,
    certificate_digest: str,
    artifacts: dict[str, str],
    given: Sequence[Secret],
) -> ReleaseRequest:
    release_id = new_id("rel_")
    data = {
        "artifacts": artifacts,
        "certificate": certificate_digest,
        "job": held.job_id,
        "release": release_id,
        **disclosures.committed(given),
    }
    draft = _draft(held, "release.requested", f"{release_id}/requested", actor, data)
    receipt = append(session, held.log_id, replace(draft, v=disclosures.version(given)))
    release = ReleaseRequest(
        id=release_id,
        tenant_id=held.tenant_id,
        job_id=held.job_id,
        certificate_digest=certificate_digest,
        artifacts=canonical_json(artifacts).decode(),
        state="requested",
        proposed_by=actor,
        log_id=receipt.log,
        idx=receipt.idx,
        created_at=now_us(),
    )
    session.add(release)
    session.flush()
    return release


def decide(
    session: Session,
    *,
    tenant_id: str,
    release_id: str,
    approver: str,
    decision: Decision,
    signature: str,
) -> ReleaseRequest:
    """Enters one steward's signed decision; the last needed one publishes.

    The same decision again changes nothing.

    Raises:
        LedgerNotFound, SelfApproval, NotAllowedToSign, SignatureInvalid, ProposalClosed.
    """
    release = visible_release(session, tenant_id, release_id, for_update=True)
    held = repository.locked_reservation(session, release.job_id)
    if held.actor == approver:
        raise SelfApproval(proposal_id=release_id)
    proposal = approvals.proposal_of(session, release.log_id, release.idx)
    is_new = approvals.record(
        session,
        proposal_id=release_id,
        proposal=proposal,
        approver=approver,
        decision=decision,
        signature=signature,
    )
    if not is_new:
        return release
    if release.state != "requested":
        raise ProposalClosed(proposal_id=release_id, reason=f"is {release.state}")
    if approvals.has_expired(release.created_at):
        raise ProposalClosed(proposal_id=release_id, reason="has expired; request it again")
    kind = "release.approved" if decision == "approve" else "release.rejected"
    data = {"proposal": proposal.idx, "release": release_id, "signature": signature}
    append(session, release.log_id, _draft(held, kind, f"{release_id}/{approver}", approver, data))
    if decision == "reject":
        release.state = "rejected"
    elif approvals.enough(approvals.approvals_of(session, proposal), release.proposed_by):
        _publish(session, release, held, proposal)
    session.flush()
    return release


def _publish(
    session: Session, release: ReleaseRequest, held: Reservation, proposal: Receipt
) -> None:
    signed = [a for a in approvals.approvals_of(session, proposal) if a["decision"] == "approve"]
    data = {
        "approvals": [{"approver": a["approver"], "signature": a["signature"]} for a in signed],
        "artifacts": json.loads(release.artifacts),
        "certificate": release.certificate_digest,
        "job": release.job_id,
        "proposal": proposal.idx,
        "release": release.id,
    }
    release.state = "published"
    session.flush()
    append(
        session,
        release.log_id,
        _draft(held, "release.published", f"{release.id}/published", "system", data),
    )
    told = {"id": release.id, "state": "published", "job": release.job_id}
    events.emit(session, release.tenant_id, "release.published", told)


def release_to_dict(session: Session, release: ReleaseRequest) -> dict[str, Any]:
    """The release as the API shows it, with what the approvers must know."""
    proposal = approvals.proposal_of(session, release.log_id, release.idx)
    certificate = visible_certificate(session, release.tenant_id, release.job_id)
    return {
        "id": release.id,
        "object": "release",
        "job": release.job_id,
        "state": release.state,
        "verdict": certificate.verdict,
        "reasons": reasons_of(certificate),
        "certificate_sha256": release.certificate_digest,
        "artifacts": [
            {"name": name, "sha256": digest}
            for name, digest in json.loads(release.artifacts).items()
        ],
        "proposed_by": release.proposed_by,
        "entry": {**proposal.to_dict(), "origin": approvals.origin_of(session, release.log_id)},
        "approvals": approvals.approvals_of(session, proposal),
        "created_at": utc_text(release.created_at),
    }


def _draft(held: Reservation, kind: str, idem: str, actor: str, data: dict[str, Any]) -> Draft:
    return Draft(
        type=kind,
        idem=idem,
        actor=actor,
        population_id=held.population_id,
        job_id=held.job_id,
        data=data,
    )
