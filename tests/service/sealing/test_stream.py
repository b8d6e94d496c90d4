"""The seal of one file: what is read back, and what is found of everything done to it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.sealing.errors import KeyDestroyed, SealBroken
from service.sealing.files import FileKey, SealedFile, StoredFile, write_sealed
from service.sealing.stream import (
    MAGIC,
    SEGMENT_BYTES,
    TAG_BYTES,
    SealedReader,
    SealingWriter,
)

KEY = bytes(range(32))
STEP = SEGMENT_BYTES + TAG_BYTES
SIZES = (0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES, 200_001)


def sealed(
    content: bytes, *, key: bytes = KEY, key_id: str = "dsv_1", label: str = "rows"
) -> bytes:
    target = io.BytesIO()
    writer = SealingWriter(target, key, key_id=key_id, label=label)
    for start in range(0, len(content), 50_000):
        writer.write(content[start : start + 50_000])
    writer.finish()
    return target.getvalue()


def opened(
    raw: bytes, *, key: bytes = KEY, key_id: str = "dsv_1", label: str = "rows"
) -> io.BufferedReader:
    return io.BufferedReader(SealedReader(io.BytesIO(raw), key, key_id=key_id, label=label))


def header_bytes(raw: bytes) -> int:
    return len(MAGIC) + 1 + raw[len(MAGIC)] + 32 + 7


class TestReading:
    @pytest.mark.parametrize("size", SIZES)
    def test_gives_back_what_was_written(self, size: int) -> None:
        content = os.urandom(size)
        raw = sealed(content)
        assert opened(raw).read() == content
        assert content[:64] not in raw or size < 4

    @settings(max_examples=30)
    @given(st.lists(st.tuples(st.integers(0, 150_000), st.integers(0, 70_000)), max_size=6))
    def test_from_any_place(self, looks: list[tuple[int, int]]) -> None:
        reader = opened(LONG_SEALED)
        for start, length in looks:
            reader.seek(start)
            assert reader.read(length) == LONG[start : start + length]

    def test_lines_come_one_by_one(self) -> None:
        content = b"".join(b"%d\n" % n for n in range(30_000))
        assert list(opened(sealed(content))) == content.splitlines(keepends=True)

    def test_two_files_of_one_content_share_nothing_behind_the_name(self) -> None:
        one, two = sealed(b"x" * 1000), sealed(b"x" * 1000)
        start = header_bytes(one) - 39
        assert one[:start] == two[:start]
        assert not any(one[i : i + 16] in two for i in range(start, len(one) - 16))


LONG = os.urandom(3 * SEGMENT_BYTES + 10)
LONG_SEALED = sealed(LONG)
HEADER = header_bytes(LONG_SEALED)


def segment(n: int) -> slice:
    return slice(HEADER + n * STEP, HEADER + (n + 1) * STEP)


def swapped(raw: bytes) -> bytes:
    return raw[:HEADER] + raw[segment(1)] + raw[segment(0)] + raw[HEADER + 2 * STEP :]


TAMPERED = {
    "cut within a segment": LONG_SEALED[:-1],
    "cut between segments": LONG_SEALED[: HEADER + 3 * STEP],
    "cut to nothing": LONG_SEALED[:HEADER],
    "cut within the header": LONG_SEALED[: HEADER - 1],
    "empty": b"",
    "grown": LONG_SEALED + b"\0",
    "grown by a segment of its own": LONG_SEALED[: HEADER + STEP] + LONG_SEALED[HEADER:],
    "segments swapped": swapped(LONG_SEALED),
    "a segment left out": LONG_SEALED[:HEADER] + LONG_SEALED[HEADER + STEP :],
    "a segment of a file under the same key": (
        LONG_SEALED[:HEADER] + sealed(LONG)[segment(0)] + LONG_SEALED[HEADER + STEP :]
    ),
    "the header of a file under the same key": sealed(LONG)[:HEADER] + LONG_SEALED[HEADER:],
    "another version": LONG_SEALED[:8] + b"\x02" + LONG_SEALED[9:],
}


class TestTampering:
    @pytest.mark.parametrize("name", sorted(TAMPERED))
    def test_is_found_and_nothing_of_it_is_returned(self, name: str) -> None:
        with pytest.raises(SealBroken):
            opened(TAMPERED[name]).read()

    @settings(max_examples=40)
    @given(st.integers(0, len(LONG_SEALED) * 8 - 1))
    def test_of_any_bit_is_found(self, bit: int) -> None:
        raw = bytearray(LONG_SEALED)
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            opened(bytes(raw)).read()

    @pytest.mark.parametrize("given", [{"key": b"k" * 32}, {"key_id": "dsv_2"}, {"label": "spool"}])
    def test_another_key_owner_or_place_opens_nothing(self, given: dict[str, object]) -> None:
        with pytest.raises(SealBroken):
            opened(LONG_SEALED, **given)  # type: ignore[arg-type]

    def test_its_error_tells_nothing_of_the_file(self) -> None:
        with pytest.raises(SealBroken) as caught:
            opened(sealed(b"SECRETNOTE")[:-1])
        assert "SECRETNOTE" not in repr(caught.value) and "dsv" not in repr(caught.value)
        assert caught.value.__cause__ is None


class TestFiles:
    def key(self, label: str = "rows") -> FileKey:
        return FileKey(owner_id="dsv_1", label=label, secret=KEY)

    def test_are_closed_to_others_and_hold_no_plaintext(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        write_sealed(path, b"SECRETNOTE" * 20_000, self.key())
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"SECRETNOTE" not in path.read_bytes()
        with StoredFile(path=path, key=self.key()).open() as stream:
            assert stream.read() == b"SECRETNOTE" * 20_000
        assert "SECRET" not in repr(self.key()) and KEY.hex() not in repr(self.key())

    def test_in_clear_are_read_without_a_key_and_refused_with_one(self, tmp_path: Path) -> None:
        """Else whoever can write to the volume could replace a sealed file by one of theirs."""
        path = tmp_path / "f"
        path.write_bytes(b"from before")
        with StoredFile(path=path, key=None).open() as stream:
            assert stream.read() == b"from before"
        with pytest.raises(SealBroken):
            StoredFile(path=path, key=self.key()).open()
        with StoredFile(path=path, key=self.key(), may_be_clear=True).open() as stream:
            assert stream.read() == b"from before"

    def test_that_are_sealed_tell_without_a_key_that_it_is_gone(self, tmp_path: Path) -> None:
        write_sealed(tmp_path / "f", b"x", self.key())
        with pytest.raises(KeyDestroyed):
            StoredFile(path=tmp_path / "f", key=None, may_be_clear=True).open()

    def test_one_that_was_not_finished_reads_as_cut_short(self, tmp_path: Path) -> None:
        file = SealedFile(tmp_path / "f", self.key())
        file.write(b"x" * 3 * SEGMENT_BYTES)
        file._stream.close()
        with pytest.raises(SealBroken):
            file.stored.open()

    def test_a_write_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        taken = tmp_path / "f"
        with pytest.raises(TypeError):
            write_sealed(taken, "no bytes", self.key())  # type: ignore[arg-type]
        assert not taken.exists()
