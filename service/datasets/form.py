"""Reads a multipart upload as it arrives: the file to disk, the few fields to memory.

The framework's own form parser would put the patients' rows into the system's temporary
folder first; here they touch only a sealed file in the service's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from service.errors import (
    BodyTooLarge,
    FieldInvalid,
    MalformedRequest,
    ServiceError,
    UnknownField,
)
from service.field_faults import nearest_field
from service.sealing.files import SealedFile

FILE_FIELD = "file"
TEXT_FIELDS = frozenset(
    {
        "purpose",
        "dataset",
        "privacy[unit_field]",
        "expires_after[anchor]",
        "expires_after[seconds]",
    }
)
FIELD_BYTES_MAX = 4096
HEADER_BYTES_MAX = 8192
PARTS_MAX = 16
FILENAME_LENGTH_MAX = 255


@dataclass(frozen=True, kw_only=True)
class UploadForm:
    """The fields around an uploaded file."""

    filename: str
    fields: Mapping[str, str]


async def receive_form(
    request: Request,
    writer: SealedFile,
    *,
    bytes_max: int,
    extra_fields: frozenset[str] = frozenset(),
) -> UploadForm:
    """Streams the file part into `writer` and returns the other fields.

    `extra_fields` are those that a page's form has beside the API's. The body is read to
    its end even when it is refused, so that the answer can reach a client that is still
    sending.

    Raises:
        MalformedRequest, UnknownField, FieldInvalid, BodyTooLarge.
    """
    parts = _Parts(bytes_max, TEXT_FIELDS | extra_fields)
    try:
        _, options = parse_options_header(request.headers.get("content-type", ""))
        parser = MultipartParser(options[b"boundary"], parts.callbacks())
        async for chunk in request.stream():
            if chunk and parts.refusal is None:
                parser.write(chunk)
                await run_in_threadpool(writer.write, parts.take_file_bytes())
        if parts.refusal is None:
            parser.finalize()
    except (KeyError, FormParserError, UnicodeDecodeError):
        raise MalformedRequest("The multipart body cannot be read.") from None
    if parts.refusal is not None:
        raise parts.refusal
    await run_in_threadpool(writer.finish)
    return parts.form()


class _Parts:
    """Receives the parser's callbacks. The first refusal ends the work, not the reading."""

    def __init__(self, bytes_max: int, text_fields: frozenset[str]) -> None:
        self.refusal: ServiceError | None = None
        self._text_fields = text_fields
        self._bytes_max = bytes_max
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._file_bytes = bytearray()
        self._file_size = 0
        self._parts = 0
        self._begin()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
        }

    def take_file_bytes(self) -> bytes:
        taken = bytes(self._file_bytes)
        self._file_bytes.clear()
        return taken

    def form(self) -> UploadForm:
        if self._filename is None:
            raise FieldInvalid(FILE_FIELD, "The field is required.")
        return UploadForm(filename=self._filename, fields=self._fields)

    def _begin(self) -> None:
        self._name = ""
        self._value = bytearray()
        self._header_name = bytearray()
        self._header_text = bytearray()
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_text += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header_name) + len(self._header_text) > HEADER_BYTES_MAX:
            self._refuse(MalformedRequest("A part of the form has too long headers."))

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_text)
        self._header_name.clear()
        self._header_text.clear()

    def _headers_finished(self) -> None:
        self._parts += 1
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._parts > PARTS_MAX:
            self._refuse(MalformedRequest("The form has too many parts."))
        elif self._name == FILE_FIELD and self._filename is None:
            self._filename = _clean_filename(options.get(b"filename", b""))
        elif self._name == FILE_FIELD or self._name in self._fields:
            self._refuse(MalformedRequest("The form holds a field twice."))
        elif self._name not in self._text_fields:
            nearest = nearest_field(self._name, TEXT_FIELDS | {FILE_FIELD})
            self._refuse(UnknownField(pointer="/*", nearest=nearest))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self.refusal is not None:
            return
        if self._name == FILE_FIELD:
            self._file_size += end - start
            if self._file_size > self._bytes_max:
                self._refuse(BodyTooLarge(self._bytes_max))
            else:
                self._file_bytes += data[start:end]
        elif len(self._value) + end - start > FIELD_BYTES_MAX:
            self._refuse(FieldInvalid(self._name, "The text is too long."))
        else:
            self._value += data[start:end]

    def _end(self) -> None:
        if self.refusal is not None or self._name == FILE_FIELD:
            return
        text = self._value.decode(errors="replace")
        if "\0" in text or "\ufffd" in text:
            self._refuse(FieldInvalid(self._name, "The value is not plain UTF-8 text."))
        self._fields[self._name] = text

    def _refuse(self, refusal: ServiceError) -> None:
        if self.refusal is None:
            self.refusal = refusal
        self._file_bytes.clear()


def _clean_filename(raw: bytes) -> str:
    """The user's name for the file: its last part, printable, never used as a path."""
    name = raw.decode(errors="replace").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in name if c.isprintable())[:FILENAME_LENGTH_MAX] or "file"
