"""PDF, label and registry record say what the certificate says, and nothing else."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pypdf import PdfReader

from service.certificates import label
from service.certificates.facts import sections_of
from service.certificates.pdf import certificate_pdf
from service.certificates.reasons import CONDITIONAL, MEANING, NONE, verdict_of
from service.certificates.registry import registry_yaml
from service.certificates.service import visible_certificate
from tests.service.ledger import world as w

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
ISSUED_US = 1_772_450_000_000_000
# Numbers of the words themselves, not of any model.
WORDED = {"256", "50", "1", "2"}


@pytest.fixture(scope="module")
def statement(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with w.sqlite_database(tmp_path_factory.mktemp("certificate")) as db:
        world = w.open_world(db)
        job = w.run_job(world, run_plan=w.plan())
        with db.reading() as session:
            yield json.loads(visible_certificate(session, world.tenant, job).body)


def told(statement: dict[str, Any], **predicate: Any) -> dict[str, Any]:
    changed = copy.deepcopy(statement)
    changed["predicate"] |= predicate
    return changed


def text_of(pdf: bytes) -> str:
    return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _numbers(text: str) -> set[str]:
    return {found.rstrip(",").replace(",", "") for found in NUMBER.findall(text)}


def _derived(predicate: dict[str, Any]) -> set[str]:
    """Shares, certainty and counts: recomputed here from the certificate's own numbers."""
    scope = predicate["scope"]
    limit = int(scope["population_limit"]["pico"])
    parts = list(scope["spent_pico"].values())
    parts += [p for use in scope["population_use"].values() for p in use.values()]
    shares = {f"{-(-int(part) * 1000 // limit) / 10:.1f}" for part in parts}
    counts = {str(len(found)) for found in predicate["evidence"]["indexes"].values()}
    return shares | counts | {label.certainty_percent(predicate["claim"]["epsilon"])}


class TestPdf:
    def test_every_fact_of_the_certificate_can_be_read_in_it(
        self, statement: dict[str, Any]
    ) -> None:
        text = _squeezed(text_of(certificate_pdf(statement)))
        facts = [fact for section in sections_of(statement) for fact in section.facts]
        for fact in [*facts, *label.label_facts(statement["predicate"])]:
            for part in (fact.name, fact.value, fact.note):
                spelt = part.replace("ε", "epsilon").replace("δ", "delta")
                assert _squeezed(spelt) in text, part

    def test_no_number_stands_in_it_that_the_certificate_does_not_hold(
        self, statement: dict[str, Any]
    ) -> None:
        text = text_of(certificate_pdf(statement))
        text = re.sub(r"SHA-256 of the certificate: [0-9a-f]{64}\s+page \d+ of \d+", "", text)
        known = _numbers(json.dumps(statement)) | _derived(statement["predicate"]) | WORDED
        assert _numbers(text) <= known
        assert _numbers(statement["predicate"]["claim"]["epsilon"]) <= _numbers(text)

    def test_a_changed_epsilon_changes_the_page(self, statement: dict[str, Any]) -> None:
        claim = statement["predicate"]["claim"] | {"epsilon": "7.6543"}
        assert "epsilon 7.6543 at delta" in text_of(certificate_pdf(told(statement, claim=claim)))

    def test_equal_certificates_give_equal_bytes(self, statement: dict[str, Any]) -> None:
        assert certificate_pdf(statement) == certificate_pdf(copy.deepcopy(statement))


AUDIT = {
    "canaries": 1000,
    "data": "synthetic text, before patients' records were opened",
    "one_run_lower_bound": None,
    "reasons": ["T2 was not run"],
    "report_sha256": "e" * 64,
    "scores_sha256": "f" * 64,
    "self_test": "PASS",
    "self_test_alarm_level": "1e-6",
    "self_test_min_p": "0.372",
    "statement": "The audit allows no conclusion about the claim: T2 was not run.",
    "steps": 20,
    "tier": "T1",
    "verdict": "INCONCLUSIVE",
}


class TestAudit:
    """What label and PDF say of the audit, and what they must not let a reader think."""

    @pytest.fixture
    def audited(self, statement: dict[str, Any]) -> dict[str, Any]:
        evidence = statement["predicate"]["evidence"] | {"empirical_audit": AUDIT}
        return told(statement, evidence=evidence)

    def test_label_and_pdf_name_what_was_and_was_not_attacked(
        self, audited: dict[str, Any]
    ) -> None:
        text = _squeezed(text_of(certificate_pdf(audited)))
        for part in (
            "self-test on synthetic text: no fault found in 20 steps",
            "1000 gradient canaries, smallest adjusted p 0.372, alarm below 1e-6",
            "audit as a whole: INCONCLUSIVE",
            "The run on patients' records was not attacked",
            "this is no evidence that epsilon is right",
            AUDIT["statement"],
        ):
            assert _squeezed(str(part)) in text, part
        assert "no fault found in 20 steps" in label.label_text(audited["predicate"])

    def test_a_bound_shown_in_the_run_is_told_in_words(self, statement: dict[str, Any]) -> None:
        bound = {"confidence": "95 %", "largest": "7.25", "method": "f-DP", "value": "0.76"}
        audit = AUDIT | {"tier": "T2", "one_run_lower_bound": bound}
        evidence = statement["predicate"]["evidence"] | {"empirical_audit": audit}
        sections = sections_of(told(statement, evidence=evidence))
        (fact,) = [f for s in sections for f in s.facts if f.name == "Lower bound on epsilon"]
        assert fact.value == "0.76"
        assert fact.note == "of at most 7.25 that this audit could have shown (95 %, f-DP)"

    def test_no_number_of_it_is_invented(self, audited: dict[str, Any]) -> None:
        text = text_of(certificate_pdf(audited))
        text = re.sub(r"SHA-256 of the certificate: [0-9a-f]{64}\s+page \d+ of \d+", "", text)
        known = _numbers(json.dumps(audited)) | _derived(audited["predicate"]) | WORDED
        assert _numbers(text) <= known

    def test_an_absent_audit_is_told_as_absent(self, statement: dict[str, Any]) -> None:
        assert "Empirical audit: none was made" in label.label_text(statement["predicate"])


class TestEpsilon:
    def test_each_stands_with_delta_unit_relation_rule_scope_and_guarantee(
        self, statement: dict[str, Any]
    ) -> None:
        opinion = {"note": "not a guarantee", "prv_epsilon_upper": "0.9"}
        changed = told(statement, indicative=opinion)
        facts = [fact for section in sections_of(changed) for fact in section.facts]
        shown = [f for f in (*facts, *label.label_facts(changed["predicate"])) if "ε " in f.value]
        assert len(shown) >= 4
        for fact in shown:
            assert "at δ " in fact.value
            for term in ("one patient", "added or removed", "guarantee"):
                assert term in fact.note
            assert len(fact.note.split("; ")) >= 4

    def test_under_the_verdict_none_nothing_is_called_a_guarantee(
        self, statement: dict[str, Any]
    ) -> None:
        reasons = ["sampler_not_poisson"]
        changed = told(statement, verdict="none", reasons=reasons)
        text = _squeezed(text_of(certificate_pdf(changed)))
        assert "notaguarantee" in text
        assert ";aguarantee" not in text
        assert "mustnotbereleased" in text


class TestLabel:
    def test_text_json_and_html_hold_the_same_facts(self, statement: dict[str, Any]) -> None:
        predicate = statement["predicate"]
        listed = json.loads(label.label_json(predicate))["facts"]
        text, page = label.label_text(predicate), label.label_html(predicate)
        for fact in listed:
            assert f"{fact['name']}: {fact['value']}" in text
            assert fact["value"].replace("'", "&#x27;") in page

    def test_markup_in_a_certificate_stays_text(self, statement: dict[str, Any]) -> None:
        data = statement["predicate"]["data"] | {"unprotected": ["<script>"]}
        assert "<script>" not in label.label_html(told(statement, data=data)["predicate"])

    def test_the_certainty_is_never_shown_lower_than_it_is(self) -> None:
        assert label.certainty_percent("3.0") == "95.26"
        assert label.percent_of("1", "1000000") == "0.1 %"


class TestRegistryRecord:
    def test_the_numbers_are_the_certificate_s(self, statement: dict[str, Any]) -> None:
        record = yaml.safe_load(registry_yaml(statement, issued_us=ISSUED_US))
        loss = record["deployment"]["privacy_loss"]
        claim = statement["predicate"]["claim"]
        assert loss["privacy_parameters"]["epsilon"] == float(claim["epsilon"])
        assert loss["privacy_parameters"]["delta"] == claim["delta"]
        assert (record["status"], record["tier"]) == ("Draft", 3)
        for term in ("one patient", "added or removed", claim["scope"], "a guarantee"):
            assert term in loss["privacy_parameters_details"]

    def test_a_schedule_of_the_noise_is_told_in_words(self, statement: dict[str, Any]) -> None:
        mechanism = statement["predicate"]["mechanism"] | {
            "noise_schedule": [{"level": "1.2", "steps": 20}, {"level": "0.9", "steps": 30}]
        }
        changed = told(statement, mechanism=mechanism)
        record = yaml.safe_load(registry_yaml(changed, issued_us=ISSUED_US))
        words = record["deployment"]["implementation"]["mechanisms"]
        assert "noise schedule: 1.2 for 20 steps, 0.9 for 30 steps" in words
        pages = _squeezed(text_of(certificate_pdf(changed)))
        assert _squeezed("1.2 for 20 steps, 0.9 for 30 steps") in pages

    def test_every_field_of_the_third_tier_is_filled(self, statement: dict[str, Any]) -> None:
        deployment = yaml.safe_load(registry_yaml(statement, issued_us=ISSUED_US))["deployment"]
        wanted = {
            "accounting": {"post_processing", "composition"},
            "basic": {"data_curators", "data_product_region", "intended_use", "publication_date"},
            "deployment_model": {"model_name", "actors", "release_type", "access_type"},
            "dp_variant": {"variant_name", "data_domain", "unprotected_quantities"},
            "implementation": {"preprocessing_and_hyperparameter_tuning", "mechanisms"},
            "privacy_loss": {"privacy_unit", "privacy_unit_details", "privacy_parameters"},
        }
        for part, names in wanted.items():
            assert all(deployment[part][name] for name in names), part
        assert deployment["basic"]["publication_date"] == "2026-03-02"


class TestVerdict:
    def test_a_reason_of_none_wins(self) -> None:
        for reason in NONE:
            assert verdict_of([*CONDITIONAL, reason]) == "none"

    def test_conditional_reasons_and_no_reason(self) -> None:
        assert all(verdict_of([reason]) == "conditional" for reason in CONDITIONAL)
        assert verdict_of([]) == "full"

    def test_the_list_is_closed(self) -> None:
        assert len(MEANING) == 9
        with pytest.raises(ValueError, match="made_up"):
            verdict_of(["made_up"])
