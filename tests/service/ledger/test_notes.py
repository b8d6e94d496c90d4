"""Signed notes: foreign examples verify, ours read back, every change is seen (ledger.md 10)."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ledger import notes

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CHECKPOINT = notes.Checkpoint(origin="ledger.example/system", size=4190, root="ab" * 32)

# The example of golang.org/x/mod/sumdb/note, whose form C2SP signed-note took over.
FOREIGN_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
FOREIGN_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngot"
    "pRZb6KE6RyyBwJnAM=\n"
)


class TestForeignNote:
    def test_verifies_with_its_key(self) -> None:
        key = notes.parse_verifier_key(FOREIGN_KEY)
        assert notes.is_signed_by(notes.parse_note(FOREIGN_NOTE), key)

    def test_does_not_verify_when_changed(self) -> None:
        key = notes.parse_verifier_key(FOREIGN_KEY)
        changed = FOREIGN_NOTE.replace("cryptography", "Cryptography")
        assert not notes.is_signed_by(notes.parse_note(changed), key)


class TestCheckpoints:
    def test_read_back_as_written(self) -> None:
        note = notes.sign(CHECKPOINT.text, CHECKPOINT.origin, KEY)
        parsed = notes.parse_note(note.full)
        assert parsed == note
        assert notes.parse_checkpoint(parsed.text) == CHECKPOINT

    def test_verify_under_the_name_of_their_origin_only(self) -> None:
        note = notes.sign(CHECKPOINT.text, CHECKPOINT.origin, KEY)
        assert notes.is_signed_by(note, notes.public_key(CHECKPOINT.origin, notes.LOG_KEY, KEY))
        assert not notes.is_signed_by(note, notes.public_key("other", notes.LOG_KEY, KEY))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "origin\n1\n",
            "origin\n01\n" + "A" * 43 + "=\n",
            "origin\n-1\n" + "A" * 43 + "=\n",
            "origin\n1\nAAAA\n",
            "origin\n1\n" + "A" * 43 + "=\nextension\n",
            "origin\n1\n" + "A" * 42 + "B=\n",
            "\n1\n" + "A" * 43 + "=\n",
        ],
    )
    def test_other_forms_are_refused(self, text: str) -> None:
        with pytest.raises(notes.NoteInvalid):
            notes.parse_checkpoint(text)

    @pytest.mark.parametrize(
        "text", ["", "a\n", "a\n\n", "a\n\n— x\n", "a\n\nb\n", "a\n\n— x AA==\n"]
    )
    def test_what_is_no_note_is_refused(self, text: str) -> None:
        with pytest.raises(notes.NoteInvalid):
            notes.parse_note(text)


class TestCosignatures:
    def test_tell_when_the_witness_signed(self) -> None:
        key = notes.public_key("witness.example/w1", notes.COSIGNER_KEY, KEY)
        made = notes.cosign(CHECKPOINT.text, key.name, KEY, 1_700_000_000)
        (parsed,) = notes.parse_signatures(made.line)
        assert notes.cosigned_at(CHECKPOINT.text, [parsed], key) == 1_700_000_000

    def test_are_no_signatures_of_a_log_and_the_other_way_round(self) -> None:
        log = notes.public_key("x", notes.LOG_KEY, KEY)
        witness = notes.public_key("x", notes.COSIGNER_KEY, KEY)
        cosigned = notes.cosign(CHECKPOINT.text, "x", KEY, 5)
        signed = notes.sign(CHECKPOINT.text, "x", KEY)
        assert not notes.is_signed_by(notes.Note(text=CHECKPOINT.text, signatures=(cosigned,)), log)
        assert notes.cosigned_at(CHECKPOINT.text, signed.signatures, witness) is None

    @settings(deadline=None, max_examples=50)
    @given(place=st.integers(0, 71), bit=st.integers(0, 7))
    def test_every_changed_bit_is_seen(self, place: int, bit: int) -> None:
        key = notes.public_key("w", notes.COSIGNER_KEY, KEY)
        made = notes.cosign(CHECKPOINT.text, "w", KEY, 1_700_000_000)
        value = bytearray(made.value)
        value[place] ^= 1 << bit
        changed = notes.Signature(name="w", key_id=made.key_id, value=bytes(value))
        assert notes.cosigned_at(CHECKPOINT.text, [changed], key) is None


class TestVerifierKeys:
    def test_read_back_as_written(self) -> None:
        key = notes.public_key("witness.example/w1", notes.COSIGNER_KEY, KEY)
        assert notes.parse_verifier_key(key.text) == key

    @pytest.mark.parametrize("text", ["", "x", "x+00000000+AAAA", FOREIGN_KEY.replace("c7", "c8")])
    def test_other_texts_are_refused(self, text: str) -> None:
        with pytest.raises(notes.NoteInvalid):
            notes.parse_verifier_key(text)
