"""Registers datasets and turns uploaded files into their versions."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.database import now_us
from service.datasets import files, repository
from service.datasets.models import Dataset, DatasetVersion
from service.datasets.schemas import DatasetCreate, VersionCreate
from service.errors import FieldInvalid, FileInvalid, NotFound, StateConflict, UnsupportedOption
from service.ids import new_id
from service.populations.models import Population


def register_dataset(session: Session, subject: Subject, wanted: DatasetCreate) -> Dataset:
    """Makes a dataset of a population; how its rows name their patient is fixed here.

    Raises:
        NotFound: the caller sees no such population.
        FieldInvalid: unit field and population do not fit.
        UnsupportedOption: public data need no budget and are not offered yet.
    """
    if wanted.is_public:
        raise UnsupportedOption("is_public", "Datasets of public data are not offered yet.")
    population = repository.one_population(session, subject, wanted.population)
    _check_unit(population, wanted)
    dataset = Dataset(
        id=new_id("ds_"),
        tenant_id=subject.tenant_id,
        population_id=population.id,
        unit_field=wanted.unit_field,
        records_are_unique_patients=wanted.records_are_unique_patients,
        created_by=subject.principal_id,
        created_at=now_us(),
    )
    session.add(dataset)
    session.flush()
    return dataset


def _check_unit(population: Population, wanted: DatasetCreate) -> None:
    """Privacy counts patients: a record may stand for one only on a steward's statement."""
    if wanted.unit_field is not None:
        files.check_unit_field(wanted.unit_field, "unit_field")
    elif population.unit != "record":
        raise FieldInvalid("unit_field", "This population counts patients: name their field.")
    elif Decimal(population.validation_fraction) > 0:
        # Blocks are told apart by a hash of the unit; a row number is no stable name for it.
        raise FieldInvalid("unit_field", "A population with a validation block needs the field.")
    if population.unit == "record" and not wanted.records_are_unique_patients:
        raise FieldInvalid(
            "records_are_unique_patients",
            "This population counts records: state that each record is another patient.",
        )


def make_version(
    session: Session, subject: Subject, dataset_id: str, wanted: VersionCreate
) -> DatasetVersion:
    """Adds a valid file without a dataset to this one.

    Raises:
        NotFound: the caller sees no such dataset.
        FieldInvalid: no such file, or it was read with another unit field.
        FileInvalid: the file did not pass its validation.
        StateConflict: the file belongs to a dataset already.
    """
    dataset = repository.one_dataset(session, subject, dataset_id)
    try:
        file = repository.one_file(session, subject, wanted.file, for_update=True)
    except NotFound:
        raise FieldInvalid("file", "The field names no file of yours.") from None
    if file.status != "processed":
        raise FileInvalid("file")
    if file.dataset_id is not None:
        raise StateConflict("The file belongs to a dataset already. Upload it again.")
    if file.unit_field != dataset.unit_field:
        raise FieldInvalid("file", "The file was read with another unit field than the dataset's.")
    file.dataset_id = dataset.id
    return files.add_version(session, subject, dataset, file)
