"""Errors of the ledger. Their texts hold ids and amounts, never data.

    LedgerError
    ├── LedgerNotFound            absent, or in a scope the caller may not see
    ├── BudgetExceeded            the reservation would pass the population's limit
    ├── PopulationNotGranted      no effective grant yet, or frozen
    ├── ReservationMismatch       a reservation that does not follow from its plan
    ├── IdempotencyConflict       same key, other content; nothing was written
    ├── StaleEpoch                a newer attempt owns the job
    ├── ReservationClosed         the job is settled
    ├── ChargeRefused             the charge leaves plan, order or escrow
    │   └── EscrowExhausted       the job's own limit or escrow is used up
    ├── ProposalInvalid           known fields, unacceptable values
    ├── ProposalClosed            decided, expired or overtaken by another grant
    ├── SelfApproval              approving one's own job
    ├── LedgerHalted              the log or its witnesses give cause to take nothing new
    │   ├── LogShrunk             a log no longer extends what was signed or witnessed
    │   └── KeySuperseded         this process holds a log key that was rotated out
    ├── KeysNotPinned             too few witnesses know the log's next key
    ├── DisclosuresUnavailable    the key that opens personal values is missing
    ├── NotAllowedToSign          the signer is no registered steward of the tenant
    ├── SignatureInvalid          the signature does not fit text and key
    └── StewardSignatureInvalid   the same, for the registration of a steward's key

`LedgerBroken` (an `InvariantViolation`) reports a broken promise of our own code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dp_core.errors import InvariantViolation


class LedgerError(Exception):
    """Root of the family."""


class LedgerNotFound(LedgerError):
    """The object is absent, or in a scope the caller may not see."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(f"No such {kind}.")


class BudgetExceeded(LedgerError):
    """The reservation would pass the population's limit. Nothing was reserved.

    `entry` is (log, idem) of the refusal once it is entered, `receipts` what its caller keeps.
    """

    entry: tuple[str, str] | None = None
    receipts: Sequence[Mapping[str, Any]] = ()

    def __init__(
        self, *, population_id: str, block: str, requested_pico: int, available_pico: int
    ) -> None:
        self.population_id = population_id
        self.block = block
        self.requested_pico = requested_pico
        self.available_pico = available_pico
        super().__init__(
            f"Population {population_id} has {available_pico} pico-RDP left in block {block} and "
            f"the job needs {requested_pico}. Lower the steps, raise the noise, or ask for a grant."
        )


class PopulationNotGranted(LedgerError):
    """The population has no effective grant, or takes no jobs."""

    def __init__(self, *, population_id: str, reason: str) -> None:
        self.population_id = population_id
        self.reason = reason
        super().__init__(f"Population {population_id}: {reason}. Ask its stewards for a grant.")


class ReservationMismatch(LedgerError):
    """The reservation does not follow from its plan, or the plan from the population."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(f"{field}: {problem}. Make a new plan from the population's settings.")


class IdempotencyConflict(LedgerError):
    """The key was used before with other content. Nothing was written."""

    def __init__(self, *, log_id: str, idem: str) -> None:
        self.log_id = log_id
        self.idem = idem
        super().__init__(f"Log {log_id} holds another entry under {idem}.")


class StaleEpoch(LedgerError):
    """A newer attempt owns the job; the caller must stop."""

    def __init__(self, *, job_id: str, epoch: int, latest: int) -> None:
        self.job_id = job_id
        self.epoch = epoch
        self.latest = latest
        super().__init__(f"Job {job_id} is at attempt {latest}; attempt {epoch} may not write.")


class ReservationClosed(LedgerError):
    """The job is settled; it can neither charge nor start."""

    def __init__(self, *, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"Job {job_id} is settled.")


class ChargeRefused(LedgerError):
    """The charge leaves its plan or comes out of order. Nothing was written."""

    def __init__(self, *, job_id: str, reason: str) -> None:
        self.job_id = job_id
        self.reason = reason
        super().__init__(f"Charge of job {job_id} refused: {reason}.")


class EscrowExhausted(ChargeRefused):
    """The job's own limit, its steps or its escrow is used up."""


class ProposalInvalid(LedgerError):
    """A known field has an unacceptable value."""

    def __init__(self, *, field: str, code: str, problem: str) -> None:
        self.field = field
        self.code = code
        self.problem = problem
        super().__init__(f"{field}: {problem}")


class ProposalClosed(LedgerError):
    """The proposal is decided, expired, or the state it was made for has changed."""

    def __init__(self, *, proposal_id: str, reason: str) -> None:
        self.proposal_id = proposal_id
        self.reason = reason
        super().__init__(f"{proposal_id}: {reason}.")


class SelfApproval(LedgerError):
    """Nobody approves the release of an own job."""

    def __init__(self, *, proposal_id: str) -> None:
        self.proposal_id = proposal_id
        super().__init__(f"{proposal_id}: the submitter of a job may not decide on its release.")


class DisclosuresUnavailable(LedgerError):
    """The deployment's key for personal values is missing or unusable. Nothing was written."""

    def __init__(self) -> None:
        super().__init__(
            "Personal values cannot be read or written: keys/disclosure.key is missing or "
            "unusable. Put the deployment's key there; without a justification, go on."
        )


class NotAllowedToSign(LedgerError):
    """The signer's key is not registered in the log of the tenant."""

    def __init__(self, *, approver: str) -> None:
        self.approver = approver
        super().__init__(f"{approver} has no steward key registered in this ledger.")


class SignatureInvalid(LedgerError):
    """The signature does not fit the text to sign and the registered key."""

    def __init__(self) -> None:
        super().__init__(
            "The signature does not fit. Sign the lines dp-ledger-approval/v1, origin, base64 "
            "leaf of the proposal, and the decision, with the registered Ed25519 key."
        )


class StewardSignatureInvalid(LedgerError):
    """A signature for a new steward does not fit the text to sign and the key."""

    def __init__(self) -> None:
        super().__init__(
            "The signature does not fit. Sign the lines dp-ledger-steward/v1, the new steward's "
            "id, and the new public key in hex; `rldp people approve` does it."
        )


class LedgerHalted(LedgerError):
    """Nothing new is reserved, and after a break nothing charged, until people have looked."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{message} GET /v1/ledger/anomalies says since when and why.")


class LogShrunk(LedgerHalted):
    """The log is shorter than, or differs from, what was signed or witnessed before (P14)."""

    def __init__(self, *, log_id: str, size: int, seen_size: int) -> None:
        self.log_id = log_id
        self.size = size
        self.seen_size = seen_size
        super().__init__(
            "log_shrunk",
            f"Log {log_id} with {size} entries does not extend the {seen_size} entries "
            "that were signed or witnessed before. Restore the newest backup.",
        )


class KeySuperseded(LedgerHalted):
    """The log names a newer key than the one this process holds; it may sign nothing."""

    def __init__(self) -> None:
        super().__init__(
            "key_superseded",
            "The log's key was rotated. Put the new key into keys/log.pem here as well.",
        )


class KeysNotPinned(LedgerError):
    """Checkpoints under the next key would find no quorum. Nothing was changed."""

    def __init__(self, *, known: int, quorum: int) -> None:
        self.known = known
        self.quorum = quorum
        super().__init__(
            f"{known} witnesses know the next key and {quorum} must. Have each run "
            "`rldp witness trust --rotation` with the statement, serve again, then repeat."
        )


class LedgerBroken(InvariantViolation):
    """The ledger contradicts itself: stop before anything is released."""


# Domain error -> (status, code); service/errors.py collects these tables.
ERROR_TABLE: dict[type[Exception], tuple[int, str]] = {
    LedgerNotFound: (404, "not_found"),
    BudgetExceeded: (403, "privacy_budget_exceeded"),
    PopulationNotGranted: (403, "privacy_budget_exceeded"),
    ReservationMismatch: (422, "plan_infeasible"),
    IdempotencyConflict: (409, "state_conflict"),
    StaleEpoch: (409, "state_conflict"),
    ReservationClosed: (409, "state_conflict"),
    ChargeRefused: (409, "state_conflict"),
    EscrowExhausted: (409, "state_conflict"),
    ProposalInvalid: (422, "field_invalid"),
    ProposalClosed: (409, "state_conflict"),
    SelfApproval: (403, "self_approval"),
    LedgerHalted: (503, "ledger_halted"),
    KeysNotPinned: (409, "state_conflict"),
    DisclosuresUnavailable: (503, "not_ready"),
    NotAllowedToSign: (403, "role_forbidden"),
    SignatureInvalid: (422, "field_invalid"),
    StewardSignatureInvalid: (422, "field_invalid"),
}
