"""Settings refuse a layout that would not keep its promise."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


@pytest.mark.parametrize("url", ["", "sqlite:///service.db"])
def test_production_refuses_sqlite(url: str) -> None:
    with pytest.raises(ValidationError, match="RLDP_DATABASE_URL"):
        Settings(environment="production", database_url=url, witnesses=Path("w"), witness_quorum=1)


def test_production_takes_postgresql_and_embedded_needs_nothing() -> None:
    url = "postgresql+psycopg://db/rldp"
    production = Settings(
        environment="production", database_url=url, witnesses=Path("w"), witness_quorum=1
    )
    assert production.resolved_database_url == url
    assert Settings().resolved_database_url.startswith("sqlite:///")


def test_what_the_operator_sets_for_speed_reaches_the_trainer() -> None:
    from service.worker.inputs import performance_of

    chosen = performance_of(
        Settings(microbatch_patients=3, base_dtype="bfloat16", checkpointing="non_reentrant")
    )
    assert chosen.patients_per_microbatch == 3
    assert (chosen.base_dtype, chosen.checkpointing) == ("bfloat16", "non_reentrant")
    assert (chosen.engine, chosen.autocast) == ("one_backward", False)


def test_production_refuses_a_log_that_nobody_else_watches() -> None:
    url = "postgresql+psycopg://db/rldp"
    with pytest.raises(ValidationError, match="RLDP_WITNESS_QUORUM"):
        Settings(environment="production", database_url=url)


def test_a_quorum_needs_witnesses() -> None:
    with pytest.raises(ValidationError, match="RLDP_WITNESSES"):
        Settings(witness_quorum=1)


def test_keys_lie_with_the_data_or_where_they_are_mounted() -> None:
    assert Settings(data_dir=Path("d")).keys_dir == Path("d/keys")
    assert Settings(data_dir=Path("d"), keys_folder=Path("mounted")).keys_dir == Path("mounted")
