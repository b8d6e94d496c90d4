"""Faults of the audit itself, which would make it loud on noise or silent on leaks,
and canaries that go another way than patients (M31, M32)."""

from __future__ import annotations

from tests.mutants.mutation import mutant

SILENT = "audit/test_with_engine.py::test_the_correct_engine_raises_no_alarm[tensor]"
STACK = "        self._norms[index] = norms\n        sums = weighted_sum("
TRAPS = "audit/test_bounds.py::TestTraps"
LEXSORT = 'order = np.lexsort((np.frombuffer(hashes, dtype="<u8"), scores))'
CORRECT = "    correct = int(is_member[order[len(order) - k_plus :]].sum())\n"

MUTANTS_OF_THE_AUDIT = (
    mutant(
        "M31a",
        "canaries pass the clip by, seen by the engine's tests",
        "engine.py",
        STACK,
        f"        factors[:, self.patients :] = 1.0\n{STACK}",
        "test_plan_optimizer.py::TestCanaries::"
        "test_a_canary_adds_at_most_one_clipped_row[per_group]",
    ),
    mutant(
        "M31b",
        "canaries enter every microbatch of a step, past its draw",
        "plan_optimizer.py",
        "self._slot_mask, self._canaries = slot_mask, None",
        "self._slot_mask = slot_mask",
        "test_plan_optimizer.py::TestCanaries::"
        "test_canaries_enter_once_a_step_and_leave_patients_alone",
    ),
    mutant(
        "M31c",
        "canaries pass the clip by, seen by the audit",
        "engine.py",
        STACK,
        f"        factors[:, self.patients :] = 1.0\n{STACK}",
        SILENT,
    ),
    mutant(
        "M31d",
        "canaries pass the sampler by: all of them in every step",
        "audit/units.py",
        "canary_indices=self._ids[units]",
        "canary_indices=self._ids",
        SILENT,
    ),
    mutant(
        "M32a",
        "the number of guesses is chosen after the coins",
        "audit/bounds.py",
        CORRECT,
        "    right = is_member[order[::-1]][: len(order) - k_minus].cumsum()\n"
        "    made = np.arange(1, len(right) + 1)\n"
        f"    k_plus = int(((right - made / 2) / np.sqrt(made)).argmax()) + 1\n{CORRECT}",
        "audit/test_bounds.py::TestNull::"
        "test_pure_noise_gives_a_positive_bound_in_at_most_5_percent",
    ),
    mutant(
        "M32b",
        "mu counts by its absolute value",
        "audit/bounds.py",
        "    if mu <= 0:\n        return 0.0\n",
        "    mu = abs(mu)\n",
        f"{TRAPS}::test_a_negative_mu_gives_no_epsilon",
    ),
    mutant(
        "M32c",
        "the sign of the scores is flipped",
        "audit/bounds.py",
        LEXSORT,
        LEXSORT.replace("scores", "-scores"),
        f"{TRAPS}::test_higher_scores_are_guessed_in_and_not_out",
    ),
    mutant(
        "M32d",
        "equal scores stay in the order of the ids, which may be sorted by membership",
        "audit/bounds.py",
        LEXSORT,
        'order = np.argsort(scores, kind="stable")',
        f"{TRAPS}::test_ties_of_canaries_sorted_by_membership_are_guessed_at_chance",
    ),
    mutant(
        "M32e",
        "every audit has the same canaries",
        "audit/canaries.py",
        'f"canary blocks {construction_seed}"',
        '"canary blocks"',
        "audit/test_canaries.py::TestGeometry::"
        "test_another_seed_gives_other_canaries_and_the_same_seed_the_same",
    ),
    mutant(
        "M32f",
        "every audit throws the same coins",
        "audit/coins.py",
        "hmac.digest(self._seed, label + ",
        'hmac.digest(b"one seed for ever", label + ',
        "audit/test_coins.py::TestCoins",
    ),
    mutant(
        "M32g",
        "text canaries have the coins of the gradient canaries",
        "audit/coins.py",
        'label = b"coin" if kind == "gradient" else b"text coin"',
        'label = b"coin"',
        "audit/test_text_canaries.py::TestInAJob"
        "::test_both_kinds_share_the_level_and_the_commitment_but_no_coin",
    ),
)
