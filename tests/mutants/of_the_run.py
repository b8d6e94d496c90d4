"""Faults around the step: price, charge, journal, controller, records, audit
(M12, M13, M21-M30, M32, M33)."""

from __future__ import annotations

from tests.mutants.mutation import mutant

ACTION = "test_mechanism.py::TestAdmit::test_any_action_keeps_the_level"
COMPONENTS = "test_mechanism.py::TestAdmit::test_journal_components_give_the_multiplier_back"
SIGMA = "test_mechanism.py::test_vectors_of_the_effective_multiplier"
EIGHT = "test_mechanism.py::test_sigma_times_clip_on_eight_groups_is_not_sigma"
REPLAY = "test_replay.py::TestReplay::test_on_neighbouring_training_data_everything_seen_is_equal"
HELD_OUT = "test_replay.py::TestReplay::test_on_neighbouring_hold_out_data_everything_seen_is_equal"
CANARY = "test_taint.py::TestCanaries::test_a_run_writes_nothing_of_the_data"
FAILURE = "test_taint.py::TestCanaries::test_a_failure_says_nothing_of_the_data"
KILLED = (
    "test_crashes.py::TestKilled::"
    "test_started_steps_are_charged_and_at_most_one_window_in_vain[before_close-retried]"
)
FRESH = "test_crashes.py::TestKilled::test_redone_steps_get_noise_of_their_own"
ADAPTIVE = (
    "test_training.py::TestWholeRun::"
    "test_each_charge_of_an_adaptive_run_holds_the_settings_its_steps_use"
)
SCHEDULED = "test_noise_schedule.py::TestRun"
LAW = "test_noise.py::TestLaw"
NOISE = "test_plan_optimizer.py::TestUpdate::test_noise_enters_once_with_the_std_of_each_component"
TERMS = "terms = math.fsum((d / s) ** 2 for d, s in zip(sensitivities, stds, strict=True))"
DEAL = "        raw_slots = self._ranks.deal(self._draw)\n"
FAILS = "        except Exception:\n            raise StepFailed({}) from None\n"
PROPOSE = "action = self.policy.propose(self.telemetry)"
LEARN = "self.policy.learn(self.telemetry)"
STD_OF_BITS = "*(settings.bit_std,) * self.groups, settings.loss_std]"

PRICE_MUTANTS = (
    mutant(
        "M12a",
        "telemetry is not part of what is charged",
        "mechanism.py",
        "if math.isinf(self.bit_std):\n            return groups",
        "if self.bit_std > 0:\n            return groups",
        COMPONENTS,
        (
            "mechanism.py",
            "if math.isinf(self.bit_std):\n            return self.noise_stds",
            "if self.bit_std > 0:\n            return self.noise_stds",
        ),
    ),
    mutant(
        "M12b",
        "gradients get the whole step's privacy, telemetry comes on top",
        "mechanism.py",
        "/ np.sqrt(shares * (1 - telemetry))",
        "/ np.sqrt(shares)",
        ACTION,
    ),
    mutant(
        "M12c",
        "the clip bits are counted at half their sensitivity",
        "mechanism.py",
        "stds = sigma * clips * CLIP_INFLATION / np.sqrt(shares * (1 - telemetry))",
        "stds = sigma * clips * CLIP_INFLATION / np.sqrt(shares * (1 - telemetry / 2))",
        ACTION,
    ),
    mutant(
        "M25a",
        "the clip is recorded without its margin",
        "mechanism.py",
        "groups = tuple(c * CLIP_INFLATION for c in self.clip_norms)",
        "groups = tuple(self.clip_norms)",
        COMPONENTS,
    ),
    mutant(
        "M25b",
        "stds are rounded to the nearest float32, not up",
        "mechanism.py",
        "if float(rounded) < value:",
        "if float(rounded) < 0:",
        "test_mechanism.py::test_up32_is_the_next_float32_not_below",
    ),
    mutant(
        "M25c",
        "the action before clamping is what counts",
        "mechanism.py",
        "return np.clip(np.where(np.isnan(raw), 0.0, raw), -1.0, 1.0)",
        "return np.where(np.isnan(raw), 0.0, raw)",
        ACTION,
    ),
    mutant(
        "M25d",
        "the charge names the highest level of the menu",
        "training.py",
        "noise_multiplier=settings.noise_multiplier,",
        "noise_multiplier=self.plan.noise_levels[-1],",
        ADAPTIVE,
    ),
    mutant(
        "M25e",
        "the charge holds the settings of the window before",
        "training.py",
        "components=settings.components(),",
        "components=(self.optimizer._armed_settings or settings).components(),",
        ADAPTIVE,
    ),
    mutant(
        "M25f",
        "a redone window takes the schedule's level of the steps that are finished",
        "training.py",
        "action, first_step=started)",
        "action, first_step=self.step)",
        f"{SCHEDULED}::test_redone_steps_move_along_the_schedule",
    ),
    mutant(
        "M25g",
        "a window runs past the end of its level",
        "training.py",
        "steps = min(steps, self.plan.noise_schedule.at(started)[1])",
        "steps = min(steps, self.plan.noise_schedule.steps)",
        f"{SCHEDULED}::test_a_window_ends_where_the_level_does",
    ),
    mutant(
        "M25h",
        "any level of the schedule passes in every window",
        "plan_optimizer.py",
        "if settings.noise_multiplier != level or permit.steps > steps:",
        "if permit.steps > steps:",
        f"{SCHEDULED}::test_another_level_of_the_schedule_is_refused_before_the_draw",
    ),
    mutant(
        "M28a",
        "the largest multiplier of a group stands for the step",
        "mechanism.py",
        TERMS,
        "terms = min((d / s) ** 2 for d, s in zip(sensitivities, stds, strict=True))",
        f"{EIGHT} {SIGMA}",
    ),
    mutant(
        "M28b",
        "the smallest multiplier of a group stands for the step",
        "mechanism.py",
        TERMS,
        "terms = max((d / s) ** 2 for d, s in zip(sensitivities, stds, strict=True))",
        f"{EIGHT} {SIGMA}",
    ),
    mutant(
        "M28c",
        "the mean over the groups stands for the step",
        "mechanism.py",
        TERMS,
        "terms = math.fsum((d / s) ** 2 for d, s in zip(sensitivities, stds, strict=True))"
        " / len(stds)",
        f"{EIGHT} {SIGMA}",
    ),
    mutant(
        "M27a",
        "the filter looks after the charge is booked",
        "accounting.py",
        "if amount > self.free_pico:",
        "if self.free_pico < 0:",
        "test_accounting.py::TestFilterProperties::test_no_adaptive_history_passes_the_budget",
    ),
    mutant(
        "M27b",
        "the loop asks whether anything is left, not whether the window fits",
        "training.py",
        "if steps * step_pico(plan.sampling_probability, menu[index], alpha) <= free:",
        "if free > 0:",
        "test_training.py::TestJournal::test_adaptive_levels_stay_within_the_jobs_filter",
    ),
    mutant(
        "M33a",
        "epsilon and delta may be swapped",
        "accounting.py",
        "if not 0 < dlt < 1:",
        "if dlt <= 0:",
        "test_accounting.py::TestBadInput::test_epsilon_and_delta_swapped_is_refused",
    ),
    mutant(
        "M33b",
        "a delta of 1/patients and above is accepted",
        "plan.py",
        'if not 0 < decimal_of(self.delta, field="delta") * self.patients_public < 1:',
        'if not 0 < decimal_of(self.delta, field="delta") < 1:',
        "test_plan.py::test_delta_lies_between_zero_and_one_in_all_patients[0.0125]",
    ),
    mutant(
        "M33c",
        "a negative epsilon is accepted",
        "accounting.py",
        "if eps <= 0:",
        "if eps == 0:",
        "test_accounting.py::TestBadInput::test_an_epsilon_not_above_zero_is_refused",
    ),
)

NOISE_MUTANTS = (
    mutant(
        "M21a",
        "kernel entropy is a generator with a fixed seed",
        "noise.py",
        "        return os.urandom(length)\n",
        "        return np.random.default_rng(7).bytes(length)\n",
        f"{LAW}::test_two_sources_share_nothing[os_entropy]",
    ),
    mutant(
        "M21b",
        "torch's generator keeps one seed for every attempt and rank",
        "noise.py",
        "os.urandom(4 * _STATE_WORDS)",
        'b"seed" * _STATE_WORDS',
        f"{LAW}::test_two_sources_share_nothing[torch_generator]",
    ),
    mutant(
        "M21c",
        "one stream of noise serves every group",
        "plan_optimizer.py",
        "return source.draw(permit, length)",
        "noise = source.draw(permit, length)\n"
        "        return noise[: length // 8].repeat(9)[:length]",
        "test_plan_optimizer.py::TestNoise",
    ),
    mutant(
        "M21d",
        "a window's second step reuses the noise of the first",
        "noise.py",
        "        vector = self._take_ahead(order)\n",
        '        vector = getattr(self, "_last", self._take_ahead(order))\n',
        f"{LAW}::test_steps_are_independent_unit_gaussians_in_float32[os_entropy]",
        (
            "noise.py",
            "        return vector\n\n    def _consume",
            "        self._last = vector\n        return vector\n\n    def _consume",
        ),
    ),
    mutant(
        "M21e",
        "a resumed attempt repeats the noise of its first",
        "noise.py",
        "    def _entropy(self, length: int, /) -> bytes:\n        return os.urandom(length)",
        "    def _entropy(self, length: int, /) -> bytes:\n"
        '        self._calls = getattr(self, "_calls", 0) + 1\n'
        "        return np.random.default_rng(self._calls).bytes(length)",
        FRESH,
    ),
    mutant(
        "M21f",
        "a forked rank goes on with its parent's generator",
        "noise.py",
        "if self._process != os.getpid():",
        "if self._process == 0:",
        "test_noise.py::TestTorchGenerator::test_a_forked_process_seeds_its_own",
    ),
    mutant(
        "M22a",
        "noise is drawn in bf16",
        "noise.py",
        "        part[:] = normals(part.size)",
        "        part[:] = torch.from_numpy(normals(part.size)).bfloat16().float().numpy()",
        f"{LAW}::test_steps_are_independent_unit_gaussians_in_float32[os_entropy]",
    ),
    mutant(
        "M22b",
        "noise is added in bf16",
        "raw_sums.py",
        "noise.to(self.vector) * self._stds",
        "(noise.bfloat16() * self._stds.bfloat16()).to(self.vector)",
        "test_plan_optimizer.py::TestNoise",
    ),
    mutant(
        "M22c",
        "a plan that names kernel entropy gets torch's generator",
        "noise.py",
        "    source.name: source for source in (OsEntropySource, TorchGeneratorSource)",
        "    source.name: TorchGeneratorSource\n"
        "    for source in (OsEntropySource, TorchGeneratorSource)",
        "test_noise.py::TestFactory",
    ),
    mutant(
        "M22d",
        "bytes of numpy's generator instead of the kernel's",
        "noise.py",
        "        return os.urandom(length)\n",
        "        return np.random.bytes(length)\n",
        "test_noise.py::TestOsEntropy::test_the_kernel_is_asked_for_every_byte",
    ),
)

JOURNAL_MUTANTS = (
    mutant(
        "M15b",
        "an empty draw ends the step without noise",
        "step.py",
        DEAL,
        f"{DEAL}        if bool((raw_slots[:, 0] < 0).all()):\n"
        "            sums, self._optimizer._permit = self._optimizer._sums, None\n"
        "            zeros, count = sums.vector.clone(), sums.coordinates\n"
        "            return ReleasedStep(gradient=zeros[:count], bit_sums=zeros[count:-1],\n"
        "                                sizes=sums.layout.sizes, loss_sum=0.0)\n",
        "test_crashes.py::TestEmptyDraw",
    ),
    mutant(
        "M15c",
        "an empty draw is not charged: patients are drawn first",
        "training.py",
        f"        {PROPOSE}\n",
        "        while len(self.step_runner._sampler.draw().reveal_inside_step()) == 0:\n"
        f"            continue\n        {PROPOSE}\n",
        KILLED,
    ),
    mutant(
        "M16e",
        "the charge holds one step less than the window runs",
        "training.py",
        "            steps=steps,\n",
        "            steps=max(steps - 1, 1),\n",
        "test_training.py::TestWholeRun::test_every_step_is_charged_before_it_runs",
    ),
    mutant(
        "M23a",
        "a redone window asks for its old charge again",
        "training.py",
        "chunk_index=position.next_chunk,",
        "chunk_index=self.chunk + 1,",
        KILLED,
        ("training.py", "first_step=started,", "first_step=self.step,"),
    ),
    mutant(
        "M23b",
        "a failed step is run again on its old charge",
        "step.py",
        FAILS.format("step_index"),
        "        except Exception:\n            self._optimizer._permit = None\n"
        "            return self._run(permit, settings, canaries)\n",
        "test_crashes.py::TestFailed",
    ),
    mutant(
        "M23c",
        "spending is taken from the checkpoint",
        "training.py",
        "self.plan.steps_started_max - started,",
        "self.plan.steps_started_max - self.step,",
        KILLED,
        ("training.py", "first_step=started,", "first_step=self.step,"),
        ("training.py", "chunk_index=position.next_chunk,", "chunk_index=self.chunk + 1,"),
    ),
)

CONTROLLER_MUTANTS = (
    mutant(
        "M13a",
        "clip counts are released without noise",
        "raw_sums.py",
        STD_OF_BITS,
        "*(0.0,) * self.groups, settings.loss_std]",
        NOISE,
    ),
    mutant(
        "M13b",
        "clip counts are released and not charged",
        "mechanism.py",
        "[CLIP_BIT_SENSITIVITY] * len(self.layout)",
        "[CLIP_BIT_SENSITIVITY * 1e-9] * len(self.layout)",
        COMPONENTS,
    ),
    mutant(
        "M13c",
        "the count of patients drawn goes to the log",
        "step.py",
        DEAL,
        f"{DEAL}        count = int((raw_slots[:, 0] >= 0).sum())\n"
        '        __import__("logging").getLogger("dp_core").info("drawn %d", count)\n',
        REPLAY,
    ),
    mutant(
        "M13d",
        "the policy learns from the exact clip counts",
        "training.py",
        LEARN,
        "self.policy.learn(dataclasses.replace(self.telemetry, "
        "filter_used=float(self.optimizer._engine._clipper._norms.sum())))",
        REPLAY,
    ),
    mutant(
        "M24a",
        "the controller is shown the exact number of patients",
        "training.py",
        "filter_used=position.job_units / self.plan.job_limit,",
        "filter_used=float(self.step_runner._records.raw_size),",
        REPLAY,
    ),
    mutant(
        "M24b",
        "the training loss goes out without its noise",
        "raw_sums.py",
        STD_OF_BITS,
        "*(settings.bit_std,) * self.groups, 0.0]",
        NOISE,
    ),
    mutant(
        "M24c",
        "the policy also sees the private hold-out, uncharged",
        "training.py",
        LEARN,
        "if self.hold_out is not None:\n"
        "            raw = self.hold_out._raw_sum(self.model, 3.0, self.hold_out._draw())\n"
        "            self.policy.learn(dataclasses.replace(self.telemetry, filter_used=raw))",
        HELD_OUT,
    ),
    mutant(
        "M26",
        "the policy acts on the batch about to be used",
        "training.py",
        PROPOSE,
        "raw = self.step_runner._sampler.draw().reveal_inside_step()\n"
        "        action = self.policy.propose(dataclasses.replace("
        "self.telemetry, filter_used=float(raw.sum())))",
        REPLAY,
    ),
    mutant(
        "M29a",
        "raw losses are printed",
        "step.py",
        "    return losses.detach()\n",
        "    print(losses.detach())\n    return losses.detach()\n",
        CANARY,
    ),
    mutant(
        "M29b",
        "raw losses are logged at debug level",
        "step.py",
        "    return losses.detach()\n",
        '    __import__("logging").getLogger("x").debug("%s", losses.tolist())\n'
        "    return losses.detach()\n",
        CANARY,
    ),
    mutant(
        "M29c",
        "a failed step carries the error of the data path",
        "step.py",
        FAILS.format("step_index"),
        "        except Exception:\n            raise StepFailed(step_index)\n",
        FAILURE,
    ),
    mutant(
        "M29d",
        "a failed hold-out query carries the error of the data path",
        "evaluation.py",
        FAILS.format("step"),
        "        except Exception:\n            raise\n",
        FAILURE,
    ),
    mutant(
        "M29e",
        "a raw value shows itself",
        "telemetry.py",
        "    __repr__ = __str__ = __format__ = __bool__",
        "    __repr__ = lambda self: str(self._raw_value)\n    __str__ = __format__ = __bool__",
        "test_taint.py::TestRaw",
    ),
    mutant(
        "M29f",
        "a warm start: the exact hold-out loss is in the first telemetry",
        "training.py",
        "            validation_loss=None,\n            groups=initial_group_telemetry",
        "            validation_loss=ReleasedValue(\n"
        "                value=self.hold_out._raw_sum(self.model, 3.0, self.hold_out._draw()),\n"
        "                std=1.0,\n"
        "            ),\n            groups=initial_group_telemetry",
        HELD_OUT,
    ),
    mutant(
        "M30a",
        "each note is a unit of its own, named patient",
        "records.py",
        "found.add(patient_id, windows(whole, tokens_per_row))",
        'found.add(f"{patient_id}/{ids}", windows(whole, tokens_per_row))',
        "test_records.py::TestLoading::test_patients_keep_all_their_notes_and_blocks_are_disjoint",
    ),
    mutant(
        "M30b",
        "each window of a long note is a unit of its own",
        "records.py",
        "found.add(patient_id, windows(whole, tokens_per_row))",
        "for n, window in enumerate(windows(whole, tokens_per_row)):\n"
        '            found.add(f"{patient_id}/{n}", [window])',
        "test_records.py::TestLoading::test_a_long_note_becomes_windows_of_the_same_patient",
    ),
    mutant(
        "M30c",
        "unit record without the statement that records are patients",
        "plan.py",
        'if self.unit == "record" and not self.records_are_unique_patients:',
        'if self.unit == "note":',
        "test_plan.py::test_unit_record_needs_the_statement_that_records_are_patients",
    ),
)

MUTANTS_OF_THE_RUN = (*PRICE_MUTANTS, *NOISE_MUTANTS, *JOURNAL_MUTANTS, *CONTROLLER_MUTANTS)
