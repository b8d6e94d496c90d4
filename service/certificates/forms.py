"""The forms in which a certificate leaves: statement, DSSE, PDF, registry YAML, label.

The statement is the norm; all others are drawn from its stored bytes at each request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from service.certificates import envelope, label
from service.certificates.models import Certificate
from service.certificates.registry import MEDIA_TYPE as YAML_TYPE
from service.certificates.registry import registry_yaml
from service.ledger.keys import LedgerKeys

LABEL_JSON_TYPE = "application/vnd.rldp.label+json"
PDF_TYPE = "application/pdf"


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a form is asked for, its file ending, and how it is made."""

    media_type: str
    ending: str
    make: Callable[[Certificate, LedgerKeys], bytes]


def _pdf(certificate: Certificate, _keys: LedgerKeys) -> bytes:
    from service.certificates.pdf import certificate_pdf  # its fonts cost 0.3 s at start

    return certificate_pdf(json.loads(certificate.body))


def _yaml(certificate: Certificate, _keys: LedgerKeys) -> bytes:
    statement = json.loads(certificate.body)
    return registry_yaml(statement, issued_us=certificate.created_at).encode()


def _statement(certificate: Certificate, _keys: LedgerKeys) -> bytes:
    return certificate.body.encode()


def _label_html(certificate: Certificate, _keys: LedgerKeys) -> bytes:
    return label.label_html(json.loads(certificate.body)["predicate"]).encode()


def _label_text(certificate: Certificate, _keys: LedgerKeys) -> bytes:
    return label.label_text(json.loads(certificate.body)["predicate"]).encode()


def _label_json(certificate: Certificate, _keys: LedgerKeys) -> bytes:
    return label.label_json(json.loads(certificate.body)["predicate"])


STATEMENT = Form(media_type="application/json", ending="json", make=_statement)
FORMS = (
    Form(media_type=envelope.MEDIA_TYPE, ending="dsse.json", make=envelope.envelope_of),
    Form(media_type=PDF_TYPE, ending="pdf", make=_pdf),
    Form(media_type=YAML_TYPE, ending="yaml", make=_yaml),
    Form(media_type=LABEL_JSON_TYPE, ending="label.json", make=_label_json),
    Form(media_type="text/html", ending="label.html", make=_label_html),
    Form(media_type="text/plain", ending="label.txt", make=_label_text),
)


def form_for(accept: str) -> Form:
    """The form an `Accept` header names; the statement if it names none of the others."""
    return next((form for form in FORMS if form.media_type in accept), STATEMENT)


def form_by_ending(ending: str) -> Form | None:
    return next((form for form in (STATEMENT, *FORMS) if form.ending == ending), None)
