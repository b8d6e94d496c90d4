"""People who use the service all day: each does one thing, waits, and does the next.

Whatever a person may meet is expected by name; everything else is a fault of the soak. Seeds
make each person's sequence repeatable, not the interleaving.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from service.demo.client import Access, ApiProblem, DemoClient
from service.demo.stages import ENDED, Ground
from tests.integration.small_job import open_ground, request_for

OPEN_JOBS = 5
REMEMBERED = 200
TOKEN = re.compile(r'name="form_token" value="([^"]+)"')

READS_OF_AUDITORS = (
    "/budgets",
    "/ledger/entries?limit=50",
    "/ledger/checkpoint",
    "/ledger/refusals",
    "/ledger/anomalies",
    "/audits/access?limit=50",
    "/populations",
    "/grants",
    "/releases",
)
PAGES = {"admin": ("/",), "auditor": ("/", "/ledger", "/ledger/refusals", "/ledger/access")}
READS_OF_ADMINS = ("/operations", "/workers", "/queue", "/models", "/api_keys")
STREAM_SECONDS = 3.0


@dataclass
class Load:
    """What the people know together: the hospital's jobs, and what went wrong."""

    access: Access
    urls: list[str]
    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    open_jobs: set[str] = field(default_factory=set)
    ground: Ground | None = None
    grounds: int = 0

    def client(self, url: str) -> DemoClient:
        keys, signing = self.access.keys, self.access.signing_dir
        return DemoClient(Access(url=url, keys=keys, signing_dir=signing))

    def new_ground(self, client: DemoClient) -> Ground:
        """A population with a fresh grant, as a hospital opens one for its next study."""
        self.grounds += 1
        folder = self.folder / f"study-{self.grounds}"
        folder.mkdir()
        self.ground = open_ground(client, folder)
        return self.ground


class Person(threading.Thread):
    """Does one thing after another, at every API process in turn, until the load stops."""

    def __init__(
        self, load: Load, name: str, act: Callable[[Person], str], pause_seconds: float
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.load, self.act, self.pause_seconds = load, act, pause_seconds
        self.dice = random.Random(name)
        self.clients = [load.client(url) for url in load.urls]
        self.cookies: dict[str, str] = {}
        self.count = 0

    @property
    def client(self) -> DemoClient:
        return self.clients[self.count % len(self.clients)]

    def run(self) -> None:
        while not self.load.stop.wait(self.pause_seconds):
            self.count += 1
            try:
                self.load.done[f"{self.name}: {self.act(self)}"] += 1
            except Exception as error:  # whatever it is, it is a finding
                self.load.faults.append(f"{self.name}: {type(error).__name__}: {error}")
        for client in self.clients:
            client.close()

    def expect(self, status: int, role: str, method: str, path: str, **request: Any) -> None:
        """A call that must be answered by this status."""
        try:
            self.client.call(role, method, path, **request)
        except ApiProblem as problem:
            if problem.status == status:
                return
            raise
        raise AssertionError(f"{method} {path} was not refused")


def submitter(person: Person) -> str:
    """Submits while few jobs are open; looks at them, cancels now and then."""
    load = person.load
    _forget_ended(person)
    ground = load.ground or load.new_ground(person.client)
    if len(load.open_jobs) < OPEN_JOBS:
        return _submit(person, ground)
    job = person.dice.choice(load.jobs[-REMEMBERED:])
    path = f"/fine_tuning/jobs/{job}"
    if person.dice.random() < 0.02:
        try:
            person.client.call("submitter", "POST", f"{path}/cancel")
        except ApiProblem as problem:
            if problem.status != 409:
                raise
        return "cancel"
    reads = ("", "/events", "/metrics", "/checkpoints", "/attempts", "/artifacts")
    person.client.call("submitter", "GET", path + person.dice.choice(reads))
    person.client.call("submitter", "GET", "/fine_tuning/jobs?limit=20")
    return "look"


def _submit(person: Person, ground: Ground) -> str:
    body = request_for(ground.file) | {"seed": person.dice.randrange(2**31)}
    try:
        job = person.client.call("submitter", "POST", "/fine_tuning/jobs", json=body)["id"]
    except ApiProblem as problem:
        if problem.code != "privacy_budget_exceeded":
            raise
        person.load.ground = None
        return "refused for budget"
    person.load.jobs.append(job)
    person.load.open_jobs.add(job)
    return "submit"


def _forget_ended(person: Person) -> None:
    for job in list(person.load.open_jobs):
        found = person.client.call("submitter", "GET", f"/fine_tuning/jobs/{job}")
        if found["state"] in ENDED:
            person.load.open_jobs.discard(job)
            person.load.done[f"job {found['state']}"] += 1
            assert found["state"] != "failed", f"{job}: {found['error']}"


def uploader(person: Person) -> str:
    """A file with faults in it, its report, and its end."""
    rows = [f'{{"patient_id": "p{n}", "text": "a made-up note {n}"}}' for n in range(200)]
    rows[person.dice.randrange(200)] = "{not json"
    files = {"file": ("notes.jsonl", "\n".join(rows).encode(), "application/jsonl")}
    file = person.client.call(
        "submitter", "POST", "/files", data={"purpose": "fine-tune"}, files=files
    )
    person.client.call("submitter", "GET", f"/files/{file['id']}/validation")
    person.client.call("submitter", "DELETE", f"/files/{file['id']}")
    return "upload, report, delete"


def auditor(person: Person) -> str:
    """Reads the ledger; now and then the whole bundle, a statement, or the entries as CSV."""
    load, turn = person.load, person.count
    if load.ground is None and not load.jobs:
        return "wait for a first entry"
    if turn % 60 == 0:
        path = load.folder / "bundle.zip"
        person.client.download_when_ready("auditor", "/ledger/bundle", path)
        return "bundle"
    if turn % 7 == 0 and load.jobs:
        job = person.dice.choice(load.jobs[-REMEMBERED:])
        person.client.call("auditor", "GET", f"/ledger/jobs/{job}/statement")
        return "statement"
    if turn % 11 == 0:
        person.client.raw("auditor", "GET", "/ledger/entries?limit=100&format=csv")
        return "entries"
    person.client.call("auditor", "GET", person.dice.choice(READS_OF_AUDITORS))
    return "read"


def viewer(person: Person) -> str:
    """Admin and auditor at the dashboard: sign in, look at pages, hold a stream for a while."""
    url = person.load.urls[person.count % len(person.load.urls)]
    if person.count % 5 == 0:
        person.client.call("admin", "GET", person.dice.choice(READS_OF_ADMINS))
        return "API"
    role = person.dice.choice(list(PAGES))
    if url + role not in person.cookies or person.dice.random() < 0.02:
        person.cookies[url + role] = _sign_in(url, person.load.access.keys[role])
        return "sign in"
    headers = {"Cookie": person.cookies[url + role]}
    if person.count % 9 == 0:
        until = time.monotonic() + STREAM_SECONDS
        with httpx.stream("GET", f"{url}/live/stream", headers=headers, timeout=30) as stream:
            assert stream.status_code == 200, stream.status_code
            for _ in stream.iter_raw():
                if time.monotonic() > until:
                    break
        return "stream"
    answer = httpx.get(url + person.dice.choice(PAGES[role]), headers=headers, timeout=60)
    assert answer.status_code == 200, f"{answer.url}: {answer.status_code}"
    return "page"


def _sign_in(url: str, key: str) -> str:
    """The session's cookie. It is marked for TLS only, so it is kept by hand here."""
    form = httpx.get(f"{url}/signin", timeout=60)
    token = TOKEN.search(form.text)
    assert token is not None, "the form has no token"
    cookie = _cookies(form)
    answer = httpx.post(
        f"{url}/signin",
        data={"key": key, "form_token": token[1]},
        headers={"Cookie": cookie, "Origin": url},
        timeout=60,
    )
    assert answer.status_code == 303, answer.status_code
    return _cookies(answer)


def _cookies(answer: httpx.Response) -> str:
    return "; ".join(c.partition(";")[0] for c in answer.headers.get_list("set-cookie"))


def stranger(person: Person) -> str:
    """Wrong keys, other people's ids, fields that do not exist."""
    kind = person.count % 4
    if kind == 0:
        answer = httpx.get(
            f"{person.load.urls[0]}/v1/fine_tuning/jobs",
            headers={"Authorization": "Bearer rldp_wrong"},
            timeout=60,
        )
        assert answer.status_code in (401, 429), answer.status_code
        return "wrong key"
    if kind == 1:
        person.expect(404, "submitter", "GET", "/fine_tuning/jobs/ftjob-nobodys")
        return "absent"
    if kind == 2:
        body = {"model": "medtext-gpt2-4m", "training_file": "file-x", "privcy": {}}
        person.expect(400, "submitter", "POST", "/fine_tuning/jobs", json=body)
        return "misspelt"
    person.expect(403, "submitter", "GET", "/audits/access")
    return "forbidden"


PEOPLE: tuple[tuple[str, Callable[[Person], str], float], ...] = (
    ("submitter", submitter, 0.5),
    ("uploader", uploader, 10.0),
    ("auditor", auditor, 0.5),
    ("viewer", viewer, 0.5),
    ("stranger", stranger, 3.0),
)
