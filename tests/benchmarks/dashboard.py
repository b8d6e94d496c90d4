"""The dashboard's bars: first view among many jobs, open streams, a long curve.

    make bench-dashboard          all three, as lines and JSON
    python -m tests.benchmarks.dashboard --help

Figures are processor time wherever a shared host would spoil the clock: of this process for
pages, of the server's process for streams. Bytes are those of the page with everything it loads,
each compressed as a proxy would (gzip, level 6), and as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import sync_playwright
from sqlalchemy import insert, select

from service.auth.keys import issue_key
from service.dashboard.charts import Point, line_chart
from service.dashboard.rendering import environment
from service.database import now_us
from service.ids import new_id, new_person_id
from service.jobs import runtime
from service.jobs.models import Job, JobEvent, JobMetric
from service.ledger.models import Account, Reservation, ReservationBlock
from service.tenants.models import Principal
from tests.browser.conftest import browser_options, served
from tests.service.dashboard.scene import Scene, open_scene
from tests.service.dashboard.test_pages import sign_in

BYTES_BAR, PAGE_SECONDS_BAR, CORES_BAR, CURVE_MS_BAR = 150 * 1024, 1.0, 1.0, 50.0
JOBS, RUNNING, STREAMS, POINTS = 10_000, 100, 200, 5_000
VIEWS = 7
OF_ONE_PERSON = 20
SETTLE_SECONDS = 5.0
TICKS = os.sysconf("SC_CLK_TCK")
ASSET = re.compile(r'(?:href|src)="(/static/[^"]+)"')
BATCH = 500
CHART = '{% from "macros.html" import line %}{{ line(chart) }}'


def fill(scene: Scene, *, jobs: int, running: int) -> None:
    """Copies of the scene's ended and running job, up to so many of each.

    Running ones come with their curves and events; ended ones are on no list's way to those.
    """
    ended, live = jobs - running - 2, running - 1
    for source, count, models in ((scene.released, ended, ROWS), (scene.running, live, LIVE_ROWS)):
        for first in range(0, count, BATCH):
            names = [new_id("ftjob-") for _ in range(min(BATCH, count - first))]
            _copy(scene, source, names, models)


ROWS: tuple[tuple[Any, Any], ...] = (
    (Job, Job.id),
    (Reservation, Reservation.job_id),
    (ReservationBlock, ReservationBlock.job_id),
    (Account, Account.job_id),
)
LIVE_ROWS = (*ROWS, (JobEvent, JobEvent.job_id), (JobMetric, JobMetric.job_id))


def _copy(
    scene: Scene, source: str, names: Sequence[str], models: Sequence[tuple[Any, Any]]
) -> None:
    with scene.world.db.transaction() as session:
        for model, owner in models:
            table: Any = model.__table__
            rows = session.execute(select(table).where(owner == source)).mappings().all()
            made = [_copied(row, owner.key, source, name) for name in names for row in rows]
            for at in range(0, len(made), 1000):
                session.execute(insert(table), made[at : at + 1000])


def _copied(row: Any, owner: str, source: str, name: str) -> dict[str, Any]:
    values = {key: value for key, value in row.items() if key != "seq"}
    for key, value in values.items():
        if isinstance(value, str) and source in value and key != "data":
            values[key] = value.replace(source, name)
    if "id" in values and owner != "id" and source not in str(row["id"]):
        values["id"] = new_id("ftevent-")
    return values


def first_view(scene: Scene) -> dict[str, Any]:
    """Of the admin's page: processor seconds of its answer, and bytes with all it loads."""
    client = scene.client()
    sign_in(client, scene.keys["admin"])
    seconds, html = [], b""
    for _ in range(VIEWS):
        before = time.process_time()
        html = client.get("/").content
        seconds.append(time.process_time() - before)
    parts = [
        html,
        *(client.get(path).content for path in sorted(set(ASSET.findall(html.decode())))),
    ]
    return {
        "first_cpu_seconds": round(seconds[0], 3),
        "median_cpu_seconds": round(statistics.median(seconds), 3),
        "bytes_compressed": sum(len(gzip.compress(part, 6)) for part in parts),
        "bytes_plain": sum(map(len, parts)),
        "html_plain": len(html),
        "running_rows": html.decode().count('class="meterd"') // 2,
    }


def paint(scene: Scene) -> dict[str, Any]:
    """Milliseconds to First Contentful Paint of the same page in the browser, by its own clock."""
    with sync_playwright() as playwright, served(scene) as address:
        browser = playwright.chromium.launch(**browser_options())
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.goto(f"{address}/signin")
        page.get_by_label("API key").fill(scene.keys["admin"])
        page.get_by_role("main").get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{address}/")
        found = []
        for _ in range(VIEWS):
            page.goto(f"{address}/")
            page.wait_for_timeout(300)
            found += page.evaluate(
                "performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)"
            )
        browser.close()
    return {"median_ms": round(statistics.median(found)), "worst_ms": round(max(found))}


def curve(points: int) -> dict[str, Any]:
    """Server: geometry and SVG, in processor time. Browser: insertion, layout and paint."""
    series = [Point(step=i, value=3 + 1 / (1 + i / 300), std=0.05) for i in range(1, points + 1)]
    template = environment().from_string(CHART)
    drawn, milliseconds = "", []
    for _ in range(VIEWS):
        before = time.process_time()
        chart = line_chart("loss", "Loss", series, points, "in nats")
        drawn = template.render(chart=chart)
        milliseconds.append(1000 * (time.process_time() - before))
    return {
        "server_cpu_ms": round(statistics.median(milliseconds), 1),
        "bytes_plain": len(drawn.encode()),
        "bytes_compressed": len(gzip.compress(drawn.encode(), 6)),
        "browser_ms": _insertion_ms(drawn),
    }


def _insertion_ms(html: str) -> float:
    """From the script's start to the frame after the chart was laid out and painted."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**browser_options())
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_content("<main></main>")
        found = [
            float(
                page.evaluate(
                    """async html => {
                      const main = document.querySelector("main");
                      main.replaceChildren();
                      await new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)));
                      const start = performance.now();
                      main.innerHTML = html;
                      main.getBoundingClientRect();
                      await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
                      return performance.now() - start;
                    }""",
                    html,
                )
            )
            for _ in range(VIEWS)
        ]
        browser.close()
    return round(statistics.median(found), 1)


def _serve(directory: str, ready: Any, stop: Event) -> None:
    """A server process of its own, whose processor time is asked for from outside."""
    scene_settings = json.loads(Path(directory, "scene.json").read_text())
    import uvicorn

    from service.app import create_app
    from service.settings import Settings

    app = create_app(
        Settings(data_dir=Path(scene_settings["data"]), database_url=scene_settings["database"])
    )
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical")
    server = uvicorn.Server(config)

    async def run() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.05)
        ready.send(server.servers[0].sockets[0].getsockname()[1])
        while not stop.is_set():
            await asyncio.sleep(0.2)
        server.force_exit = server.should_exit = True
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())


@contextmanager
def _server(directory: Path, scene: Scene) -> Iterator[tuple[int, int]]:
    """Port and process id."""
    told = {"data": str(directory / "data"), "database": scene.world.db.url}
    (directory / "scene.json").write_text(json.dumps(told))
    context = get_context("spawn")
    here, there = context.Pipe()
    stop = context.Event()
    process = context.Process(target=_serve, args=(str(directory), there, stop), daemon=True)
    process.start()
    assert here.poll(120), "the server did not start"
    assert process.pid is not None
    yield here.recv(), process.pid
    stop.set()
    process.join(20)
    if process.is_alive():
        process.kill()


def _cookies(scene: Scene, people: int) -> list[str]:
    """Sessions of so many stewards, signed in through the page."""
    found = []
    for _ in range(people):
        person = new_person_id("usr_")
        with scene.world.db.transaction() as session:
            session.add(
                Principal(
                    id=person, tenant_id=scene.world.tenant, role="admin", public_key=None,
                    created_at=now_us(),
                )
            )  # fmt: skip
            session.flush()
            key = issue_key(session, person).text
        client = scene.client()
        sign_in(client, key)
        found.append(client.cookies["rldp_session"])
    return found


async def _tab(port: int, cookie: str, counts: dict[str, int]) -> None:
    """What `live.js` does: one stream; after a change the part, at most every two seconds."""
    reader, writer = await _get(port, "/live/stream?workers=1", cookie)
    etag, asked = "", 0.0
    try:
        counts["open"] += 1
        while line := await reader.readline():
            if line.startswith(b"event: changed"):
                await asyncio.sleep(max(0.0, asked + 2 - time.monotonic()))
                asked, etag = time.monotonic(), await _part(port, cookie, etag, counts)
    finally:
        writer.close()


async def _get(port: int, path: str, cookie: str, *more: str) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Cookie: rldp_session={cookie}"]
    writer.write("\r\n".join([*head, *more, "", ""]).encode())
    await writer.drain()
    return reader, writer


async def _part(port: int, cookie: str, etag: str, counts: dict[str, int]) -> str:
    known = (f"If-None-Match: {etag}",) if etag else ()
    reader, writer = await _get(port, "/live/operations", cookie, "Connection: close", *known)
    answer = await reader.read()
    writer.close()
    counts["parts"] += 1
    counts["bytes"] += len(answer)
    found = re.search(rb'\r\netag: ("[0-9a-f]+")', answer.partition(b"\r\n\r\n")[0])
    return found[1].decode() if found else etag


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def _streams(
    port: int, pid: int, cookies: list[str], seconds: float, change: Callable[[int], None]
) -> dict[str, Any]:
    counts = {"open": 0, "parts": 0, "bytes": 0}
    tabs = [
        asyncio.create_task(_tab(port, cookies[i // OF_ONE_PERSON], counts))
        for i in range(len(cookies) * OF_ONE_PERSON)
    ]
    while counts["open"] < len(tabs):
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLE_SECONDS)
    found: dict[str, Any] = {"streams": len(tabs)}
    for name, moves in (("quiet", False), ("moving", True)):
        start, cpu, parts = time.monotonic(), _cpu_seconds(pid), counts["parts"]
        step = 0
        while time.monotonic() < start + seconds:
            step += 1
            if moves:
                await asyncio.to_thread(change, step)
            await asyncio.sleep(1)
        wall = time.monotonic() - start
        found[f"{name}_cores"] = round((_cpu_seconds(pid) - cpu) / wall, 3)
        found[f"{name}_parts_per_second"] = round((counts["parts"] - parts) / wall, 1)
    for tab in tabs:
        tab.cancel()
    await asyncio.gather(*tabs, return_exceptions=True)
    return found


def streams(scene: Scene, directory: Path, *, count: int, seconds: float) -> dict[str, Any]:
    """Cores that so many admins' tabs cost: while nothing moves, and with a step a second."""

    def change(step: int) -> None:
        runtime.record_step(scene.world.db, scene.running, 1, 70 + step)

    cookies = _cookies(scene, count // OF_ONE_PERSON)
    with _server(directory, scene) as (port, pid):
        return asyncio.run(_streams(port, pid, cookies, seconds, change))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--running", type=int, default=RUNNING)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--out", type=Path, default=None)
    wanted = parser.parse_args()
    with TemporaryDirectory() as name, open_scene(Path(name)) as scene:
        directory = Path(name)
        fill(scene, jobs=wanted.jobs, running=wanted.running)
        found: dict[str, Any] = {"curve": curve(wanted.points)}
        _say("curve", found["curve"])
        found["first_view"] = first_view(scene)
        _say("first_view", found["first_view"])
        found["paint"] = paint(scene)
        _say("paint", found["paint"])
        found["streams"] = streams(scene, directory, count=wanted.streams, seconds=wanted.seconds)
        _say("streams", found["streams"])
    if wanted.out is not None:
        wanted.out.mkdir(parents=True, exist_ok=True)
        (wanted.out / "dashboard.json").write_text(json.dumps(found, indent=1) + "\n")


def _say(name: str, found: dict[str, Any]) -> None:
    print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
