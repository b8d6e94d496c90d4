"""The certificate's DSSE envelope: the stored statement, signed by the log's key (ledger.md 14).

The payload is byte for byte the statement whose SHA-256 stands in the `settle` entry; the
signature adds who issued it, for readers who have the certificate and no log
(github.com/secure-systems-lab/dsse, protocol 1.0.2).
"""

from __future__ import annotations

import base64
import hashlib

from dp_core.events import canonical_json
from service.certificates.models import Certificate
from service.ledger.keys import LedgerKeys

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MEDIA_TYPE = "application/vnd.dsse.envelope.v1+json"


def signed_bytes(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed in place of the bare payload."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def envelope_of(certificate: Certificate, keys: LedgerKeys) -> bytes:
    """The envelope in canonical JSON; equal certificates have equal envelopes."""
    payload = certificate.body.encode()
    signature = keys.log.sign(signed_bytes(payload))
    key_id = hashlib.sha256(bytes.fromhex(keys.log_public)).hexdigest()
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}],
        }
    )
