"""One row: three forms to text, one unit, every fault found and none of them telling a value."""

from __future__ import annotations

from typing import Any

import pytest

from service.datasets.rows import Row, depth_exceeded, read_row

CANARY = "canary-2e90"


def read(record: dict[str, Any], unit_field: str | None = "patient_id") -> Row | None:
    return read_row(record, unit_field=unit_field, ordinal=4)[0]


def faults(record: dict[str, Any], unit_field: str | None = "patient_id") -> list[tuple[str, str]]:
    row, found = read_row(record, unit_field=unit_field, ordinal=4)
    assert row is None
    return [(fault.pointer, fault.code) for fault in found]


class TestForms:
    def test_text_stays_as_it_is(self) -> None:
        row = read({"patient_id": "p1", "text": "  A note.\n"})
        assert row == Row(raw_unit="p1", raw_text="  A note.\n")

    def test_prompt_and_completion_follow_each_other(self) -> None:
        row = read({"patient_id": "p1", "prompt": "Why?", "completion": "Because."})
        assert row is not None and row.raw_text == "Why?\nBecause."

    def test_an_empty_prompt_leaves_the_completion(self) -> None:
        row = read({"patient_id": "p1", "prompt": "", "completion": "Because."})
        assert row is not None and row.raw_text == "Because."

    def test_a_chat_names_who_speaks(self) -> None:
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Because."},
        ]
        row = read({"patient_id": "p1", "messages": messages})
        assert row is not None
        assert row.raw_text == "System: Be brief.\nUser: Why?\nAssistant: Because."

    def test_other_fields_are_not_kept(self) -> None:
        row = read({"patient_id": "p1", "text": "A note.", "ward": CANARY, "x": {"y": [CANARY]}})
        assert row == Row(raw_unit="p1", raw_text="A note.")


class TestUnit:
    def test_a_whole_number_is_the_same_unit_as_its_digits(self) -> None:
        first, second = (
            read({"patient_id": 12, "text": "a"}),
            read({"patient_id": "12", "text": "a"}),
        )
        assert first is not None and second is not None
        assert first.raw_unit == second.raw_unit == "12"

    def test_one_patient_spelled_twice_stays_one_unit(self) -> None:
        spellings = ("Mu\u0308ller-1", "M\u00fcller-1", " M\u00fcller-1\t")
        units = {r.raw_unit for s in spellings if (r := read({"patient_id": s, "text": "a"}))}
        assert units == {"M\u00fcller-1"}

    def test_without_a_unit_field_the_row_is_its_own_unit(self) -> None:
        row = read({"text": "a", "patient_id": "p1"}, unit_field=None)
        assert row is not None and row.raw_unit == "row-4"

    @pytest.mark.parametrize(
        ("value", "code"),
        [
            (None, "unit_missing"),
            ("", "unit_empty"),
            (" \u00a0", "unit_empty"),
            (True, "field_type"),
            (1.0, "field_type"),
            (["p1"], "field_type"),
            ("p" * 257, "field_type"),
        ],
    )
    def test_that_names_no_patient_is_refused(self, value: Any, code: str) -> None:
        assert faults({"patient_id": value, "text": "a"}) == [("/patient_id", code)]

    def test_a_unit_field_of_the_users_own_is_not_named(self) -> None:
        assert faults({"text": "a"}, unit_field=CANARY) == [("/*", "unit_missing")]


class TestFaults:
    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            ({}, ("/text", "field_missing")),
            ({"text": None}, ("/text", "field_missing")),
            ({"text": 5}, ("/text", "field_type")),
            ({"text": " "}, ("/text", "field_missing")),
            ({"prompt": "a"}, ("/completion", "field_missing")),
            ({"completion": "a"}, ("/prompt", "field_missing")),
            ({"prompt": "a", "completion": ""}, ("/completion", "field_missing")),
            ({"text": "a", "prompt": "b"}, ("", "columns_mismatch")),
            ({"messages": "a"}, ("/messages", "field_type")),
            ({"messages": []}, ("/messages", "messages_empty")),
            ({"messages": ["a"]}, ("/messages/0", "field_type")),
            (
                {"messages": [{"role": "user", "content": "a"}]},
                ("/messages", "no_assistant_turn"),
            ),
            (
                {"messages": [{"role": CANARY, "content": "a"}]},
                ("/messages/0/role", "role_invalid"),
            ),
            ({"messages": [{"role": "assistant"}]}, ("/messages/0/content", "field_missing")),
            (
                {"messages": [{"role": "assistant", "content": 1}]},
                ("/messages/0/content", "field_type"),
            ),
            ({"text": "half \ud83d a pair"}, ("", "utf8_invalid")),
        ],
    )
    def test_have_pointer_and_code(self, record: dict[str, Any], expected: tuple[str, str]) -> None:
        assert faults({"patient_id": "p1"} | record) == [expected]

    def test_of_one_row_are_all_found(self) -> None:
        messages = [{"role": "a", "content": "x"}, {"role": "user"}]
        assert faults({"messages": messages}) == [
            ("/messages/0/role", "role_invalid"),
            ("/messages/1/content", "field_missing"),
            ("/patient_id", "unit_missing"),
        ]

    def test_never_hold_what_stood_there(self) -> None:
        record = {CANARY: CANARY, "text": [CANARY], "patient_id": {CANARY: CANARY}}
        _, found = read_row(record, unit_field="patient_id", ordinal=1)
        assert found and CANARY not in repr(found)


class TestDepth:
    @pytest.mark.parametrize(("levels", "exceeded"), [(16, False), (17, True)])
    def test_is_limited_to_16(self, levels: int, exceeded: bool) -> None:
        value: Any = "leaf"
        for index in range(levels):
            value = [value] if index % 2 else {"a": value, "b": 1}
        assert depth_exceeded(value) is exceeded
