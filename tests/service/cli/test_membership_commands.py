"""`rldp admin`, `rldp people accept` and `approve` against a real socket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner, Result

from service.cli import app
from tests.service.cli.test_submit_commands import url
from tests.service.jobs.test_endpoints import Site, site

__all__ = ["site", "url"]  # fixtures


def rldp(url: str, *words: str, key: str = "", **more: str) -> Result:
    environment: Mapping[str, str] = {"RLDP_API_KEY": key, "RLDP_URL": url, "COLUMNS": "120"}
    return CliRunner().invoke(app, list(words), env=environment, **more)  # type: ignore[arg-type]


def invited(site: Site, url: str, role: str) -> tuple[str, str]:
    """Id and token, as the admin's command tells them."""
    done = rldp(url, "admin", "invite", role, key=site.keys["admin"])
    assert done.exit_code == 0, done.output
    return done.stderr.split(" ")[0], done.stdout.strip()


def test_an_invited_person_trades_the_token_for_a_key(site: Site, url: str) -> None:
    person, token = invited(site, url, "auditor")
    done = rldp(url, "people", "accept", input=f"{token}\n")
    assert done.exit_code == 0, done.output
    assert person in done.stderr and token not in done.output
    key = done.stdout.strip().splitlines()[-1]
    assert rldp(url, "ledger", "budgets", key=key).exit_code == 0
    used = rldp(url, "people", "accept", input=f"{token}\n")
    assert used.exit_code == 1 and "new invitation" in used.stderr


def test_a_steward_comes_in_with_anothers_signature(site: Site, url: str, tmp_path: Path) -> None:
    person, token = invited(site, url, "steward")
    (tmp_path / "token").write_text(token + "\n")
    own = tmp_path / "own.pem"
    accept = ("people", "accept", "--token-file", str(tmp_path / "token"))
    keyless = rldp(url, *accept)
    assert keyless.exit_code == 1 and "signing key" in keyless.stderr
    done = rldp(url, *accept, "--signing-key", str(own))
    assert done.exit_code == 0 and own.stat().st_mode & 0o777 == 0o600, done.output
    assert "has to sign for you" in done.stderr
    key = done.stdout.strip()
    assert rldp(url, "ledger", "budgets", key=key).exit_code == 1, "not in yet"

    public = done.stderr.split("whoever vouches for you: ")[1].split()[0]
    theirs = tmp_path / "theirs.pem"
    signer = site.world.stewards[site.world.proposer]
    theirs.write_bytes(
        signer.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    words = ("people", "approve", person, "--signing-key", str(theirs), "--public-key")
    other = rldp(url, *words, "0" * 64, key=site.keys["steward"])
    assert other.exit_code == 2 and "another key" in other.output
    done = rldp(url, *words, public, key=site.keys["steward"])
    assert done.exit_code == 0 and "active" in done.stdout, done.output
    assert rldp(url, "ledger", "budgets", key=key).exit_code == 0


@pytest.mark.parametrize("token", ["", "rldp_a_b", "enrol"])
def test_what_is_no_token_is_told_without_asking_the_service(token: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token)
    done = rldp("http://127.0.0.1:9", "people", "accept", "--token-file", str(tmp_path / "token"))
    assert done.exit_code == 2 and "no invitation's token" in done.output


def test_an_admin_lists_blocks_and_lets_in_again(site: Site, url: str) -> None:
    admin = site.keys["admin"]
    listed = rldp(url, "admin", "users", key=admin)
    people = [json.loads(line) for line in listed.stdout.splitlines()]
    auditor = next(person["id"] for person in people if person["role"] == "auditor")
    assert "is blocked" in rldp(url, "admin", "block", auditor, key=admin).stdout
    assert rldp(url, "ledger", "budgets", key=site.keys["auditor"]).exit_code == 1
    assert "is active" in rldp(url, "admin", "unblock", auditor, key=admin).stdout
    assert rldp(url, "ledger", "budgets", key=site.keys["auditor"]).exit_code == 0


def test_a_further_hospital_is_taken_in(site: Site, url: str) -> None:
    admin = site.keys["admin"]
    done = rldp(url, "admin", "add-hospital", key=admin)
    assert done.exit_code == 0, done.output
    accepted = rldp(url, "people", "accept", input=done.stdout.strip() + "\n")
    assert "(admin)" in accepted.stderr, accepted.output
    theirs = accepted.stdout.strip().splitlines()[-1]
    own = rldp(url, "admin", "hospitals", key=theirs).stdout.splitlines()
    all_of_them = rldp(url, "admin", "hospitals", key=admin).stdout.splitlines()
    assert len(own) == 1 and len(all_of_them) == 3, "the site has two of its own"
