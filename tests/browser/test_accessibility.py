"""axe on every page, light and dark, wide and narrow; quiet consoles, no outside request.

Screenshots stay in build/screenshots, or in the folder that RLDP_SCREENSHOTS names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.site import Site, open_site, pages_of
from tests.browser.visits import Visit, open_visit
from tests.service.dashboard.scene import Scene


@pytest.fixture(autouse=True)
def axe_is_there() -> None:
    """In a fixture, so that continuous integration fails where it is missing."""
    pytest.importorskip(
        "axe_playwright_python",
        reason="axe-core is not installed: pip install -c constraints.txt -e .[dev]",
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site"), browser) as opened:
        yield opened


@pytest.mark.ci
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_on_any_page(
    browser: Browser, site: Site, pictures: Path, width: int, scheme: str
) -> None:
    viewport = {"width": width, "height": 900}
    found: list[str] = []
    for role, pages in pages_of(site).items():
        visit = open_visit(browser, site.address, viewport=viewport, color_scheme=scheme)
        visit.page.goto(f"{site.address}/signin")
        found += _violations(visit, "signin")
        visit.sign_in(site.scene.keys[role])
        for name, path in pages:
            # A page that is not there is a complaint of the browser's own, and right.
            visit.page.goto(f"{site.address}{path}")
            visit.page.screenshot(path=pictures / f"{name}-{scheme}-{width}.png", full_page=True)
            found += _violations(visit, name)
            if visit.page.evaluate("document.documentElement.scrollWidth") > width:
                found.append(f"{name}: wider than the window")
        complaints = [text for text in visit.complaints if "404" not in text]
        found += complaints + [f"asked outside: {url}" for url in visit.outside]
        visit.page.context.close()
    assert found == [], "\n".join(found)


def test_axe_finds_nothing_on_the_first_page(browser: Browser, address: str, scene: Scene) -> None:
    """One page in the default run, so that a broken frame is found at once."""
    visit = open_visit(browser, address)
    visit.sign_in(scene.keys["submitter"])
    assert _violations(visit, "overview") == []
    visit.page.context.close()


def _violations(visit: Visit, name: str) -> list[str]:
    """Every violation of axe's rules, best practices included; for any impact."""
    from axe_playwright_python.sync_playwright import Axe

    told = Axe().run(visit.page).response["violations"]
    return [
        f"{name}: {one['id']} ({one['impact']}): {node['target']} {node['failureSummary']}"
        for one in told
        for node in one["nodes"]
    ]
