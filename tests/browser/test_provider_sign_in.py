"""Sign-in with an identity provider in a real browser, on another site than ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from service.auth.identities import identity_id, link
from tests.browser.visits import open_visit
from tests.service.auth.fake_provider import CLIENT, USER, FakeProvider, open_provider
from tests.service.dashboard.scene import Scene


@pytest.fixture
def provider(scene: Scene, address: str) -> Iterator[tuple[FakeProvider, str]]:
    """The provider, and our own address under a name that makes the two different sites."""
    home = address.replace("127.0.0.1", "localhost")
    with open_provider() as opened:
        changes = {
            "oidc_issuer": opened.issuer,
            "oidc_client_id": CLIENT,
            "oidc_redirect_url": f"{home}/signin/provider/back",
            "oidc_name": "the clinic's account",
        }
        scene.app.state.settings = scene.settings.model_copy(update=changes)
        yield opened, home
        scene.app.state.settings = scene.settings
        scene.app.state.identity_provider = None


def test_one_click_there_and_back_and_a_way_out(
    browser: Browser, scene: Scene, provider: tuple[FakeProvider, str], pictures: Path
) -> None:
    fake, home = provider
    visit = open_visit(browser, home, viewport={"width": 1280, "height": 900})
    page = visit.page
    page.goto(f"{home}/signin")
    page.screenshot(path=pictures / "signin-provider.png", full_page=True)
    page.get_by_role("link", name="Sign in with the clinic's account").click()
    page.get_by_role("alert").wait_for()
    assert "nobody has linked you" in page.get_by_role("alert").inner_text()
    assert identity_id(fake.issuer, USER) in page.content()
    page.screenshot(path=pictures / "signin-unlinked.png", full_page=True)

    with scene.world.db.transaction() as session:
        link(session, scene.world.proposer, identity_id(fake.issuer, USER))
    page.get_by_role("link", name="Sign in with the clinic's account").click()
    page.wait_for_url(f"{home}/")
    cookies = {cookie["name"]: cookie for cookie in page.context.cookies(home)}
    assert cookies["rldp_session"]["httpOnly"]
    assert cookies["rldp_session"]["sameSite"] == "Lax"
    assert "rldp_provider" not in cookies, "the way back is used once"

    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{home}/signin")
    page.goto(f"{home}/")
    page.wait_for_url(f"{home}/signin")
    assert [text for text in visit.complaints if "403" not in text] == []
    assert all(url.startswith(fake.issuer) for url in visit.outside)
    page.context.close()
