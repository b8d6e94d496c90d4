"""Schemas of what the compatible routes answer, for the OpenAPI document alone.

No answer is checked against them while a caller waits: `tests/contract/test_answers.py` holds
real ones against them. They close no object: a field may be added at any time (service.md 2.6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.jobs.lifecycle import OPENAI_STATUS, STATES
from service.metrics import ReleaseClass
from service.openapi import Answers

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
TRUTH: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "array", "items": TEXT}
ANYTHING: Schema = {"type": "object"}
PICO: Schema = {"type": "string", "pattern": "^[0-9]+$", "description": "1e-12 of RDP."}
SECONDS: Schema = {"type": "integer", "description": "Unix seconds."}
DECIMAL: Schema = {"type": "string", "description": "A decimal number, exactly."}


def _object(fields: Mapping[str, Schema], **more: Any) -> Schema:
    return {"type": "object", "required": list(fields), "properties": dict(fields), **more}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _always(value: object) -> Schema:
    return {"const": value}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list_of(name: str) -> Schema:
    return _object(
        {
            "object": _always("list"),
            "data": {"type": "array", "items": _ref(name)},
            "first_id": _or_null(TEXT),
            "last_id": _or_null(TEXT),
            "has_more": TRUTH,
        }
    )


_ERROR = _object({"code": _or_null(TEXT), "message": _or_null(TEXT), "param": _or_null(TEXT)})
_BLOCK = _object(
    {
        "block": TEXT,
        "reserved_pico": PICO,
        "spent_pico": PICO,
        "steps_max": WHOLE,
        "steps_started": WHOLE,
    }
)
_PRIVACY = _object(
    {
        "population": TEXT,
        "unit": TEXT,
        "relation": TEXT,
        "mode": TEXT,
        "rule": {"enum": ["pld_fixed_schedule", "rdp_filter"]},
        "alpha_population": WHOLE,
        "alpha_job": _or_null(WHOLE),
        "delta": DECIMAL,
        "target_epsilon": DECIMAL,
        "noise_levels": TEXTS,
        "noise_schedule": {"description": "Of several levels; null: one, or chosen while it runs."},
        "sampling_probability": DECIMAL,
        "steps_max": WHOLE,
        "steps_started_max": WHOLE,
        "reserved_pico": PICO,
        "spent_pico": PICO,
        "blocks": {"type": "array", "items": _BLOCK},
        "epsilon_so_far": _object({"value": TEXT, "guarantee": _always(False)}),
        "epsilon_certified": _or_null(DECIMAL),
    }
)
_PROGRESS = _object(
    {"step": WHOLE, "steps_max": WHOLE, "window": WHOLE, "eta_minutes": _or_null(WHOLE)}
)
_JOB: dict[str, Schema] = {
    "object": _always("fine_tuning.job"),
    "id": TEXT,
    "created_at": SECONDS,
    "model": TEXT,
    "training_file": TEXT,
    "validation_file": {"type": "null"},
    "status": {"enum": sorted(set(OPENAI_STATUS.values()))},
    "seed": WHOLE,
    "organization_id": TEXT,
    "metadata": {"type": "object", "additionalProperties": TEXT},
    "hyperparameters": ANYTHING,
    "method": _object({"type": _always("supervised"), "supervised": ANYTHING}),
    "integrations": {"type": "array"},
    "result_files": TEXTS,
    "fine_tuned_model": _or_null(TEXT),
    "finished_at": _or_null(SECONDS),
    "estimated_finish": _or_null(SECONDS),
    "trained_tokens": {"type": "null", "description": "Never told: it would be exact."},
    "error": _or_null(_ERROR),
    "state": {"enum": sorted(STATES)},
    "reason_code": _or_null(TEXT),
    "status_message": _or_null(TEXT),
    "priority": {"enum": ["low", "normal", "high"]},
    "attempt": WHOLE,
    "dataset_version": TEXT,
    "suffix": _or_null(TEXT),
    "privacy": _PRIVACY,
    "controller": _object(
        {"type": TEXT, "policy": TEXT, "interval_steps": WHOLE, "signals": TEXTS}
    ),
    "adapter": _object(
        {
            "type": _always("lora"),
            "r": WHOLE,
            "alpha": WHOLE,
            "target_modules": {"anyOf": [TEXTS, _always("auto")]},
        }
    ),
    "progress": _ref("FineTuningJobProgress"),
    "audit": _or_null(ANYTHING),
    "release": _object({"state": TEXT}),
}
_EVENT: dict[str, Schema] = {
    "object": _always("fine_tuning.job.event"),
    "id": TEXT,
    "created_at": SECONDS,
    "level": {"enum": ["info", "warn", "error"]},
    "message": TEXT,
    "type": TEXT,
    "data": ANYTHING,
}
_SERIES = _object(
    {
        "name": TEXT,
        "class": {"enum": sorted(each.value for each in ReleaseClass)},
        "group": _or_null(TEXT),
        "points": {
            "type": "array",
            "items": {"type": "array", "prefixItems": [WHOLE, DECIMAL], "items": False},
        },
    }
)
_CHECKPOINT: dict[str, Schema] = {
    "object": _always("fine_tuning.job.checkpoint"),
    "id": TEXT,
    "created_at": SECONDS,
    "fine_tuning_job_id": TEXT,
    "fine_tuned_model_checkpoint": TEXT,
    "step_number": WHOLE,
    "metrics": _object(
        {"step": WHOLE, "train_loss": _or_null({"type": "number"}), "epsilon_so_far": TEXT}
    ),
}
_RECEIPT: dict[str, Schema] = {
    "object": _always("ledger.receipt"),
    "log": TEXT,
    "idx": WHOLE,
    "leaf": TEXT,
    "publish_by": TEXT,
    "receipt": {"type": "string", "description": "A signed note."},
    "proof": _or_null({"type": "string", "description": "A tlog-proof, once a checkpoint is."}),
}
_FILE: dict[str, Schema] = {
    "object": _always("file"),
    "id": TEXT,
    "bytes": WHOLE,
    "created_at": SECONDS,
    "expires_at": _or_null(SECONDS),
    "filename": TEXT,
    "purpose": _always("fine-tune"),
    "status": TEXT,
    "status_details": _or_null(TEXT),
    "dataset": _or_null(TEXT),
    "dataset_version": _or_null(TEXT),
}
_MODEL: dict[str, Schema] = {
    "object": _always("model"),
    "id": TEXT,
    "created": SECONDS,
    "owned_by": TEXT,
    "digest": TEXT,
    "context_tokens": WHOLE,
}
_RECEIPTS: Schema = {"type": "array", "items": _ref("Receipt")}
_SCHEMAS: dict[str, Schema] = {
    "FineTuningJob": _object(_JOB),
    "FineTuningJobReceipted": _object({**_JOB, "receipts": _RECEIPTS}),
    "FineTuningJobList": _list_of("FineTuningJob"),
    "FineTuningJobProgress": _PROGRESS,
    "FineTuningJobSeries": _SERIES,
    "FineTuningJobEvent": _object(_EVENT),
    "FineTuningJobEventList": _list_of("FineTuningJobEvent"),
    "FineTuningJobCheckpoint": _object(_CHECKPOINT),
    "FineTuningJobCheckpointList": _list_of("FineTuningJobCheckpoint"),
    "Receipt": _object(_RECEIPT),
    "File": _object(_FILE),
    "FileList": _list_of("File"),
    "FileDeleted": _object({"id": TEXT, "object": _always("file"), "deleted": TRUTH}),
    "Model": _object(_MODEL),
    "ModelList": _list_of("Model"),
}
_OF_OPERATION = {
    "create_job": "FineTuningJobReceipted",
    "cancel_job": "FineTuningJobReceipted",
    "get_job": "FineTuningJob",
    "pause_job": "FineTuningJob",
    "resume_job": "FineTuningJob",
    "list_jobs": "FineTuningJobList",
    "list_events": "FineTuningJobEventList",
    "list_checkpoints": "FineTuningJobCheckpointList",
    "upload_file": "File",
    "retrieve_file": "File",
    "list_files": "FileList",
    "delete_file": "FileDeleted",
    "retrieve_base_model": "Model",
    "list_base_models": "ModelList",
}

ANSWERS = Answers(schemas=_SCHEMAS, of_operation=_OF_OPERATION)
