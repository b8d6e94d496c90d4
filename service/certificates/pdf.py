"""The certificate as a PDF that a hospital's board can read, drawn from the statement.

The standard fonts of PDF keep it small and need no font file; they lack Greek, so epsilon
and delta are written out. Equal certificates give equal bytes: the time inside is fixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fpdf import FPDF
from fpdf.enums import MethodReturnValue, XPos, YPos

from dp_core.events import canonical_json
from service.certificates.facts import Section, sections_of
from service.certificates.label import LabelFact, label_facts

FIXED_TIME = datetime(1980, 1, 1, tzinfo=UTC)
SPELT = {"e^ε": "e^epsilon", "ε": "epsilon", "δ": "delta"}
NAME_MM, GAP_MM, LINE_MM = 52, 2, 0.48
INK, MUTED, LINE = (28, 35, 33), (85, 94, 91), (200, 197, 188)
EXPLANATION = (
    "A model trained on patients' records could give away whether one patient was among them. "
    "Epsilon bounds how much: the smaller, the less anyone can learn about one patient from the "
    "model. Delta bounds the chance that this fails. Neither means anything without the unit, "
    "the relation and the rule beside it, and neither covers what is listed as not protected."
)


class _Document(FPDF):
    """Pages with the digest of the certificate at their foot."""

    def __init__(self, digest: str) -> None:
        super().__init__(format="A4")
        self.digest = digest
        self.set_creation_date(FIXED_TIME)
        self.set_title("Privacy certificate")
        self.set_lang("en")
        self.set_margins(18, 16, 18)
        self.set_auto_page_break(auto=True, margin=18)
        self.alias_nb_pages("{pages}")
        self.add_page()

    def footer(self) -> None:
        self.set_y(-13)
        self.set_font("Helvetica", size=7)
        self.set_text_color(*MUTED)
        text = f"SHA-256 of the certificate: {self.digest}   page {self.page_no()} of {{pages}}"
        self.cell(0, 4, text, align="C")

    def line_of(self, text: str, size: float, *, bold: bool = False, muted: bool = False) -> None:
        self.set_font("Helvetica", "B" if bold else "", size)
        self.set_text_color(*(MUTED if muted else INK))
        height = size * LINE_MM
        self.multi_cell(0, height, _spelt(text), new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L")

    def fact(self, fact: LabelFact) -> None:
        """The name on the left, value and note on the right, never split over two pages."""
        values = ((fact.value, 9.0, INK), (fact.note, 8.0, MUTED))
        told = [(text, size, colour) for text, size, colour in values if text]
        height = sum(self._height(text, size) for text, size, _ in told)
        if self.will_page_break(height + 2):
            self.add_page()
        top, left = self.get_y(), self.l_margin
        self.set_draw_color(*LINE)
        self.line(left, top, self.w - self.r_margin, top)
        self.set_xy(left, top + 1)
        self._paragraph(fact.name, 9.0, MUTED, NAME_MM)
        below = self.get_y()
        self.set_xy(left + NAME_MM + GAP_MM, top + 1)
        for text, size, colour in told:
            self.set_x(left + NAME_MM + GAP_MM)
            self._paragraph(text, size, colour, 0)
        self.set_xy(left, max(below, self.get_y()) + 1)

    def _paragraph(self, text: str, size: float, colour: tuple[int, int, int], width: int) -> None:
        self.set_font("Helvetica", size=size)
        self.set_text_color(*colour)
        self.multi_cell(width, size * LINE_MM, _spelt(text), new_y=YPos.NEXT, align="L")

    def _height(self, text: str, size: float) -> float:
        self.set_font("Helvetica", size=size)
        width = self.epw - NAME_MM - GAP_MM
        found = self.multi_cell(
            width, size * LINE_MM, _spelt(text), dry_run=True, output=MethodReturnValue.HEIGHT
        )
        assert isinstance(found, float)
        return found


def certificate_pdf(statement: Mapping[str, Any]) -> bytes:
    """The whole certificate on a few pages: label first, then every section."""
    predicate = statement["predicate"]
    document = _Document(hashlib.sha256(canonical_json(statement)).hexdigest())
    document.line_of("Privacy certificate", 22, bold=True)
    document.line_of(f"Job {predicate['scope']['job']}", 10, muted=True)
    document.ln(3)
    document.line_of(f"Verdict: {predicate['verdict']}", 14, bold=True)
    document.ln(1)
    document.line_of(EXPLANATION, 9.5)
    _section(document, Section(title="Privacy facts", facts=label_facts(predicate)))
    for section in sections_of(statement):
        _section(document, section)
    return bytes(document.output())


def _section(document: _Document, section: Section) -> None:
    document.ln(4)
    if document.will_page_break(24):
        document.add_page()
    document.start_section(section.title)
    document.line_of(section.title, 12.5, bold=True)
    document.ln(1)
    for fact in section.facts:
        document.fact(fact)


def _spelt(text: str) -> str:
    """Without Greek; all else in a certificate is printable ASCII (its canonical form)."""
    for sign, name in SPELT.items():
        text = text.replace(sign, name)
    return text
