"""The closed list of reasons that lower a verdict, and what each means (ledger.md 14)."""

from __future__ import annotations

from collections.abc import Iterable

NONE = {
    "controller_private_inputs": "The controller saw values that were neither public nor charged.",
    "ledger_check_failed": "The charges of the job do not add up in the ledger.",
    "private_evaluation_uncharged": "Patients' records were evaluated on without a charge.",
    "sampler_not_poisson": "Patients were not drawn by Poisson sampling, which the claim needs.",
}
CONDITIONAL = {
    "generator_not_os_entropy": "The noise did not come from the operating system's generator.",
    "no_external_witness": "No outside witness has cosigned the log, so its operator could show "
    "different people different logs.",
    "overlap_unstated": "Nobody has stated which other populations hold the same patients.",
    "size_declared_exact": "The exact number of patients was declared and is not protected.",
    "unit_by_statement": "That one record is one patient was stated, not enforced by a field.",
}
MEANING = NONE | CONDITIONAL


def verdict_of(reasons: Iterable[str]) -> str:
    """`full` without a reason; a reason of `none` wins.

    Raises:
        ValueError: a reason outside the list; a certificate must not be issued under one.
    """
    given = set(reasons)
    unknown = given - set(MEANING)
    if unknown:
        raise ValueError(f"not reasons of a verdict: {sorted(unknown)}")
    if given & set(NONE):
        return "none"
    return "conditional" if given else "full"
