"""A witness's folder: made once, one name, one key per log; the commands over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from service.cli import app
from service.ledger import notes
from service.witness import folder as folders

LOG = notes.public_key("rldp.local/system/x", notes.LOG_KEY, Ed25519PrivateKey.generate())


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["witness", *arguments])
    return done.exit_code, done.output + (done.stderr or "")


def test_the_key_is_made_once_and_printed(tmp_path: Path) -> None:
    first = run("init", "--dir", str(tmp_path / "w"), "--name", "example.org/w1")
    assert first[0] == 0 and first == run(
        "init", "--dir", str(tmp_path / "w"), "--name", "example.org/w1"
    )
    key = notes.parse_verifier_key(first[1])
    assert folders.open_witness(tmp_path / "w").verifier_key == key
    assert (tmp_path / "w" / "witness.pem").stat().st_mode & 0o777 == 0o600


def test_another_name_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    folders.prepare(tmp_path, "example.org/w1")
    assert run("init", "--dir", str(tmp_path), "--name", "example.org/w2")[0] != 0


def test_a_log_is_trusted_once_and_never_under_a_second_key(tmp_path: Path) -> None:
    folders.prepare(tmp_path, "w")
    for _ in range(2):
        assert run("trust", "--dir", str(tmp_path), LOG.text) == (0, f"Watching {LOG.name}.\n")
    assert folders.open_witness(tmp_path).logs == [LOG]
    other = notes.public_key(LOG.name, notes.LOG_KEY, Ed25519PrivateKey.generate())
    assert run("trust", "--dir", str(tmp_path), other.text)[0] != 0


@pytest.mark.parametrize(
    "vkey", ["nonsense", notes.VerifierKey(name="w", kind=4, public=b"k" * 32).text]
)
def test_what_is_no_logs_key_is_refused(tmp_path: Path, vkey: str) -> None:
    folders.prepare(tmp_path, "w")
    with pytest.raises(folders.WitnessFolderInvalid):
        folders.trust(tmp_path, vkey)


def test_serving_needs_a_prepared_folder(tmp_path: Path) -> None:
    code, text = run("serve", "--dir", str(tmp_path))
    assert code != 0 and "witness init" in text
