"""What clients send to, and see of, files and datasets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.datasets.models import Dataset, DatasetVersion, File, FileError
from service.datasets.rows import UNIT_FIELD_DEFAULT
from service.listing import ListQuery
from service.times import utc_text

NOT_FOR_RELEASE = "not differentially private, do not release"


class DatasetCreate(BaseModel):
    """What a steward states about a dataset before any of its files arrive."""

    model_config = ConfigDict(extra="forbid")

    population: str = Field(max_length=64)
    unit_field: str | None = Field(default=UNIT_FIELD_DEFAULT, min_length=1, max_length=64)
    records_are_unique_patients: bool = False
    is_public: bool = False


class VersionCreate(BaseModel):
    """An uploaded file to add to a dataset."""

    model_config = ConfigDict(extra="forbid")

    file: str = Field(max_length=64)


class FileQuery(ListQuery):
    """The `openai` client's parameters of `files.list`."""

    limit: int = Field(default=20, ge=1, le=1000)
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = Field(default=None, max_length=64)


class ValidationQuery(ListQuery):
    """Pages of a row report; `after` is the `id` of the last fault seen."""

    limit: int = Field(default=100, ge=1, le=1000)


def file_to_dict(file: File) -> dict[str, Any]:
    """The file as the `openai` client knows it, plus its dataset and version."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_at // 1_000_000,
        "expires_at": None if file.expires_at is None else file.expires_at // 1_000_000,
        "filename": file.filename,
        "purpose": "fine-tune",
        "status": file.status,
        "status_details": (
            None
            if file.status == "processed"
            else "Some rows are invalid: see GET /v1/files/{id}/validation."
        ),
        "dataset": file.dataset_id,
        "dataset_version": file.version_id if file.dataset_id and file.blob_path else None,
    }


def fault_to_dict(row: FileError) -> dict[str, Any]:
    return {
        "id": str(row.seq),
        "line": row.line,
        "pointer": row.pointer,
        "code": row.code,
        "message": row.message,
    }


def dataset_to_dict(dataset: Dataset) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "object": "dataset",
        "population": dataset.population_id,
        "unit_field": dataset.unit_field,
        "records_are_unique_patients": dataset.records_are_unique_patients,
        "is_public": False,
        "created_at": utc_text(dataset.created_at),
    }


def version_to_dict(version: DatasetVersion, patients_public: int) -> dict[str, Any]:
    """No digest and no count: both are exact facts about patients' data."""
    return {
        "id": version.id,
        "object": "dataset.version",
        "dataset": version.dataset_id,
        "file": version.file_id,
        "patients_public": patients_public,
        "unit": version.unit,
        "state": version.state,
        "created_at": utc_text(version.created_at),
    }
