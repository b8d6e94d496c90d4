"""One typed settings class, read once from the environment and passed on by argument."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

TOKEN_ALGORITHMS = frozenset({"RS256", "ES256", "EdDSA"})


class Settings(BaseSettings):
    """Environment variables carry the prefix `RLDP_`, for example `RLDP_BIND`.

    Every field is explained in the README's settings table, which a test compares
    with this class.
    """

    model_config = SettingsConfigDict(env_prefix="RLDP_", extra="ignore")

    environment: Literal["embedded", "production"] = "embedded"
    bind: str = "127.0.0.1:8080"
    data_dir: Path = Path(".rldp")
    keys_folder: Path | None = None
    database_url: str = ""
    broker_url: str = ""
    models_dir: Path | None = None
    lease_seconds: int = Field(default=60, ge=4)
    poll_seconds: float = Field(default=30, gt=0)
    stall_seconds: int = Field(default=900, ge=1)
    attempts_max: int = Field(default=5, ge=1)
    cancel_grace_seconds: float = Field(default=8, gt=0)
    leave_seconds: float = Field(default=6, ge=0, le=3600)
    microbatch_patients: int = Field(default=8, ge=1)
    base_dtype: Literal["float32", "bfloat16", "8bit", "4bit"] = "float32"
    checkpointing: Literal["off", "reentrant", "non_reentrant"] = "off"
    autocast: bool = False
    audit_in_job: bool = True
    audit_text_canaries: bool = True
    audit_controls: bool = True
    image_digest: str = Field(default="", pattern=r"^(sha256:[0-9a-f]{64})?$")
    processes_per_job: int = Field(default=1, ge=1, le=64)
    hosts_per_job: int = Field(default=1, ge=1, le=64)
    host_rank: int = Field(default=0, ge=0)
    rendezvous: str = Field(default="", pattern=r"^([^\s:/]+:[0-9]{1,5})?$")
    device_gflops: float = Field(default=50, gt=0, allow_inf_nan=False)
    device_memory_gib: float = Field(default=0, ge=0, allow_inf_nan=False)
    upload_bytes_max: int = Field(default=512 * 1024 * 1024, ge=1)
    rate_limit_per_minute: int = Field(default=1200, ge=0, le=1_000_000)
    rate_limit_tenant_per_minute: int = Field(default=6000, ge=0, le=1_000_000)
    rate_limit_failures_per_minute: int = Field(default=60, ge=0, le=1_000_000)
    rate_limit_url: str = Field(default="", pattern=r"^(rediss?://.+)?$")
    webhook_http_allowed: bool = False
    webhook_networks_allowed: str = ""
    witnesses: Path | None = None
    witness_quorum: int = Field(default=0, ge=0)
    tsa_url: str = Field(default="", pattern=r"^(https?://.+)?$")
    tsa_certificates: Path | None = None
    chat: bool = True
    metrics_bind: str = "127.0.0.1:9464"
    otel_endpoint: str = Field(default="", pattern=r"^(https?://[^/?#\s]+[^?#\s]*)?$")
    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_jwks: str = ""
    oidc_algorithms: str = "RS256,ES256,EdDSA"
    oidc_user_claim: str = Field(default="sub", min_length=1)
    oidc_tenant_claim: str = ""
    oidc_roles_claim: str = ""
    oidc_second_factor: str = "mfa"
    oidc_leeway_seconds: int = Field(default=30, ge=0, le=120)
    oidc_token_seconds_max: int = Field(default=900, ge=60, le=86_400)
    oidc_networks_allowed: str = ""
    oidc_client_id: str = ""
    oidc_client_secret_file: Path | None = None
    oidc_redirect_url: str = ""
    oidc_name: str = Field(default="your hospital's account", min_length=1, max_length=60)

    @model_validator(mode="after")
    def _production_has_a_server(self) -> Settings:
        """On SQLite whoever owns the file owns the ledger; that is for one machine only."""
        if self.environment == "production" and not self.database_url.startswith("postgresql"):
            raise ValueError("RLDP_ENVIRONMENT=production needs RLDP_DATABASE_URL on PostgreSQL.")
        return self

    @model_validator(mode="after")
    def _hosts_can_meet(self) -> Settings:
        """Half a setting would leave the hosts of a job waiting for each other."""
        if self.host_rank >= self.hosts_per_job:
            raise ValueError("RLDP_HOST_RANK must be below RLDP_HOSTS_PER_JOB.")
        if self.hosts_per_job > 1 and not self.rendezvous:
            raise ValueError("RLDP_HOSTS_PER_JOB needs RLDP_RENDEZVOUS, host:port of the first.")
        return self

    @property
    def ranks_per_job(self) -> int:
        return self.processes_per_job * self.hosts_per_job

    @field_validator("webhook_networks_allowed", "oidc_networks_allowed")
    @classmethod
    def _networks_are_networks(cls, text: str) -> str:
        """Read once here, so that a slip stops the start and not a delivery."""
        for part in filter(None, text.split(",")):
            ipaddress.ip_network(part.strip())
        return text

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

    @field_validator("oidc_algorithms")
    @classmethod
    def _algorithms_have_two_keys(cls, text: str) -> str:
        """`none` is no signature, and with HS256 whoever can check a token can make one."""
        named = {part.strip() for part in text.split(",")}
        if not named <= TOKEN_ALGORITHMS:
            raise ValueError(
                f"RLDP_OIDC_ALGORITHMS may name {', '.join(sorted(TOKEN_ALGORITHMS))}."
            )
        return text

    @model_validator(mode="after")
    def _provider_is_whole(self) -> Settings:
        """Half a provider would look like one that refuses everybody."""
        is_used = bool(self.oidc_audience or self.oidc_client_id)
        if bool(self.oidc_issuer) != is_used:
            raise ValueError(
                "RLDP_OIDC_ISSUER needs RLDP_OIDC_AUDIENCE (tokens for the API),"
                " RLDP_OIDC_CLIENT_ID (sign-in on the dashboard) or both, and they need it."
            )
        if bool(self.oidc_client_id) != bool(self.oidc_redirect_url):
            raise ValueError("RLDP_OIDC_CLIENT_ID and RLDP_OIDC_REDIRECT_URL go together.")
        if self.oidc_audience and self.oidc_audience == self.oidc_client_id:
            raise ValueError(  # a browser's ID token would open the API
                "RLDP_OIDC_AUDIENCE must differ from RLDP_OIDC_CLIENT_ID."
            )
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
        """Apart from the data where an operator mounts secrets, read-only."""
        return self.keys_folder or self.data_dir / "keys"
