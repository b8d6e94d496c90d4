"""Rate limits: buckets in memory and Redis, and what a client sees of them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import redis

from service.auth.keys import issue_key
from service.rate_limits import (
    MICROSECONDS,
    Buckets,
    MemoryBuckets,
    RateLimits,
    RedisBuckets,
    Verdict,
    headers_of,
    make_buckets,
)
from service.settings import Settings
from tests.service.hospital import Hospital, open_hospital

REDIS_URL = os.environ.get("RLDP_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")


@pytest.fixture(params=["memory", "redis"])
def buckets(request: pytest.FixtureRequest) -> Iterator[Buckets]:
    if request.param == "memory":
        yield MemoryBuckets()
        return
    try:
        redis.Redis.from_url(REDIS_URL).ping()
    except redis.RedisError:
        pytest.skip("no Redis at RLDP_TEST_REDIS_URL")
    yield RedisBuckets(REDIS_URL)


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"test:{uuid.uuid4().hex}"
    yield chosen
    try:
        redis.Redis.from_url(REDIS_URL).delete(f"rldp:rate:{chosen}")
    except redis.RedisError:
        return


class TestBuckets:
    def test_a_minutes_worth_at_once_and_no_more(self, buckets: Buckets, name: str) -> None:
        waits = [buckets.take(name, 5)[0] for _ in range(6)]
        assert waits[:5] == [0] * 5
        assert 0 < waits[5] <= 12 * MICROSECONDS

    def test_a_refused_request_takes_nothing(self, buckets: Buckets, name: str) -> None:
        for _ in range(3):
            buckets.take(name, 3)
        first, second = buckets.take(name, 3)[0], buckets.take(name, 3)[0]
        assert 0 < second <= first

    def test_names_do_not_share(self, buckets: Buckets, name: str) -> None:
        assert buckets.take(name, 1)[0] == 0
        assert buckets.take(name, 1)[0] > 0
        assert buckets.take(f"{name}-other", 1)[0] == 0

    def test_many_at_once_get_exactly_what_there_is(self, buckets: Buckets, name: str) -> None:
        with ThreadPoolExecutor(8) as pool:
            waits = list(pool.map(lambda _: buckets.take(name, 20)[0], range(60)))
        assert waits.count(0) == 20

    def test_it_refills_evenly(self) -> None:
        now = [1000.0]
        memory = MemoryBuckets(clock=lambda: now[0])
        assert [memory.take("n", 60)[0] for _ in range(61)][-1] == MICROSECONDS
        now[0] += 1
        assert memory.take("n", 60)[0] == 0
        assert memory.take("n", 60)[0] == MICROSECONDS
        now[0] += 600  # never more than a minute's worth
        assert [memory.take("n", 60)[0] for _ in range(61)].count(0) == 60

    def test_full_buckets_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.rate_limits.BUCKETS_MAX", 10)
        now = [1000.0]
        memory = MemoryBuckets(clock=lambda: now[0])
        for number in range(100):
            memory.take(f"n{number}", 60)
            now[0] += 2
        assert len(memory._full_at) <= 10

    def test_while_redis_is_away_the_process_counts_for_itself(self) -> None:
        away = RedisBuckets("redis://127.0.0.1:1/0")
        assert [away.take("n", 2)[0] > 0 for _ in range(3)] == [False, False, True]

    def test_the_store_follows_the_settings(self) -> None:
        assert isinstance(make_buckets(Settings()), MemoryBuckets)
        assert isinstance(make_buckets(Settings(broker_url=REDIS_URL)), RedisBuckets)
        assert isinstance(make_buckets(Settings(rate_limit_url=REDIS_URL)), RedisBuckets)


def test_headers_tell_the_tightest_bucket() -> None:
    told = headers_of(
        [
            Verdict(policy="key", per_minute=60, wait_us=0, full_in_us=MICROSECONDS),
            Verdict(policy="tenant", per_minute=600, wait_us=0, full_in_us=30 * MICROSECONDS),
        ]
    )
    assert told == {
        "RateLimit-Policy": '"key";q=60;w=60, "tenant";q=600;w=60',
        "RateLimit": '"tenant";r=300;t=30',
    }
    assert headers_of([]) == {}


@pytest.fixture
def tight(tmp_path: Path) -> Iterator[Hospital]:
    limits = {
        "rate_limit_per_minute": 3,
        "rate_limit_tenant_per_minute": 5,
        "rate_limit_failures_per_minute": 2,
    }
    with open_hospital(tmp_path, **limits) as hospital:
        yield hospital


class TestAnswers:
    def test_over_the_limit_of_a_key(self, tight: Hospital) -> None:
        headers = tight.people["steward"].headers
        answers = [tight.client.get("/v1/populations", headers=headers) for _ in range(4)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429]
        assert answers[0].headers["RateLimit-Policy"] == '"key";q=3;w=60, "tenant";q=5;w=60'
        assert answers[0].headers["RateLimit"].startswith('"key";r=2;t=')
        refused = answers[3]
        assert 1 <= int(refused.headers["Retry-After"]) <= 20
        assert refused.json()["error"]["code"] == "rate_limited"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.headers["RateLimit"].startswith('"key";r=0;')

    def test_errors_count_and_carry_the_headers(self, tight: Hospital) -> None:
        headers = tight.people["auditor"].headers
        refused = [tight.client.post("/v1/populations", headers=headers) for _ in range(4)]
        assert [a.status_code for a in refused] == [403, 403, 403, 429]
        assert all("RateLimit" in a.headers for a in refused)

    def test_another_key_of_the_hospital_is_met_by_its_limit(self, tight: Hospital) -> None:
        with tight.database.transaction() as session:
            second = issue_key(session, tight.people["steward"].id).text
        first = tight.people["steward"].headers
        for _ in range(3):
            tight.client.get("/v1/populations", headers=first)
        other = {"Authorization": f"Bearer {second}"}
        told = [tight.client.get("/v1/populations", headers=other).status_code for _ in range(3)]
        assert told == [200, 200, 429]
        elsewhere = tight.others["steward"].headers
        assert tight.client.get("/v1/populations", headers=elsewhere).status_code == 200

    def test_wrong_keys_are_slowed_down_and_good_ones_not(self, tight: Hospital) -> None:
        wrong = {"Authorization": "Bearer rldp_abc_def"}
        told = [tight.client.get("/v1/populations", headers=wrong).status_code for _ in range(3)]
        assert told == [401, 401, 429]
        good = tight.people["steward"].headers
        assert tight.client.get("/v1/populations", headers=good).status_code == 200

    def test_health_is_never_limited(self, tight: Hospital) -> None:
        headers = tight.people["steward"].headers
        answers = [tight.client.get("/healthz", headers=headers) for _ in range(9)]
        assert {a.status_code for a in answers} == {200}
        assert "RateLimit" not in answers[0].headers

    def test_zero_is_no_limit(self, tmp_path: Path) -> None:
        limits = {"rate_limit_per_minute": 0, "rate_limit_tenant_per_minute": 0}
        with open_hospital(tmp_path, **limits) as hospital:
            headers = hospital.people["steward"].headers
            answer = hospital.client.get("/v1/populations", headers=headers)
        assert answer.status_code == 200 and "RateLimit" not in answer.headers


class Passing(httpx.BaseTransport):
    """Hands each request of the client to the application, and counts the refused ones."""

    def __init__(self, hospital: Hospital) -> None:
        self._inner, self.refused = hospital.client, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._inner.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        self.refused += answer.status_code == 429
        return httpx.Response(
            answer.status_code, headers=dict(answer.headers), content=answer.content
        )


def test_the_openai_client_waits_and_goes_on(tmp_path: Path) -> None:
    """One token a second: once the bucket is empty the client waits as it is told."""
    with open_hospital(tmp_path, rate_limit_per_minute=60) as hospital:
        buckets = MemoryBuckets()
        hospital.app.state.rate_limits = RateLimits(hospital.settings, buckets)
        key = hospital.people["submitter"].key
        key_id = f"key_{key.split('_')[1]}"
        for _ in range(60):
            buckets.take(f"key:{key_id}", 60)
        transport = Passing(hospital)
        with openai.OpenAI(
            api_key=key,
            base_url="http://testserver/v1",
            max_retries=3,
            http_client=httpx.Client(transport=transport),
        ) as client:
            assert client.models.list().data is not None
        assert transport.refused >= 1
