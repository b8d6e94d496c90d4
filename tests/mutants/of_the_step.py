"""Faults of one step: noise, clips, sums, draws, rows (M1-M11, M14-M20)."""

from __future__ import annotations

from tests.mutants.mutation import mutant

GRAD = "test_per_sample.py::TestGradients::test_every_family_and_rule_in_float64"
GRAD_ROWS = f"{GRAD}[3-llama]"
HOOKS = "test_per_sample.py::TestGradients::test_equal_to_opacus_hooks[off-llama]"
MICRO = (
    "test_per_sample.py::TestMicrobatches::"
    "test_their_size_changes_nothing_and_noise_is_drawn_once[2]"
)
STACKED = (
    "test_per_sample.py::TestMicrobatches::"
    "test_same_shape_groups_stacked_or_one_by_one_give_the_same"
)
SENS = (
    "test_clipping.py::TestSensitivity::"
    "test_one_patient_moves_the_joint_release_by_at_most_the_promise"
)
TABLE = "test_clipping.py::TestClipAndSum::test_each_row_of_the_table"
NORM = "test_clipping.py::TestNorms::test_equal_coordinates_do_not_hide_length"
BENCH = "test_plan_optimizer.py::TestUpdate"
NOISE = f"{BENCH}::test_noise_enters_once_with_the_std_of_each_component"
DIVISOR = f"{BENCH}::test_is_the_noised_sum_over_the_public_batch_size_whatever_was_drawn"
SETTINGS = f"{BENCH}::test_new_settings_move_clips_and_noise_together"
KNOBS = "test_optimizer.py::TestKnobs"
OPACUS = "test_optimizer.py::TestAsOpacus"
ACTION = "test_mechanism.py::TestAdmit::test_any_action_keeps_the_level"
LOOP = "test_training.py::TestWholeRun::test_every_step_is_charged_before_it_runs"

NOISED = "self.vector += noise.to(self.vector) * self._stds"
DRAW = "return source.draw(permit, length)"
STDS = "stds = sigma * clips * CLIP_INFLATION / np.sqrt(shares * (1 - telemetry))"
FACTORS_OF_STACK = "        self._norms[index] = norms\n        sums = weighted_sum("
BMM = "return torch.bmm(factors.unsqueeze(1), rows).squeeze(1)"

NOISE_MUTANTS = (
    mutant(
        "M1a",
        "the noise is not added",
        "raw_sums.py",
        NOISED,
        "self.vector += 0 * noise.to(self.vector) * self._stds",
        NOISE,
    ),
    mutant(
        "M1b",
        "a noise multiplier of 0 is accepted",
        "events.py",
        'if decimal_of(self.noise_multiplier, field="noise_multiplier") <= 0:',
        'if decimal_of(self.noise_multiplier, field="noise_multiplier") < 0:',
        "test_accounting.py::TestBadInput::test_values_outside_the_mechanism_are_refused[0.1-0]",
    ),
    mutant(
        "M1c",
        "the optimiser without a plan skips add_noise",
        "optimizer.py",
        "p.grad = (p.summed_grad + noise).view_as(p)",
        "p.grad = (p.summed_grad + 0 * noise).view_as(p)",
        OPACUS,
    ),
    mutant(
        "M1d",
        "a hold-out loss without noise",
        "evaluation.py",
        "* self._std\n",
        "* 0.0\n",
        "test_evaluation.py::test_noise_of_the_stated_std_enters_each_query",
    ),
    mutant(
        "M2a",
        "the noise std is halved",
        "raw_sums.py",
        NOISED,
        "self.vector += noise.to(self.vector) * (self._stds / 2)",
        NOISE,
    ),
    mutant(
        "M2b",
        "the noise is divided by the batch size before it meets the sum",
        "plan_optimizer.py",
        DRAW,
        f"{DRAW} / self.expected_batch_size",
        NOISE,
    ),
    mutant(
        "M2c",
        "noise of the sum's std is added after averaging",
        "plan_optimizer.py",
        DRAW,
        f"{DRAW} * self.expected_batch_size",
        NOISE,
    ),
    mutant(
        "M2d",
        "the mean of four draws has half the std",
        "noise.py",
        "axis=0), 1)) / 2.0",
        "axis=0), 1)) / 4.0",
        "test_noise.py::TestLaw::test_steps_are_independent_unit_gaussians_in_float32[os_entropy]",
    ),
    mutant(
        "M3a",
        "noise sigma * C_k on every group, charged as sigma",
        "mechanism.py",
        STDS,
        "stds = sigma * clips * CLIP_INFLATION",
        ACTION,
    ),
    mutant(
        "M3b",
        "the same, and nothing recomputes sigma before the step",
        "mechanism.py",
        STDS,
        "stds = sigma * clips * CLIP_INFLATION",
        ACTION,
        (
            "mechanism.py",
            "if not float(level) <= sigma <= float(level) * (1 + 2e-6):",
            "if sigma <= 0:",
        ),
    ),
    mutant(
        "M3c",
        "A and B of a pair are clipped apart: sqrt(2) of the charged bound",
        "engine.py",
        "        norms = joint_norms(each)\n        self._norms[group] = norms",
        "        norms = torch.stack(each).amax(dim=0)\n        self._norms[group] = norms",
        GRAD_ROWS,
    ),
    mutant(
        "M3d",
        "per-layer noise from the largest clip alone",
        "mechanism.py",
        "joint = math.sqrt(math.fsum(c * c for c in clip_norms))",
        "joint = max(clip_norms)",
        f"{KNOBS}::test_writing_the_list_of_clip_norms_moves_the_noise_with_it",
    ),
    mutant(
        "M4a",
        "the controller's clips move, the noise of the step before stays",
        "raw_sums.py",
        "if settings is not self._settings:",
        "if self._settings is None:",
        SETTINGS,
    ),
    mutant(
        "M4b",
        "writing the list of clip norms leaves the noise",
        "optimizer.py",
        "self._settings = self._made(tuple(values), float(self._settings.noise_multiplier))",
        'self._settings = __import__("dataclasses").replace('
        "self._settings, clip_norms=tuple(values))",
        f"{KNOBS}::test_writing_the_list_of_clip_norms_moves_the_noise_with_it",
    ),
    mutant(
        "M5a",
        "the noise shrinks with new settings, the engine clips by the old ones",
        "engine.py",
        "if settings is not self._settings:",
        "if self._settings is None:",
        SETTINGS,
    ),
    mutant(
        "M5b",
        "writing the scalar clip norm moves the noise alone",
        "optimizer.py",
        "        self._settings = self._made(value, float(self._settings.noise_multiplier))",
        "        new = self._made(value, float(self._settings.noise_multiplier))\n"
        '        self._settings = __import__("dataclasses").replace('
        "new, clip_norms=self._settings.clip_norms)",
        f"{KNOBS}::test_writing_the_clip_norm_moves_the_noise_with_it",
    ),
)

CLIP_MUTANTS = (
    mutant(
        "M6a",
        "the first group is summed unclipped",
        "engine.py",
        FACTORS_OF_STACK,
        f"        factors[[k == 0 for k, _ in members]] = 1.0\n{FACTORS_OF_STACK}",
        GRAD_ROWS,
    ),
    mutant(
        "M6b",
        "whitened: one group keeps its own length",
        "engine.py",
        "        for k, group in enumerate(self.groups):\n            keys = ",
        "        for k, group in enumerate(self.groups):\n"
        "            factors = factors if k else torch.ones_like(factors)\n            keys = ",
        GRAD_ROWS,
    ),
    mutant(
        "M7a",
        "the sum of the batch is clipped, not its rows",
        "clipping.py",
        "return (factors[0] @ rows[0]).unsqueeze(0)",
        "return rows.sum(dim=1) * factors.mean(dim=1, keepdim=True)",
        GRAD_ROWS,
    ),
    mutant(
        "M7b",
        "one factor for the whole batch, from its mean norm",
        "clipping.py",
        "return _usable(FACTORS[factor](clip_norms, norms), norms, mask)",
        "mean = norms.mean(dim=-1, keepdim=True).expand_as(norms)\n"
        "    return _usable(FACTORS[factor](clip_norms, mean), norms, mask)",
        SENS,
    ),
    mutant(
        "M7c",
        "the same in a stack of groups",
        "clipping.py",
        BMM,
        "return rows.sum(dim=1) * factors.mean(dim=1, keepdim=True)",
        STACKED,
    ),
    mutant(
        "M8a",
        "the factor may exceed 1",
        "clipping.py",
        "(clip_norms / (norms + CLIP_EPSILON)).clamp(max=1.0)",
        "clip_norms / (norms + CLIP_EPSILON)",
        TABLE,
    ),
    mutant(
        "M8b",
        "min and max are swapped",
        "clipping.py",
        ".clamp(max=1.0)",
        ".clamp(min=1.0)",
        SENS,
    ),
    mutant(
        "M8c",
        "the square root of a blocked norm is missing",
        "clipping.py",
        "return squares.sqrt()",
        "return squares",
        f"{NORM}[0.1-257]",
    ),
    mutant(
        "M8d",
        "the square root of a joint norm is missing",
        "clipping.py",
        "torch.stack(list(norms)).square().sum(dim=0).sqrt()",
        "torch.stack(list(norms)).square().sum(dim=0)",
        "test_clipping.py::TestClipAndSum::test_a_joint_norm_covers_all_tensors_of_the_group",
    ),
    mutant(
        "M9a",
        "the engine clips at 1 whatever the settings say",
        "engine.py",
        "return column(settings.clip_norms),",
        "return column([1.0] * len(settings.clip_norms)),",
        GRAD_ROWS,
    ),
    mutant(
        "M9b",
        "clip_and_sum ignores its clip norm",
        "clipping.py",
        "norms.new_full((1, 1), clip_norm)",
        "norms.new_full((1, 1), 1.0)",
        OPACUS,
    ),
    mutant(
        "M10a",
        "the tokens of a patient are dealt to all patients",
        "per_sample.py",
        "left = x.reshape(patients, -1, x.shape[-1])",
        "left = x.reshape(-1, patients, x.shape[-1]).transpose(0, 1)",
        GRAD_ROWS,
    ),
    mutant(
        "M10b",
        "hooks: a patient's rows are taken from other patients",
        "opacus_hooks.py",
        "rows = raw.view(-1, self._rows_per_patient, *parameter.shape)",
        "rows = raw.view(self._rows_per_patient, -1, *parameter.shape).transpose(0, 1)",
        HOOKS,
    ),
    mutant(
        "M10f",
        "a gradient formed columns first is added as if it were rows first",
        "engine.py",
        "total = total.view(columns, rows).t().reshape(-1)",
        "total = total.reshape(-1)",
        GRAD_ROWS,
    ),
    mutant(
        "M10c",
        "the last coordinates of a long gradient are not measured",
        "clipping.py",
        "if whole < size:",
        "if whole < 0:",
        f"{NORM}[0.1-257]",
    ),
    mutant(
        "M10d",
        "padding is a target",
        "records.py",
        "targets = torch.full_like(tokens, IGNORED)",
        "targets = tokens.clone()",
        "test_records.py::TestBatch::test_free_slots_are_masked_padding",
    ),
    mutant(
        "M10e",
        "the microbatch at the border is dropped",
        "sampling.py",
        "rounds = max(1, -(-len(raw_drawn) // multiple))",
        "rounds = max(1, len(raw_drawn) // multiple)\n"
        "    raw_drawn = raw_drawn[: rounds * multiple]",
        "test_sampling.py::TestMicrobatches",
    ),
    mutant(
        "M11a",
        "the loss is divided by the targets of the batch",
        "records.py",
        "per_token.sum(dim=1) / counts * rows.row_share",
        "per_token.sum(dim=1) / counts.sum() * rows.row_share",
        "test_records.py::TestPatientLosses",
    ),
    mutant(
        "M11b",
        "nothing asks whether a row hangs on the other rows",
        "selfcheck.py",
        "        _check_rows_independent(model, rows, vocabulary, generator, performance)\n",
        "",
        "test_per_sample.py::TestSelfCheck::test_a_model_that_mixes_rows_is_refused",
    ),
    mutant(
        "M11c",
        "an adapter behind flattened rows is accepted",
        "per_sample.py",
        "if x.dim() < 2 or x.shape[0] != self._rows:",
        "if x.dim() < 2:",
        "test_per_sample.py::TestMisuse::test_rows_that_were_flattened_together_are_refused",
    ),
)

DRAW_MUTANTS = (
    mutant(
        "M14a",
        "batches of a fixed size, charged as Poisson",
        "sampling.py",
        "return Raw(np.flatnonzero((words >> np.uint64(11)) < self._threshold))",
        "size = round(self._raw_size * float(self._threshold) / 2**53)\n"
        "        return Raw(np.sort(np.argsort(words)[:size]))",
        "test_sampling.py::TestPoissonSampler::test_batch_sizes_are_binomial",
    ),
    mutant(
        "M14b",
        "shuffled once: consecutive parts of one order",
        "sampling.py",
        "        words = np.frombuffer(self._entropy(8 * self._raw_size), dtype=np.uint64)\n",
        "        words = np.frombuffer(self._entropy(8 * self._raw_size), dtype=np.uint64)\n"
        '        words = np.roll(getattr(self, "_order", words), 7)\n'
        "        self._order = words\n",
        "test_sampling.py::TestPoissonSampler::test_gaps_between_a_patients_steps_are_geometric",
    ),
    mutant(
        "M15a",
        "an empty draw gives no microbatch",
        "sampling.py",
        "rounds = max(1, -(-len(raw_drawn) // multiple))",
        "rounds = -(-len(raw_drawn) // multiple)",
        "test_crashes.py::TestEmptyDraw",
    ),
    mutant(
        "M16a",
        "q from all patients, those of the hold-out included",
        "planner.py",
        "q = sampling_probability(request.batch_size, training_patients)",
        "q = sampling_probability(request.batch_size, request.patients_public)",
        "test_crashes.py::TestRate",
    ),
    mutant(
        "M16b",
        "patients are drawn at another rate than is charged",
        "sampling.py",
        "self._threshold = np.uint64(int(Fraction(rate) * 2**53))",
        "self._threshold = np.uint64(int(Fraction(rate) * 5 / 4 * 2**53))",
        "test_crashes.py::TestRate",
    ),
    mutant(
        "M16c",
        "a window runs one step more than it charged",
        "training.py",
        "for offset in range(permit.steps):",
        "for offset in range(permit.steps + 1):",
        LOOP,
    ),
    mutant(
        "M16d",
        "a permit gives noise for one step more",
        "noise.py",
        "if used >= allowed:",
        "if used > allowed:",
        "test_plan_optimizer.py::TestOrder::test_noise_beyond_the_permit_is_refused_before_the_draw",
    ),
    mutant(
        "M17",
        "the update is divided by the number drawn",
        "plan_optimizer.py",
        "mean = self.released.gradient / self.expected_batch_size",
        "mean = self.released.gradient / max(float(self._slot_mask.sum()), 1.0)",
        DIVISOR,
    ),
    mutant(
        "M18a",
        "noise in every microbatch",
        "plan_optimizer.py",
        "        self._sums.add_losses(terms)\n",
        "        self._sums.add_losses(terms)\n"
        "        self._sums.vector += self._noise_source._gaussian(len(self._sums.vector))\n",
        MICRO,
    ),
    mutant(
        "M18b",
        "noise after the first microbatch, before the last",
        "step.py",
        "optimizer.signal_skip_step(not batch.is_last)",
        "optimizer.signal_skip_step(False)",
        LOOP,
    ),
    mutant(
        "M19a",
        "a microbatch overwrites the sums of the one before",
        "raw_sums.py",
        "self.vector[start : start + len(raw_sum)] += raw_sum",
        "self.vector[start : start + len(raw_sum)] = raw_sum",
        MICRO,
    ),
    mutant(
        "M19b",
        "what is released is the accumulator itself",
        "raw_sums.py",
        "return self.vector.clone()",
        "return self.vector",
        NOISE,
    ),
    mutant(
        "M19c",
        "without a plan: sums of earlier microbatches are lost",
        "optimizer.py",
        "raw_sum if held is None else held + raw_sum",
        "raw_sum",
        OPACUS,
    ),
    mutant(
        "M20a",
        "the accumulator keeps the step before",
        "raw_sums.py",
        "        self.vector.zero_()\n",
        "",
        f"{BENCH}::test_nothing_of_a_step_is_left_in_the_next",
        ("plan_optimizer.py", "        self._sums.vector.zero_()\n", ""),
    ),
)

MUTANTS_OF_THE_STEP = (*NOISE_MUTANTS, *CLIP_MUTANTS, *DRAW_MUTANTS)
