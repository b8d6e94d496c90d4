"""Who reads an evidence page: whoever is signed in, known to the access log."""

from __future__ import annotations

from service.dashboard.endpoints import PersonDep

ReaderDep = PersonDep
