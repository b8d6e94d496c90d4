"""Draws the README's pictures of the dashboard from the test scene (`make screenshots`).

Palette PNG of 128 colours: flat areas and text lose nothing that the eye would miss.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.browser.conftest import browser_options
from tests.browser.site import Site, open_site
from tests.browser.visits import open_visit

FOLDER = Path(__file__).resolve().parents[2] / "service" / "dashboard" / "screenshots"
BYTES_MAX = 150_000
COLOURS = 128
WIDTH = 1280


def _wanted(site: Site) -> tuple[tuple[str, str, str, str, int], ...]:
    """Name, role, path, scheme and height of each picture."""
    scene = site.scene
    priced = "ask=1&steps=400&batch=1000&mode=adaptive_sigma"
    return (
        ("overview-light", "steward", "/", "light", 1000),
        ("operations-light", "admin", "/", "light", 1000),
        ("submit-light", "submitter", f"/submit?file={scene.file}&model=medtext-gpt2-4m&{priced}",
         "light", 1000),
        ("job-light", "submitter", f"/jobs/{scene.released}", "light", 1800),
        ("job-dark", "submitter", f"/jobs/{site.interrupted}", "dark", 1400),
        ("population-light", "auditor", f"/populations/{scene.world.population}", "light", 1000),
        ("proofs-light", "auditor", "/ledger/proofs?entry=3", "light", 900),
    )  # fmt: skip


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with (
        sync_playwright() as playwright,
        tempfile.TemporaryDirectory() as directory,
    ):
        browser = playwright.chromium.launch(**browser_options())
        with open_site(Path(directory), browser) as site:
            for name, role, path, scheme, height in _wanted(site):
                viewport = {"width": WIDTH, "height": height}
                visit = open_visit(browser, site.address, viewport=viewport, color_scheme=scheme)
                visit.sign_in(site.scene.keys[role])
                visit.page.goto(f"{site.address}{path}")
                _keep(visit.page.screenshot(), FOLDER / f"{name}.png")
                visit.page.context.close()
        browser.close()


def _keep(png: bytes, path: Path) -> None:
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < BYTES_MAX, f"{path.name} is too large for the README"
    print(f"{path.name}: {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
