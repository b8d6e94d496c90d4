"""Tables of the ledger. Entries, postings and window settings can only be inserted."""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Text,
    event,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base

ID = String(40)
DIGEST = String(64)
NUMBER = String(32)  # a decimal, as text


class LogHead(Base):
    """The end of one append-only log. Locked last, held for the insert alone."""

    __tablename__ = "log_head"

    log_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    origin: Mapped[str] = mapped_column(String(128), unique=True)
    size: Mapped[int] = mapped_column(BigInteger)
    last_leaf: Mapped[str] = mapped_column(DIGEST)
    last_ts: Mapped[str] = mapped_column(String(17))
    frontier: Mapped[str] = mapped_column(Text)  # roots of full subtrees, hex, space between


class Entry(Base):
    """One fact. `body` holds the canonical bytes, never rebuilt; `leaf` is their hash.

    The other columns are copies for queries; fsck compares them with the body.
    """

    __tablename__ = "entry"
    __table_args__ = (
        Index("uq_entry_log_id_idem", "log_id", "idem", unique=True),
        Index("ix_entry_job_id_type", "job_id", "type"),
        Index("ix_entry_population_id_idx", "population_id", "idx"),
    )

    log_id: Mapped[str] = mapped_column(ForeignKey("log_head.log_id"), primary_key=True)
    idx: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(32))
    ts: Mapped[str] = mapped_column(String(17))
    actor: Mapped[str] = mapped_column(String(64))
    population_id: Mapped[str | None] = mapped_column(ForeignKey("population.id"))
    job_id: Mapped[str | None] = mapped_column(ID)
    idem: Mapped[str] = mapped_column(String(160))
    body: Mapped[str] = mapped_column(Text)
    leaf: Mapped[str] = mapped_column(DIGEST)


ACCOUNT_IN_USE = text("(balance_pico <> 0 OR kind <> 'escrow')")


class Account(Base):
    """One balance of one block of a population. Only issuance may be negative.

    `id` is `<population>/<name>`; `name` is what postings in bodies show: `spent`,
    `escrow:<job>`, and `validation/…` in front for the validation block.
    """

    __tablename__ = "account"
    __table_args__ = (
        CheckConstraint("balance_pico >= 0 OR kind = 'issuance'", name="not_overdrawn"),
        CheckConstraint("kind IN ('issuance', 'budget', 'escrow', 'spent')", name="kind"),
        CheckConstraint("(kind = 'escrow') = (job_id IS NOT NULL)", name="escrow_has_job"),
        Index("uq_account_population_id_name", "population_id", "name", unique=True),
        Index("ix_account_job_id", "job_id"),
        # an ended job's escrow stays at 0 for ever: balances must not read it again
        Index(
            "ix_account_population_id_in_use",
            "population_id",
            sqlite_where=ACCOUNT_IN_USE,
            postgresql_where=ACCOUNT_IN_USE,
        ),
    )

    id: Mapped[str] = mapped_column(String(120), primary_key=True)
    population_id: Mapped[str] = mapped_column(ForeignKey("population.id"))
    block: Mapped[str] = mapped_column(String(16))
    kind: Mapped[str] = mapped_column(String(16))
    job_id: Mapped[str | None] = mapped_column(ID)
    name: Mapped[str] = mapped_column(String(80))
    balance_pico: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(BigInteger)


class Posting(Base):
    """One movement of one entry. The postings of an entry sum to 0 per block."""

    __tablename__ = "posting"
    __table_args__ = (
        ForeignKeyConstraint(["log_id", "idx"], ["entry.log_id", "entry.idx"]),
        Index("ix_posting_account_id", "account_id"),
    )

    log_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    idx: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    account_id: Mapped[str] = mapped_column(ForeignKey("account.id"), primary_key=True)
    amount_pico: Mapped[int] = mapped_column(BigInteger)


class WindowSettings(Base):
    """Bounds and noise of a window, canonical, under their SHA-256 (ledger.md 6.2)."""

    __tablename__ = "window_settings"

    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    body: Mapped[str] = mapped_column(Text)


class Reservation(Base):
    """The escrow of one job with its own limit. Fixed mode counts steps, adaptive pico."""

    __tablename__ = "reservation"
    __table_args__ = (
        CheckConstraint("job_spent >= 0 AND job_spent <= job_limit", name="job_limit"),
        CheckConstraint("state IN ('open', 'settled')", name="state"),
        CheckConstraint("open_window IS NULL OR open_window < windows_charged", name="open_window"),
        CheckConstraint("(state = 'settled') = (settled_idx IS NOT NULL)", name="settled_idx"),
    )

    job_id: Mapped[str] = mapped_column(ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    population_id: Mapped[str] = mapped_column(ForeignKey("population.id"), index=True)
    log_id: Mapped[str] = mapped_column(ForeignKey("log_head.log_id"))
    reserved_idx: Mapped[int] = mapped_column(BigInteger)
    settled_idx: Mapped[int | None] = mapped_column(BigInteger)
    actor: Mapped[str] = mapped_column(String(64))
    plan_digest: Mapped[str] = mapped_column(DIGEST)
    mode: Mapped[str] = mapped_column(String(16))
    alpha_star: Mapped[int]
    alpha_job: Mapped[int | None]
    steps_per_window_max: Mapped[int]
    job_limit: Mapped[int] = mapped_column(BigInteger)
    job_spent: Mapped[int] = mapped_column(BigInteger)
    windows_charged: Mapped[int] = mapped_column(Integer)
    windows_done: Mapped[int] = mapped_column(Integer)
    windows_abandoned: Mapped[int] = mapped_column(Integer)
    open_window: Mapped[int | None]  # charged, neither done nor abandoned
    queries_charged: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))


class ReservationBlock(Base):
    """What one job may do in one block: rate, levels, steps. Price is the level's."""

    __tablename__ = "reservation_block"
    __table_args__ = (
        CheckConstraint("steps_started >= 0 AND steps_started <= steps_max", name="steps"),
        CheckConstraint("spent_pico >= 0 AND spent_pico <= reserved_pico", name="spent"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("reservation.job_id"), primary_key=True)
    block: Mapped[str] = mapped_column(String(16), primary_key=True)
    q: Mapped[str] = mapped_column(NUMBER)
    levels: Mapped[str] = mapped_column(Text)  # canonical JSON list
    steps_max: Mapped[int] = mapped_column(BigInteger)
    steps_started: Mapped[int] = mapped_column(BigInteger)
    reserved_pico: Mapped[int] = mapped_column(BigInteger)
    spent_pico: Mapped[int] = mapped_column(BigInteger)


TALLY_OPEN = text("folded = 0")


class SpendTally(Base):
    """Charged steps by rate and level, for "epsilon so far"; never used to decide.

    A settled job's rows are folded into `spend_curve`, so that the figure of a population
    costs as much after ten thousand jobs as after one; they stay for the job's own figure.
    """

    __tablename__ = "spend_tally"
    __table_args__ = (
        Index(
            "ix_spend_tally_open",
            "population_id",
            "block",
            sqlite_where=TALLY_OPEN,
            postgresql_where=TALLY_OPEN,
        ),
        CheckConstraint("steps > 0", name="steps"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("reservation.job_id"), primary_key=True)
    block: Mapped[str] = mapped_column(String(16), primary_key=True)
    q: Mapped[str] = mapped_column(NUMBER, primary_key=True)
    noise_multiplier: Mapped[str] = mapped_column(NUMBER, primary_key=True)
    population_id: Mapped[str] = mapped_column(ForeignKey("population.id"))
    steps: Mapped[int] = mapped_column(BigInteger)
    folded: Mapped[int] = mapped_column(Integer, server_default="0")


class SpendCurve(Base):
    """What the settled jobs of a block cost at each order 2..64, in pico; a report as well."""

    __tablename__ = "spend_curve"

    population_id: Mapped[str] = mapped_column(ForeignKey("population.id"), primary_key=True)
    block: Mapped[str] = mapped_column(String(16), primary_key=True)
    sums: Mapped[str] = mapped_column(Text)  # decimal, space between


class Attempt(Base):
    """One try of a worker. The epoch only grows and fences older tries (I7)."""

    __tablename__ = "attempt"

    job_id: Mapped[str] = mapped_column(ForeignKey("reservation.job_id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    worker_key: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[int] = mapped_column(BigInteger)
    ended_reason: Mapped[str | None] = mapped_column(String(64))


class BudgetGrant(Base):
    """A proposal to set the limit of a population, and what became of it."""

    __tablename__ = "budget_grant"
    __table_args__ = (
        CheckConstraint("state IN ('proposed', 'effective', 'rejected', 'expired')", name="state"),
        Index("ix_budget_grant_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    population_id: Mapped[str] = mapped_column(ForeignKey("population.id"), index=True)
    epsilon: Mapped[str] = mapped_column(NUMBER)
    delta: Mapped[str] = mapped_column(NUMBER)
    alpha_star: Mapped[int]
    limit_pico: Mapped[int] = mapped_column(BigInteger)  # of each block, after the grant
    limit_before_pico: Mapped[int] = mapped_column(BigInteger)
    reason_code: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(16))
    proposed_by: Mapped[str] = mapped_column(ForeignKey("principal.id"))
    log_id: Mapped[str] = mapped_column(ForeignKey("log_head.log_id"))
    idx: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)


class ReleaseRequest(Base):
    """A proposal to let one job's artifacts leave, and what became of it."""

    __tablename__ = "release_request"
    __table_args__ = (
        CheckConstraint(
            "state IN ('requested', 'published', 'rejected', 'expired', 'withdrawn')", name="state"
        ),
        Index("ix_release_request_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
        Index("ix_release_request_job_id", "job_id"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("reservation.job_id"))
    certificate_digest: Mapped[str] = mapped_column(DIGEST)
    artifacts: Mapped[str] = mapped_column(Text)  # canonical JSON: name -> sha256
    state: Mapped[str] = mapped_column(String(16))
    proposed_by: Mapped[str] = mapped_column(ForeignKey("principal.id"))
    log_id: Mapped[str] = mapped_column(ForeignKey("log_head.log_id"))
    idx: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)


class Approval(Base):
    """One steward's signed decision on the proposal at (log_id, idx)."""

    __tablename__ = "approval"
    __table_args__ = (
        CheckConstraint("decision IN ('approve', 'reject')", name="decision"),
        ForeignKeyConstraint(["log_id", "idx"], ["entry.log_id", "entry.idx"]),
    )

    log_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    idx: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    approver: Mapped[str] = mapped_column(ForeignKey("principal.id"), primary_key=True)
    decision: Mapped[str] = mapped_column(String(8))
    signature: Mapped[str] = mapped_column(String(88))  # base64
    created_at: Mapped[int] = mapped_column(BigInteger)


class TreeTile(Base):
    """256 neighbouring full subtrees of height 8*level; filled later, only speeds up proofs."""

    __tablename__ = "tile"

    log_id: Mapped[str] = mapped_column(ForeignKey("log_head.log_id"), primary_key=True)
    level: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hashes: Mapped[str] = mapped_column(Text)  # 256 in hex and their root, without a space


class SignedCheckpoint(Base):
    """Size and root of a log, signed. One per size; each extends the one before (I10)."""

    __tablename__ = "checkpoint"
    __table_args__ = (CheckConstraint("size > 0", name="size"),)

    log_id: Mapped[str] = mapped_column(ForeignKey("log_head.log_id"), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    root: Mapped[str] = mapped_column(DIGEST)
    note: Mapped[str] = mapped_column(Text)
    # Its entry in the system log of that time; a recovery begins another system log.
    system_idx: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)


class Cosignature(Base):
    """The newest statement of one witness about one checkpoint of the system log."""

    __tablename__ = "cosignature"
    __table_args__ = (
        ForeignKeyConstraint(["log_id", "size"], ["checkpoint.log_id", "checkpoint.size"]),
    )

    log_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    witness: Mapped[str] = mapped_column(String(255), primary_key=True)
    line: Mapped[str] = mapped_column(Text)
    signed_at: Mapped[int] = mapped_column(BigInteger)  # Unix seconds, by the witness's clock


class Anchor(Base):
    """An RFC 3161 time stamp of one checkpoint's text, by somebody else's clock (10.6)."""

    __tablename__ = "anchor"
    __table_args__ = (
        ForeignKeyConstraint(["log_id", "size"], ["checkpoint.log_id", "checkpoint.size"]),
    )

    log_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(Text)  # base64 of DER
    created_at: Mapped[int] = mapped_column(BigInteger)


class Disclosure(Base):
    """A personal value that an entry commits to, encrypted. Erased on a legal ground (18.2)."""

    __tablename__ = "disclosure"
    __table_args__ = (ForeignKeyConstraint(["log_id", "idx"], ["entry.log_id", "entry.idx"]),)

    log_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    idx: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    path: Mapped[str] = mapped_column(ID, primary_key=True)
    salt: Mapped[str] = mapped_column(String(32))
    value: Mapped[str] = mapped_column(Text)  # base64


class DisclosureKey(Base):
    """The key of one disclosure, wrapped. A table apart, so that old backups can do without."""

    __tablename__ = "disclosure_key"
    __table_args__ = (
        ForeignKeyConstraint(
            ["log_id", "idx", "path"], ["disclosure.log_id", "disclosure.idx", "disclosure.path"]
        ),
    )

    log_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    idx: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    path: Mapped[str] = mapped_column(ID, primary_key=True)
    wrapped: Mapped[str] = mapped_column(Text)  # base64


class LedgerGuard(Base):
    """Whether new reservations and charges are taken: one row, read in their transactions."""

    __tablename__ = "ledger_guard"
    __table_args__ = (
        CheckConstraint("id = 1", name="one_row"),
        CheckConstraint("(halted_reason IS NULL) = (halted_at IS NULL)", name="halted"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    quorum: Mapped[int]
    quorum_at: Mapped[int] = mapped_column(BigInteger)  # last time enough witnesses had signed
    quorum_size: Mapped[int | None] = mapped_column(BigInteger)  # the system log as they saw it
    halted_reason: Mapped[str | None] = mapped_column(String(40))
    halted_at: Mapped[int | None] = mapped_column(BigInteger)
    seen_size: Mapped[int | None] = mapped_column(BigInteger)  # of the system log, elsewhere


APPEND_ONLY = ("entry", "posting", "window_settings", "approval", "tile", "checkpoint", "anchor")


def append_only_statements(dialect: str, table: str) -> list[str]:
    """SQL that makes a table refuse every change of a row that stands."""
    if dialect == "sqlite":
        return [
            f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            for verb in ("UPDATE", "DELETE")
        ]
    return [
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$",
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()",
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()",
    ]


def _attach_triggers() -> None:
    for name in APPEND_ONLY:
        for dialect in ("sqlite", "postgresql"):
            for statement in append_only_statements(dialect, name):
                event.listen(
                    Base.metadata.tables[name],
                    "after_create",
                    DDL(  # type: ignore[no-untyped-call]
                        statement.replace("%", "%%")
                    ).execute_if(dialect=dialect),
                )


_attach_triggers()
