"""The page of one population: budget, burn-down, entries; who sees which of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from service.auth.keys import issue_key
from service.dashboard.burn_chart import burn_charts
from service.ledger import access
from service.ledger.burn_down import Burn, BurnDown, Standing
from tests.service.dashboard.scene import Scene
from tests.service.dashboard.test_pages import sign_in
from tests.service.ledger import world as w

SINCE = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def _page(scene: Scene, role: str, query: str = "") -> str:
    client = scene.client()
    sign_in(client, scene.keys[role])
    answer = client.get(f"/populations/{scene.world.population}{query}")
    assert answer.status_code == 200, role
    return answer.text


@pytest.mark.parametrize("role", ["admin", "steward", "auditor", "submitter"])
def test_every_role_sees_the_budget_over_time(scene: Scene, role: str) -> None:
    html = _page(scene, role)
    assert "Burn-down of the train block" in html and "Burn-down of the validation block" in html
    assert ("Newest entries" in html) == (role != "admin")  # who may not read the ledger


def test_the_table_ends_with_the_shares_of_the_card(scene: Scene) -> None:
    html = _page(scene, "auditor")
    card = re.search(r"train block: spent (.+?), held (.+?), free (.+?) of the limit", html)
    table = html.partition('id="data-burn-train"')[2].partition("</table>")[0]
    cells = re.findall(r"<td>(.*?)</td>", table)[-3:]
    assert card is not None and tuple(cells) == card.groups()


def test_the_period_can_be_chosen(scene: Scene) -> None:
    html = _page(scene, "auditor", "?days=7")
    assert re.search(r'days=7" aria-current="page"', html)


def test_it_is_linked_from_the_overview_and_the_ledger(scene: Scene) -> None:
    client = scene.client()
    sign_in(client, scene.keys["auditor"])
    for path in ("/", "/ledger"):
        assert f'href="/populations/{scene.world.population}"' in client.get(path).text


def test_another_hospitals_population_looks_absent(scene: Scene) -> None:
    other = w.found(scene.world.db)
    with scene.world.db.transaction() as session:
        key = issue_key(session, other.auditor).text
    client = scene.client()
    sign_in(client, key)
    answers = [client.get(f"/populations/{x}") for x in (scene.world.population, "pop_none")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert len({answer.text.replace(scene.world.population, "") for answer in answers}) == 1


def test_strangers_are_sent_to_the_form(scene: Scene) -> None:
    answer = scene.client().get(f"/populations/{scene.world.population}")
    assert answer.headers["location"] == "/signin"


def test_each_read_is_entered(scene: Scene) -> None:
    _page(scene, "admin")
    with scene.world.db.reading() as session:
        rows = session.scalars(access.visible_reads(scene.world.tenant)).all()
    assert access.read_to_dict(rows[-1])["route"] == "/populations/{population_id}"


def _found(*standings: tuple[int, int, int, int], pace: int | None = None) -> BurnDown:
    """Days of (limit, held, spent, free), the first at the period's begin."""
    points = tuple(
        Standing(at=SINCE + i * DAY, limit_pico=a, held_pico=b, spent_pico=c, free_pico=d)
        for i, (a, b, c, d) in enumerate(standings)
    )
    until = points[-1].at
    used_up = until + 10 * DAY if pace else None
    burn = Burn(block="train", points=points, spent_pico_per_day=pace, used_up_at=used_up)
    return BurnDown(since=SINCE, until=until, unit="day", burns=(burn,))


class TestChart:
    def test_a_block_without_a_limit_has_none(self) -> None:
        assert burn_charts(_found((0, 0, 0, 0), (0, 0, 0, 0))) == ()

    def test_areas_are_stacked_and_reach_the_limit(self) -> None:
        (chart,) = burn_charts(_found((100, 0, 0, 100), (100, 20, 30, 50)))
        top, base = 10.0, chart.base
        half = top + 0.5 * (base - top)
        high = top + 0.3 * (base - top)
        assert chart.free == (
            f"M{chart.left},{top}L{chart.right},{top}L{chart.right},{half}"
            f"L{chart.right},{base}L{chart.left},{base}Z"
        )
        assert f"{chart.right},{high:.1f}" in chart.held.replace(f"{high:.2f}", f"{high:.1f}")
        assert chart.spent.startswith(f"M{chart.left},{top}")

    def test_a_raised_limit_is_a_step(self) -> None:
        (chart,) = burn_charts(_found((50, 0, 0, 50), (100, 0, 10, 90)))
        assert chart.rows[0] == ("2026-11-01 00:00", "0.0 %", "0.0 %", "50.0 %")

    def test_the_words_tell_what_the_picture_shows(self) -> None:
        (chart,) = burn_charts(_found((100, 0, 10, 90), (100, 20, 30, 50), pace=20))
        assert chart.summary == (
            "20.0 % of the limit was spent since 1 Nov 2026, 00:00 UTC; 50.0 % is free and "
            "20.0 % is held. At this pace it is used up on 12 Nov 2026; a forecast, no guarantee."
        )
