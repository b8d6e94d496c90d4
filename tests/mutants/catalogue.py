"""All mutants of privacy.md 17, in its order."""

from __future__ import annotations

from tests.mutants.of_the_audit import MUTANTS_OF_THE_AUDIT
from tests.mutants.of_the_run import MUTANTS_OF_THE_RUN
from tests.mutants.of_the_step import MUTANTS_OF_THE_STEP

MUTANTS = tuple(
    sorted(
        (*MUTANTS_OF_THE_STEP, *MUTANTS_OF_THE_RUN, *MUTANTS_OF_THE_AUDIT),
        key=lambda m: (int(m.row[1:]), m.id),
    )
)
