"""Every page of the dashboard is in the access log, or says here why its reads are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from service.app import OPEN
from service.logged_reads import LoggedRoute

NOT_LOGGED = {
    "/signin": "a form for whoever is not known yet; shows nothing of any hospital",
    "/accept": "a form for whoever has a token; shows nothing of any hospital",
    "/signin/provider": "leads to the identity provider; nobody is known yet",
    "/signin/provider/back": "comes from there; shows nothing of any hospital",
    "/static/{name}": "files of the wheel, the same for everybody",
    "/live/stream": "says that a part has changed, and nothing of it; the part's read is entered",
}
PAGES = {
    route.path: route
    for router in OPEN
    for route in router.routes
    if isinstance(route, APIRoute)
    and route.endpoint.__module__.startswith("service.dashboard.")
    and "GET" in route.methods
}
ROOT = Path(__file__).resolve().parents[2]


def is_logged(route: APIRoute) -> bool:
    return isinstance(route, LoggedRoute) and route.is_logged


def test_the_list_is_of_pages_that_exist_and_are_not_logged() -> None:
    assert {"/", "/ledger", "/jobs/{job_id}", "/approvals"} <= set(PAGES)
    assert {path for path, route in PAGES.items() if not is_logged(route)} == set(NOT_LOGGED)


def test_every_module_with_routes_of_the_dashboard_was_looked_at() -> None:
    seen = {route.endpoint.__module__ for route in PAGES.values()}
    with_routes = {
        f"service.dashboard.{path.stem}"
        for path in (ROOT / "service" / "dashboard").glob("*.py")
        if "router.get(" in path.read_text(encoding="utf-8")
    }
    assert seen == with_routes


@pytest.mark.parametrize("path", sorted(PAGES))
def test_what_is_logged_once_an_hour_is_asked_for_by_a_script(path: str) -> None:
    route = PAGES[path]
    hourly = route.hourly if isinstance(route, LoggedRoute) else frozenset()
    by_script = {
        "/live/overview",
        "/live/operations",
        "/live/jobs/{job_id}",
        "/submit/estimate",
    }
    assert (path in hourly) == (path in by_script)
