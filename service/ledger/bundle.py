"""Exports a log for auditors: entries as rows, CSV or JSONL, and the bundle (ledger.md 11).

The bytes of entries, settings and certificates leave exactly as they were stored.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import sys
import tempfile
import zipfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from service.certificates.envelope import envelope_of
from service.certificates.models import Certificate
from service.ledger import anchors, disclosures, merkle, receipts, repository
from service.ledger.disclosures import Vault
from service.ledger.entry_types import COMMITTING
from service.ledger.errors import LedgerNotFound
from service.ledger.evidence import evidence_of
from service.ledger.keys import LedgerKeys
from service.ledger.models import Account, Entry, LogHead, Posting, WindowSettings
from service.ledger.standing import Standing

FORMAT = "dp-ledger-bundle/1"
SPOOL_BYTES = 16 * 1024 * 1024
ROWS_PER_FETCH = 2000
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # equal logs give equal archives
CSV_HEADER = "idx,time,type,job,epoch,window,first_step,steps,q,level,charge_pico,escrow_left_pico"


def write_bundle(
    session: Session,
    *,
    keys: LedgerKeys,
    tenant_id: str,
    log_id: str | None = None,
    size: int | None = None,
    since: int | None = None,
    system_since: int | None = None,
    vault: Vault | None = None,
) -> IO[bytes]:
    """The bundle as an open temporary file, positioned at its start.

    It reaches to the newest signed checkpoint, or to the one of `size` entries; `since`
    adds proofs that the log extends its checkpoint of that size, and the system log its
    own of `system_since` entries. A `vault` is given for callers who may read the personal
    values that entries commit to.

    Raises:
        LedgerNotFound: the tenant has no such log, or the log no such checkpoint.
    """
    head = repository.head_of(session, tenant_id, log_id)
    if head is None:
        raise LedgerNotFound("log")
    evidence = evidence_of(session, head.log_id, size=size, since=since, system_since=system_since)
    spool = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - given away open
    with zipfile.ZipFile(spool, "w", zipfile.ZIP_DEFLATED) as archive:
        writer = _Writer(archive)
        told = _write_entries(session, writer, head, evidence.size)
        writer.lines("settings.jsonl", _settings(session, list(told.settings)))
        for name, content in evidence.files.items():
            writer.text(name, content)
        for name, token in anchors.tokens(session, head.log_id, evidence.size).items():
            writer.raw(name, token)
        if vault is not None and told.commits:
            disclosed = disclosures.read(session, vault, head.log_id, size=evidence.size)
            writer.lines("disclosures.jsonl", (one.line for one in disclosed))
        for certificate in _certificates(session, told.settled):
            name = f"certificates/{certificate.job_id}.dsse.json"
            writer.lines(name, [envelope_of(certificate, keys).decode()])
        for job_id in told.receipted:
            writer.lines(f"receipts/{job_id}.txt", _receipts(keys, head, told, job_id))
        manifest = {
            "files": writer.digests,
            "format": FORMAT,
            "log": head.log_id,
            "origin": head.origin,
            "root": merkle.root_of_leaves(told.leaves),
            "size": len(told.leaves),
        }
        archive.writestr(_info("manifest.json"), json.dumps(manifest, sort_keys=True, indent=1))
    spool.seek(0)
    return spool


class _Writer:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.digests: dict[str, str] = {}

    def lines(self, name: str, lines: Iterable[str]) -> None:
        digest = hashlib.sha256()
        with self.archive.open(_info(name), "w") as target:
            for line in lines:
                raw = line.encode() + b"\n"
                digest.update(raw)
                target.write(raw)
        self.digests[name] = digest.hexdigest()

    def text(self, name: str, content: str) -> None:
        self.raw(name, content.encode())

    def raw(self, name: str, raw: bytes) -> None:
        self.archive.writestr(_info(name), raw)
        self.digests[name] = hashlib.sha256(raw).hexdigest()


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, FIXED_TIME)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _entries(
    session: Session, log_id: str, size: int
) -> Iterator[Row[str, str, str, str | None, str]]:
    """The first entries of a log, so many rows at a time: they never change, so no cursor stays."""
    columns = select(Entry.body, Entry.leaf, Entry.type, Entry.job_id, Entry.ts)
    for first in range(0, size, ROWS_PER_FETCH):
        end = min(first + ROWS_PER_FETCH, size)
        piece = columns.where(Entry.log_id == log_id, Entry.idx >= first, Entry.idx < end)
        yield from session.execute(piece.order_by(Entry.idx))


@dataclass
class _Told:
    """What the entries of a bundle name, gathered while they are written."""

    leaves: list[str] = field(default_factory=list)
    settings: dict[str, None] = field(default_factory=dict)  # digests, in order
    settled: list[str] = field(default_factory=list)
    receipted: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # job: idx, ts
    commits: bool = False  # whether an entry commits to a personal value


def _write_entries(session: Session, writer: _Writer, head: LogHead, size: int) -> _Told:
    told = _Told()

    def bodies() -> Iterable[str]:
        entries = _entries(session, head.log_id, size)
        for idx, (body, leaf, kind, job_id, ts) in enumerate(entries):
            told.leaves.append(leaf)
            if kind == "window.charge":
                told.settings[json.loads(body)["data"]["settings"]] = None
            if kind in COMMITTING:
                told.commits = told.commits or "disclosed" in json.loads(body)["data"]
            if kind == "settle" and job_id is not None:
                told.settled.append(job_id)
            if kind in receipts.RECEIPTED and job_id is not None:
                told.receipted.setdefault(job_id, []).append((idx, sys.intern(ts)))
            yield body

    writer.lines("entries.jsonl", bodies())
    return told


def _settings(session: Session, digests: Sequence[str]) -> Iterable[str]:
    for start in range(0, len(digests), ROWS_PER_FETCH):
        part = digests[start : start + ROWS_PER_FETCH]
        rows = session.execute(
            select(WindowSettings.digest, WindowSettings.body).where(
                WindowSettings.digest.in_(part)
            )
        )
        found = {row.digest: row.body for row in rows}
        yield from (found[digest] for digest in part if digest in found)


def _certificates(session: Session, jobs: Sequence[str]) -> Iterable[Certificate]:
    for job_id in jobs:
        found = session.get(Certificate, job_id)
        if found is not None:
            yield found


def _receipts(keys: LedgerKeys, head: LogHead, told: _Told, job_id: str) -> Iterable[str]:
    """One receipt a line, in base64: index first, so that a reader can look for one."""
    for idx, ts in told.receipted[job_id]:
        note = receipts.receipt_of(keys, origin=head.origin, idx=idx, leaf=told.leaves[idx], ts=ts)
        yield f"{idx} {base64.b64encode(note.full.encode()).decode()}"


def entry_to_dict(entry: Entry, standing: Standing) -> dict[str, Any]:
    """An entry as the API shows it: its place, its state, and its body."""
    return {
        "id": f"{entry.log_id}#{entry.idx}",
        "object": "ledger.entry",
        "leaf": entry.leaf,
        "state": standing.state_of(entry.idx),
        "entry": json.loads(entry.body),
    }


def entries_jsonl(entries: Sequence[Entry]) -> str:
    """The exact bodies, one per line."""
    return "".join(f"{entry.body}\n" for entry in entries)


def entries_csv(session: Session, entries: Sequence[Entry]) -> str:
    """One row per entry in the columns of ledger.md 13."""
    escrows = _Escrows(session, entries)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(CSV_HEADER.split(","))
    for entry in entries:
        data = json.loads(entry.body)["data"]
        block = data.get("block", "train") if entry.type == "query.charge" else "train"
        row: list[Any] = [entry.idx, entry.ts, entry.type, entry.job_id]
        row += [data.get(key) for key in ("epoch", "window", "first_step")]
        row += [data.get("steps", data.get("steps_run")), data.get("q"), data.get("level")]
        row += [data.get("charge", "0"), escrows.left(entry, block)]
        table.writerow(["" if value is None else value for value in row])
    return text.getvalue()


class _Escrows:
    """Escrow left of each job after an index, from the postings."""

    def __init__(self, session: Session, entries: Sequence[Entry]) -> None:
        jobs = {entry.job_id for entry in entries if entry.job_id is not None}
        rows = session.execute(
            select(Account.job_id, Account.block, Posting.idx, Posting.amount_pico)
            .join(Account, Account.id == Posting.account_id)
            .where(Account.kind == "escrow", Account.job_id.in_(jobs))
            .order_by(Posting.log_id, Posting.idx)
        )
        self.points: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        for job_id, block, idx, amount in rows:
            indexes, totals = self.points.setdefault((str(job_id), block), ([], []))
            indexes.append(idx)
            totals.append((totals[-1] if totals else 0) + amount)

    def left(self, entry: Entry, block: str) -> int | None:
        points = self.points.get((str(entry.job_id), block))
        if points is None:
            return None
        place = bisect_right(points[0], entry.idx)
        return points[1][place - 1] if place else 0
