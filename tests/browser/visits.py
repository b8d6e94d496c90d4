"""One tab of the browser, and everything it complains about or asks for."""

from __future__ import annotations

from dataclasses import dataclass, field

from playwright.sync_api import Browser, ConsoleMessage, Page, Request


@dataclass
class Visit:
    """One tab and everything it complained about or asked for."""

    page: Page
    home: str
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def sign_in(self, key: str) -> None:
        self.page.goto(f"{self.home}/signin")
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("main").get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(f"{self.home}/")

    def note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def note_request(self, request: Request) -> None:
        if not request.url.startswith((self.home, "data:")):
            self.outside.append(request.url)


def open_visit(browser: Browser, home: str, **options: object) -> Visit:
    page = browser.new_context(**options).new_page()  # type: ignore[arg-type]
    visit = Visit(page=page, home=home)
    page.on("console", visit.note_console)
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("request", visit.note_request)
    return visit
