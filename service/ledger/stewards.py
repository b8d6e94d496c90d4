"""A steward's key enters the ledger (ledger.md 16.4).

The founders' keys are entered when the log is opened. Every later one needs the signature of
a steward who stands in the log already, and of the new one, over the same three lines:
`dp-ledger-steward/v1`, the new steward's id, the new public key in hex. An administrator
alone can therefore make no steward.
"""

from __future__ import annotations

import base64

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy.orm import Session

from service.ledger.approvals import registered_key
from service.ledger.entries import Draft, Receipt, append
from service.ledger.errors import StewardSignatureInvalid


def steward_text(*, principal: str, key: str) -> bytes:
    """The exact bytes that the new steward and a registered one sign."""
    return f"dp-ledger-steward/v1\n{principal}\n{key}\n".encode()


def require_signed(signature: str, *, by: str, principal: str, key: str) -> None:
    """Checks a base64 signature of the text under the public key `by`, in hex.

    Raises:
        StewardSignatureInvalid: it does not fit, or `by` is no key.
    """
    try:
        raw = base64.b64decode(signature, validate=True)
        signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(by))
        signer.verify(raw, steward_text(principal=principal, key=key))
    except (InvalidSignature, ValueError):
        raise StewardSignatureInvalid from None


def register(
    session: Session,
    log_id: str,
    *,
    principal: str,
    key: str,
    possession: str,
    approver: str,
    approval: str,
) -> Receipt:
    """Enters a further steward. Entering the same one again gives the same receipt.

    Raises:
        NotAllowedToSign: the approver has no key in this log.
        StewardSignatureInvalid: one of the two signatures does not fit.
    """
    require_signed(possession, by=key, principal=principal, key=key)
    vouching = registered_key(session, log_id, approver)
    require_signed(approval, by=vouching, principal=principal, key=key)
    data = {
        "approvals": [{"approver": approver, "signature": approval}],
        "key": key,
        "possession": possession,
        "principal": principal,
        "role": "steward",
    }
    entered = Draft(
        type="principal.registered",
        idem=f"{principal}/registered",
        actor=approver,
        data=data,
        v=2,
    )
    return append(session, log_id, entered)
