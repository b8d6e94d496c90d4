"""Creation, refusal, estimate and cancel, on both databases."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from service.auth.subject import Subject
from service.database import Database, now_us
from service.errors import DatasetRequired, FileInvalid, NotFound
from service.jobs import outbox, repository, service, steering
from service.jobs.errors import (
    FieldInvalid,
    JobNotFound,
    ModelNotAllowed,
    PlanInfeasible,
    PrivacyRequired,
    UnsupportedOption,
)
from service.jobs.models import Job, JobEvent, NaturalKey, Outbox
from service.jobs.schemas import JobRequest
from service.ledger.errors import BudgetExceeded, PopulationNotGranted
from service.ledger.models import Account, Entry, Posting, Reservation
from service.ledger.service import epsilon_limits
from service.settings import Settings
from tests.service.jobs import world as w
from tests.service.ledger import world as lw

BODY: dict[str, Any] = {
    "model": "medtext-gpt2-4m",
    "seed": 7,
    "method": {
        "type": "supervised",
        "supervised": {"hyperparameters": {"batch_size": 1000}},
    },
    "privacy": {"target_epsilon": "3.0", "steps_max": 40},
    "controller": {"type": "rldp", "interval_steps": 10},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def file_id(world: lw.World, tmp_path: Path) -> str:
    return w.add_dataset(world, tmp_path)[0]


def subject_of(world: lw.World, role: str = "submitter") -> Subject:
    people = {"submitter": world.submitter, "steward": world.proposer, "admin": world.admin}
    return Subject(principal_id=people.get(role, world.auditor), tenant_id=world.tenant, role=role)


def request(file_id: str, **changes: Any) -> JobRequest:
    return JobRequest.model_validate({**BODY, "training_file": file_id, **changes})


def create(world: lw.World, settings: Settings, body: JobRequest) -> service.Created:
    return service.create_job(world.db, settings, subject_of(world), body)


def rows(db: Database) -> dict[str, int | None]:
    tables = (Job, JobEvent, Outbox, NaturalKey, Reservation, Account, Posting, Entry)
    with db.reading() as session:
        return {
            table.__tablename__: session.scalar(select(func.count()).select_from(table))
            for table in tables
        }


class TestCreate:
    def test_job_reservation_and_doorbell_come_together(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        answer = create(world, settings, request(file_id)).answer
        job = answer["id"]
        assert (answer["status"], answer["state"]) == ("queued", "queued")
        assert answer["reason_code"] == "waiting_for_worker"
        assert w.outbox(world.db, job) == [("doorbell", "queued")]
        assert w.entry_types(world.db, job) == ["reserve"]
        with world.db.reading() as session:
            held = epsilon_limits(session, world.population).blocks[0].held_pico
        assert str(held) == answer["privacy"]["reserved_pico"]

    def test_the_answer_echoes_every_resolved_value(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        body = request(file_id, metadata={"team": "icu"}, suffix="cardio")
        answer = create(world, settings, body).answer
        assert answer["object"] == "fine_tuning.job"
        assert answer["seed"] == 7 and answer["metadata"] == {"team": "icu"}
        assert answer["trained_tokens"] is None and answer["fine_tuned_model"] is None
        privacy = answer["privacy"]
        assert privacy["target_epsilon"] == "3.0" and privacy["delta"] == "1e-6"
        assert privacy["steps_max"] == 40 and privacy["steps_started_max"] == 60
        assert privacy["sampling_probability"] == "0.01"
        assert privacy["epsilon_so_far"] == {"value": "0", "guarantee": False}
        assert privacy["epsilon_certified"] is None
        assert answer["controller"]["type"] == "rldp"
        assert answer["adapter"] == {"type": "lora", "r": 16, "alpha": 32, "target_modules": "auto"}
        assert answer["release"] == {"state": "none"}

    def test_both_blocks_show_what_they_reserve(
        self, db: Database, settings: Settings, tmp_path: Path
    ) -> None:
        world = lw.open_world(db, validation_fraction="0.1")
        file_id, _ = w.add_dataset(world, tmp_path)
        body = request(file_id, method={"supervised": {"hyperparameters": {"batch_size": 900}}})
        blocks = create(world, settings, body).answer["privacy"]["blocks"]
        assert [block["block"] for block in blocks] == ["train", "validation"]
        assert all(int(block["reserved_pico"]) > 0 for block in blocks)
        assert all(block["spent_pico"] == "0" for block in blocks)

    def test_a_missing_seed_is_drawn(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        first = create(world, settings, request(file_id, seed=None, allow_duplicate=True))
        second = create(world, settings, request(file_id, seed=None, allow_duplicate=True))
        assert first.answer["seed"] != second.answer["seed"]

    def test_the_shipped_policy_steers_no_job_longer_than_it_was_seen_to_help(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        long = {"target_epsilon": "3", "steps_max": 41}
        body = request(file_id, controller={"type": "rldp_pretrained"}, privacy=long)
        before = rows(world.db)
        with pytest.raises(FieldInvalid, match=r"up to 40 steps .* this one has 41"):
            create(world, settings, body)
        assert rows(world.db) == before

    def test_adaptive_mode_has_a_menu_and_an_order_of_its_own(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        privacy = {"target_epsilon": "3", "steps_max": 400, "mode": "adaptive_sigma"}
        body = request(file_id, privacy=privacy)
        answer = create(world, settings, body).answer["privacy"]
        assert answer["rule"] == "rdp_filter" and answer["alpha_job"] is not None
        assert len(answer["noise_levels"]) > 1

    def test_noise_may_fall_by_a_schedule_fixed_beforehand(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        decay = {"final_fraction": "0.5", "levels": 2}
        privacy = {"target_epsilon": "3", "steps_max": 40, "noise_schedule": decay}
        body = request(file_id, privacy=privacy)
        with world.db.reading() as session:
            told = service.estimate_job(session, settings, subject_of(world), body)
        answer = create(world, settings, body).answer["privacy"]
        parts = answer["noise_schedule"]
        high, low, margin = (Decimal(p["level"]) for p in parts)
        assert high == margin > low, "spare windows are priced at the most noise"
        assert sum(p["steps"] for p in parts) == answer["steps_started_max"]
        assert answer["rule"] == "pld_fixed_schedule"
        assert told["noise_schedule"] == parts
        assert answer["reserved_pico"] == told["reserve_pico"]
        price = {x["noise_multiplier"]: int(x["step_pico"]) for x in told["levels"]}
        assert int(told["reserve_pico"]) == sum(p["steps"] * price[p["level"]] for p in parts)


class TestRefusal:
    @pytest.mark.parametrize(
        ("changes", "error", "param"),
        [
            ({"privacy": {}}, PrivacyRequired, "privacy.target_epsilon"),
            ({"privacy": {"target_epsilon": "0.01"}}, FieldInvalid, "privacy.target_epsilon"),
            (
                {"privacy": {"target_epsilon": "3", "delta": "0.5"}},
                FieldInvalid,
                "privacy.delta",
            ),
            (
                {"privacy": {"target_epsilon": "3", "noise_levels": ["1.0"]}},
                UnsupportedOption,
                "privacy.noise_levels",
            ),
            (
                {
                    "privacy": {
                        "target_epsilon": "3",
                        "mode": "adaptive_sigma",
                        "noise_schedule": {"final_fraction": "0.5"},
                    }
                },
                FieldInvalid,
                "privacy.noise_schedule",
            ),
            (
                {"privacy": {"target_epsilon": "3", "noise_schedule": {"final_fraction": "2"}}},
                FieldInvalid,
                "privacy.noise_schedule.final_fraction",
            ),
            ({"method": {"type": "dpo"}}, UnsupportedOption, "method.type"),
            ({"method": {"type": "dp"}}, UnsupportedOption, "method.type"),
            ({"integrations": [{"type": "wandb"}]}, UnsupportedOption, "integrations"),
            ({"validation_file": "file-x"}, UnsupportedOption, "validation_file"),
            ({"priority": "high"}, UnsupportedOption, "priority"),
            ({"controller": {"type": "broken"}}, UnsupportedOption, "controller.type"),
            ({"model": "gpt-4o-mini"}, ModelNotAllowed, "model"),
            (
                {
                    "privacy": {"target_epsilon": "3", "steps_max": 4},
                    "method": {"supervised": {"hyperparameters": {"n_epochs": 1}}},
                },
                FieldInvalid,
                "privacy.steps_max",
            ),
            (
                {"hyperparameters": {"batch_size": 999_999}},
                FieldInvalid,
                "hyperparameters",
            ),
        ],
    )
    def test_each_refusal_names_its_field_and_writes_nothing(
        self,
        world: lw.World,
        settings: Settings,
        file_id: str,
        changes: dict[str, Any],
        error: type[Exception],
        param: str,
    ) -> None:
        before = rows(world.db)
        with pytest.raises(error) as refused:
            create(world, settings, request(file_id, **changes))
        assert getattr(refused.value, "param", None) == param
        assert rows(world.db) == before

    def test_a_batch_above_the_patients_is_refused(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        body = request(file_id, method={}, hyperparameters={"batch_size": 999_999})
        with pytest.raises(FieldInvalid):
            create(world, settings, body)

    def test_what_no_noise_can_reach_is_infeasible(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        body = request(
            file_id,
            method={"supervised": {"hyperparameters": {"batch_size": 100_000}}},
            privacy={"target_epsilon": "0.1", "steps_max": 100_000},
        )
        with pytest.raises(PlanInfeasible):
            create(world, settings, body)

    def test_a_refused_budget_changes_nothing_but_enters_the_refusal(
        self, db: Database, settings: Settings, tmp_path: Path
    ) -> None:
        world = lw.open_world(db, epsilon="0.8")
        greedy = request(w.add_dataset(world, tmp_path)[0])
        before = rows(world.db)
        for _ in range(2):  # asked twice: one entry
            with pytest.raises(BudgetExceeded) as refused:
                create(world, settings, greedy)
        assert refused.value.requested_pico > refused.value.available_pico
        after = rows(world.db)
        assert after == {**before, "entry": (before["entry"] or 0) + 1}
        with world.db.reading() as session:
            newest = session.scalar(select(Entry.type).order_by(Entry.idx.desc()).limit(1))
        assert newest == "reserve.refused"

    def test_a_refusal_stands_once_though_the_balance_has_changed(
        self, db: Database, settings: Settings, tmp_path: Path
    ) -> None:
        world = lw.open_world(db, epsilon="0.8")
        greedy = request(w.add_dataset(world, tmp_path)[0])
        entered, free = [], []
        for epsilon in ("0.81", "0.82"):
            lw.grant(world, world.population, epsilon)
            with pytest.raises(BudgetExceeded) as refused:
                create(world, settings, greedy)
            entered.append(refused.value.entry)
            free.append(refused.value.available_pico)
        assert free[0] < free[1]
        assert entered[0] is not None and entered[0] == entered[1]
        log_id, idem = entered[0]
        with world.db.reading() as session:
            stands = session.scalars(select(Entry).where(Entry.type == "reserve.refused")).all()
        assert [(one.log_id, one.idem) for one in stands] == [(log_id, idem)]

    def test_a_population_without_a_grant_pays_nothing(
        self, db: Database, settings: Settings, tmp_path: Path
    ) -> None:
        world = lw.found(db)
        world.population = lw.add_population(world)
        file_id, _ = w.add_dataset(world, tmp_path)
        with pytest.raises(PopulationNotGranted):
            create(world, settings, request(file_id))

    def test_files_of_others_are_not_there(
        self, db: Database, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        other = lw.open_world(db)
        with pytest.raises(NotFound):
            service.create_job(db, settings, subject_of(other), request(file_id))
        stranger = Subject(principal_id="usr_x", tenant_id=world.tenant, role="submitter")
        with pytest.raises(NotFound):
            service.create_job(db, settings, stranger, request(file_id))

    def test_a_file_without_dataset_or_validity_is_refused(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        from service.datasets.models import DatasetVersion, File

        with world.db.transaction() as session:
            session.execute(update(DatasetVersion).values(state="erased"))
        with pytest.raises(DatasetRequired):
            create(world, settings, request(file_id))
        with world.db.transaction() as session:
            session.execute(update(File).values(status="error", errors_total=1))
        with pytest.raises(FileInvalid):
            create(world, settings, request(file_id))


class TestNaturalKey:
    def test_an_equal_request_finds_its_job(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        first = create(world, settings, request(file_id, seed=None))
        before = rows(world.db)
        again = create(world, settings, request(file_id, seed=None))
        assert not first.is_replayed and again.is_replayed
        assert again.answer["id"] == first.answer["id"]
        assert rows(world.db) == before

    def test_two_equal_requests_at_once_make_one_job(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        body = request(file_id)
        create_once = lambda _: create(world, settings, body)  # noqa: E731
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(create_once, range(2)))
        assert made[0].answer["id"] == made[1].answer["id"]
        assert sorted(one.is_replayed for one in made) == [False, True]
        counts = rows(world.db)
        assert (counts["job"], counts["reservation"]) == (1, 1)

    @pytest.mark.parametrize(
        "changes", [{"allow_duplicate": True}, {"seed": 8}, {"metadata": {"a": "b"}}]
    )
    def test_another_request_or_the_switch_makes_another_job(
        self, world: lw.World, settings: Settings, file_id: str, changes: dict[str, Any]
    ) -> None:
        create(world, settings, request(file_id))
        assert not create(world, settings, request(file_id, **changes)).is_replayed
        assert rows(world.db)["job"] == 2

    def test_ten_minutes_after_its_end_the_job_is_not_found_any_more(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        first = create(world, settings, request(file_id)).answer["id"]
        with world.db.transaction() as session:
            steering.cancel_job(session, subject_of(world), first)
        assert create(world, settings, request(file_id)).is_replayed
        with world.db.transaction() as session:
            session.execute(update(Job).values(finished_at=now_us() - 601 * w.SECOND))
        second = create(world, settings, request(file_id))
        assert not second.is_replayed and second.answer["id"] != first
        assert create(world, settings, request(file_id)).answer["id"] == second.answer["id"]

    def test_the_dispatcher_forgets_keys_of_jobs_long_over(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        job = create(world, settings, request(file_id)).answer["id"]
        outbox.clean(world.db)
        assert rows(world.db)["natural_key"] == 1
        with world.db.transaction() as session:
            steering.cancel_job(session, subject_of(world), job)
            session.execute(update(Job).values(finished_at=now_us() - 601 * w.SECOND))
        outbox.clean(world.db)
        assert rows(world.db)["natural_key"] == 0


class TestEstimate:
    def test_it_equals_the_reservation_over_random_specs(
        self, db: Database, settings: Settings, tmp_path: Path
    ) -> None:
        chance = random.Random(20260)
        world = lw.open_world(db, epsilon="60", validation_fraction="0.1")
        file_id, _ = w.add_dataset(world, tmp_path)
        checked = 0
        for trial in range(12):
            # fixed mode composes privacy losses, seconds per new schedule: few of those
            fixed = {"mode": "fixed_sigma", "target_epsilon": "3", "steps_max": 40}
            adaptive = {
                "mode": "adaptive_sigma",
                "target_epsilon": chance.choice(["1", "3.5", "8"]),
                "steps_max": chance.choice([400, 770]),
                "margin_windows": chance.choice([0, 2]),
            }
            body = request(
                file_id,
                hyperparameters={"batch_size": chance.choice([300, 900, 2000, "auto"])}
                if trial % 4
                else {"batch_size": 900},
                method={},
                privacy=adaptive if trial % 4 else fixed,
                controller={"interval_steps": chance.choice([5, 25]) if trial % 4 else 10},
                allow_duplicate=True,
            )
            before = rows(world.db)
            with world.db.reading() as session:
                told = service.estimate_job(session, settings, subject_of(world), body)
            assert rows(world.db) == before, "an estimate writes nothing"
            if not told["feasible"]:
                continue
            privacy = create(world, settings, body).answer["privacy"]
            assert told["reserve_pico"] == privacy["reserved_pico"]
            assert [b["reserve_pico"] for b in told["blocks"]] == [
                b["reserved_pico"] for b in privacy["blocks"]
            ]
            with world.db.reading() as session:
                left = epsilon_limits(session, world.population).blocks[0].free_pico
            assert told["available_after_pico"] == str(left)
            checked += 1
        assert checked >= 4

    def test_what_does_not_fit_is_an_answer_with_remedies(
        self, db: Database, settings: Settings, tmp_path: Path
    ) -> None:
        world = lw.open_world(db, epsilon="0.8")
        greedy = request(w.add_dataset(world, tmp_path)[0])
        with world.db.reading() as session:
            told = service.estimate_job(session, settings, subject_of(world), greedy)
        assert told["feasible"] is False and "ask_grant" in told["remedies"]
        assert told["available_after_pico"] is None

    def test_an_impossible_plan_is_an_answer_with_remedies(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        body = request(
            file_id,
            method={"supervised": {"hyperparameters": {"batch_size": 100_000}}},
            privacy={"target_epsilon": "0.1", "steps_max": 100_000},
        )
        with world.db.reading() as session:
            told = service.estimate_job(session, settings, subject_of(world), body)
        assert told["feasible"] is False and told["remedies"]

    def test_minutes_come_from_the_stated_speed_until_a_run_has_finished(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        def minutes(**changes: Any) -> Any:
            with world.db.reading() as session:
                body = request(file_id, **changes)
                return service.estimate_job(session, settings, subject_of(world), body)["minutes"]

        first = minutes()
        assert first["source"] == "estimated" and first["low"] < first["high"]
        settings.device_gflops = settings.device_gflops * 100
        quicker = minutes()
        assert quicker["source"] == "measured" and quicker["high"] < first["high"]
        w.queue_job(  # 20 steps of 900 patients in 20 minutes
            world,
            model="medtext-gpt2-4m",
            state="succeeded",
            attempt=1,
            epoch=1,
            step=20,
            started_at=0,
            finished_at=20 * 60 * w.SECOND,
        )
        assert minutes() == {"low": 35, "high": 54, "source": "past_runs"}  # 40 of 1000
        half = {"supervised": {"hyperparameters": {"batch_size": 500}}}
        assert minutes(method=half)["high"] == 27


class TestAutoPlan:
    """What is left on auto is chosen for the best utility within the compute granted."""

    def told(self, world: lw.World, settings: Settings, body: JobRequest) -> dict[str, Any]:
        with world.db.reading() as session:
            return service.estimate_job(session, settings, subject_of(world), body)

    def auto(self, file_id: str, **privacy: Any) -> JobRequest:
        return request(file_id, method={}, privacy={"target_epsilon": "3", **privacy})

    def test_more_minutes_buy_more_signal_and_stay_within_them(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        plans = [
            self.told(world, settings, self.auto(file_id, minutes_max=minutes))["plan"]
            for minutes in ("40", "160")
        ]
        assert float(plans[1]["signal_to_noise"]) > 1.2 * float(plans[0]["signal_to_noise"])
        for plan, granted in zip(plans, (40, 160), strict=True):
            assert 0.7 * granted < plan["minutes"] <= granted

    def test_creation_takes_the_plan_that_the_estimate_told(
        self, db: Database, settings: Settings, tmp_path: Path
    ) -> None:
        world = lw.open_world(db, epsilon="60", validation_fraction="0.1")
        body = self.auto(w.add_dataset(world, tmp_path)[0], minutes_max="30")
        told = self.told(world, settings, body)
        answer = create(world, settings, body).answer
        assert answer["privacy"]["reserved_pico"] == told["reserve_pico"]
        assert answer["privacy"]["steps_max"] == told["steps_max"]
        assert answer["hyperparameters"]["batch_size"] == told["batch_size"]

    def test_without_minutes_three_passes_are_the_limit(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        plan = self.told(world, settings, self.auto(file_id))["plan"]
        assert 2.5 < float(plan["passes"]) <= 3
        assert {a["compute_factor"] for a in plan["alternatives"]} == {"0.5", "2"}

    def test_what_is_given_stays(self, world: lw.World, settings: Settings, file_id: str) -> None:
        steps = self.told(world, settings, self.auto(file_id, minutes_max="40", steps_max=90))
        assert steps["steps_max"] == 90
        parameters = {"supervised": {"hyperparameters": {"batch_size": 700}}}
        body = request(
            file_id, method=parameters, privacy={"target_epsilon": "3", "minutes_max": "40"}
        )
        assert self.told(world, settings, body)["batch_size"] == 700

    @pytest.mark.parametrize(
        ("privacy", "parameters"),
        [
            ({"minutes_max": "0"}, {}),
            ({"minutes_max": "5", "steps_max": 9}, {"batch_size": 70}),
            ({"minutes_max": "5"}, {"n_epochs": 2}),
        ],
    )
    def test_minutes_that_leave_nothing_to_choose_are_refused(
        self,
        world: lw.World,
        settings: Settings,
        file_id: str,
        privacy: dict[str, Any],
        parameters: dict[str, Any],
    ) -> None:
        body = request(
            file_id,
            method={"supervised": {"hyperparameters": parameters}},
            privacy={"target_epsilon": "3", **privacy},
        )
        with pytest.raises(FieldInvalid) as refused:
            self.told(world, settings, body)
        assert refused.value.param == "privacy.minutes_max"

    def test_minutes_too_few_for_what_is_fixed_are_told(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        body = self.auto(file_id, minutes_max="1", steps_max=800)
        assert "minutes_above_limit" in self.told(world, settings, body)["warnings"]


class TestLists:
    def test_pages_follow_each_other_newest_first(self, world: lw.World) -> None:
        made = [w.queue_job(world, created_at=now_us() + i) for i in range(5)]
        seen: list[str] = []
        after = None
        more = True
        with world.db.reading() as session:
            while more:
                page, more = repository.page_of_jobs(
                    session, subject_of(world), after=after, limit=2, metadata={}
                )
                seen += [job.id for job in page]
                after = seen[-1]
        assert seen == made[::-1]

    def test_metadata_filters(self, world: lw.World) -> None:
        wanted = w.queue_job(world, labels={"team.x": "icu", "n": "1"})
        w.queue_job(world, labels={"team.x": "er"})
        with world.db.reading() as session:
            page, _ = repository.page_of_jobs(
                session, subject_of(world), after=None, limit=9, metadata={"team.x": "icu"}
            )
            assert [job.id for job in page] == [wanted]

    def test_a_submitter_sees_own_jobs_and_a_steward_all_of_the_hospital(
        self, db: Database, world: lw.World
    ) -> None:
        job = w.queue_job(world)
        stranger = Subject(principal_id="usr_x", tenant_id=world.tenant, role="submitter")
        foreign = subject_of(lw.open_world(db), "steward")
        with db.reading() as session:
            for subject in (stranger, foreign, subject_of(world, "auditor")):
                with pytest.raises(JobNotFound):
                    repository.visible_job(session, subject, job)
            for role in ("submitter", "steward", "admin"):
                assert repository.visible_job(session, subject_of(world, role), job).id == job
