"""Routes of the allowed base models, as the `openai` client knows them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.dependencies import SettingsDep, SubjectDep
from service.errors import NotFound
from service.listing import envelope
from service.models_catalog import BaseModelEntry, find_model, list_models

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def list_base_models(_subject: SubjectDep, settings: SettingsDep) -> dict[str, Any]:
    return envelope([_to_dict(entry) for entry in list_models(settings)], has_more=False)


@router.get("/{model_id:path}")
def retrieve_base_model(
    model_id: str, _subject: SubjectDep, settings: SettingsDep
) -> dict[str, Any]:
    found = find_model(settings, model_id)
    if found is None:
        raise NotFound
    return _to_dict(found)


def _to_dict(entry: BaseModelEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "object": "model",
        "created": entry.created_at,
        "owned_by": entry.owned_by,
        "digest": entry.digest,
        "context_tokens": entry.context_tokens,
    }
