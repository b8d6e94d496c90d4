"""One typed settings class, read once from the environment and passed on by argument."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Environment variables carry the prefix `RLDP_`, for example `RLDP_BIND`.

    Every field is explained in the README's settings table, which a test compares
    with this class.
    """

    model_config = SettingsConfigDict(env_prefix="RLDP_", extra="ignore")

    environment: Literal["embedded", "production"] = "embedded"
    bind: str = "127.0.0.1:8080"
    data_dir: Path = Path(".rldp")
    database_url: str = ""
    broker_url: str = ""
    models_dir: Path | None = None
    lease_seconds: int = Field(default=60, ge=4)
    poll_seconds: float = Field(default=30, gt=0)
    stall_seconds: int = Field(default=900, ge=1)
    attempts_max: int = Field(default=5, ge=1)
    cancel_grace_seconds: float = Field(default=8, gt=0)
    microbatch_patients: int = Field(default=8, ge=1)
    base_dtype: Literal["float32", "bfloat16", "8bit", "4bit"] = "float32"
    checkpointing: Literal["off", "reentrant", "non_reentrant"] = "off"
    autocast: bool = False
    device_gflops: float = Field(default=50, gt=0, allow_inf_nan=False)
    upload_bytes_max: int = Field(default=512 * 1024 * 1024, ge=1)
    witnesses: Path | None = None
    witness_quorum: int = Field(default=0, ge=0)
    tsa_url: str = Field(default="", pattern=r"^(https?://.+)?$")
    tsa_certificates: Path | None = None

    @model_validator(mode="after")
    def _production_has_a_server(self) -> Settings:
        """On SQLite whoever owns the file owns the ledger; that is for one machine only."""
        if self.environment == "production" and not self.database_url.startswith("postgresql"):
            raise ValueError("RLDP_ENVIRONMENT=production needs RLDP_DATABASE_URL on PostgreSQL.")
        return self

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> Settings:
        """Whoever owns the database can rewrite it; in production somebody else must watch."""
        if self.environment == "production" and self.witness_quorum < 1:
            raise ValueError("RLDP_ENVIRONMENT=production needs RLDP_WITNESS_QUORUM of at least 1.")
        if self.witness_quorum > 0 and self.witnesses is None:
            raise ValueError("RLDP_WITNESS_QUORUM needs RLDP_WITNESSES, a file of witnesses.")
        return self

    @model_validator(mode="after")
    def _stamps_can_be_checked(self) -> Settings:
        """A time stamp that nobody can check is no evidence."""
        if self.tsa_url and self.tsa_certificates is None:
            raise ValueError("RLDP_TSA_URL needs RLDP_TSA_CERTIFICATES, the authority's PEM file.")
        return self

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'service.db'}"

    @property
    def resolved_broker_url(self) -> str:
        return self.broker_url or "filesystem://"

    @property
    def files_dir(self) -> Path:
        return self.data_dir / "files"

    @property
    def jobs_dir(self) -> Path:
        return self.data_dir / "jobs"

    @property
    def keys_dir(self) -> Path:
        return self.data_dir / "keys"
