"""Each published method's formula, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from controller.baselines import dc_sgd, geoclip, quantile, random
from controller.baselines.dc_sgd import NormDistribution
from controller.baselines.registry import find_arm
from controller.baselines.steering import Chosen, SteeringPolicy
from controller.errors import PolicyStateMismatch
from controller.observation import describe_groups
from dp_core.mechanism import next_references
from dp_core.plan import ClippingPlan
from dp_core.planner import make_run_plan
from tests.controller.baselines.cases import REQUEST, group, joint, settings_of, window


class TestFixedPlans:
    def test_flat_clips_the_joint_norm_and_adds_sigma_c_everywhere(self) -> None:
        """c = .02 on 4 groups: C = .02 sqrt(4) = .04, noise std sigma .04 on each coordinate."""
        chosen = settings_of(find_arm("flat"))
        sigma = float(chosen.noise_multiplier)
        assert (chosen.rule, chosen.factor) == ("whitened", "clip")
        assert chosen.whitening_weights == pytest.approx((0.04,) * 4, rel=1e-6)
        assert chosen.noise_stds == pytest.approx((sigma * 0.04,) * 4, rel=1e-4)

    def test_per_layer_bounds_add_up_to_the_joint_one(self) -> None:
        chosen = settings_of(find_arm("per_layer"))
        sigma = float(chosen.noise_multiplier)
        assert chosen.rule == "per_group"
        assert joint(chosen.clip_norms) == pytest.approx(0.04, rel=1e-6)
        assert chosen.noise_stds == pytest.approx((sigma * 0.04,) * 4, rel=1e-4)

    @pytest.mark.parametrize("name", ["auto_s", "psac"])
    def test_normalising_arms_weigh_the_joint_norm(self, name: str) -> None:
        """Their factor itself is checked in tests/dp_core/test_clipping.py."""
        chosen = settings_of(find_arm(name))
        assert (chosen.rule, chosen.factor) == ("whitened", name)
        assert chosen.whitening_weights == pytest.approx((0.4,) * 4, rel=1e-6)

    def test_arms_that_read_no_signal_leave_a_millionth_to_it(self) -> None:
        """Against `reference`, whose gradients carry the price of its sensing, 1.5 %."""
        blind, sensing = settings_of(find_arm("per_layer")), settings_of(find_arm("quantile"))
        ratios = [
            noise / (float(s.noise_multiplier) * joint(s.clip_norms))
            for s in (blind, sensing)
            for noise in s.noise_stds[:1]
        ]
        assert ratios == pytest.approx([1.0, 1 / math.sqrt(1 - 0.015)], rel=1e-4)

    def test_noise_decay_falls_by_equal_ratios_to_a_half(self) -> None:
        """Stair i of 0..3 is 2^(-i/3): 1, .7937, .6300, .5."""
        shape = find_arm("noise_decay").plan_request(REQUEST).noise_shape
        assert shape is not None
        factors = [float(f) for f in shape.factors]
        assert factors == pytest.approx([2 ** (-i / 3) for i in range(4)], abs=1e-4)
        assert settings_of(find_arm("noise_decay")).whitening_weights == pytest.approx(
            settings_of(find_arm("flat")).whitening_weights
        )

    @pytest.mark.ci
    def test_noise_decay_costs_what_constant_noise_costs(self) -> None:
        plan = make_run_plan(find_arm("noise_decay").plan_request(REQUEST))
        constant = make_run_plan(find_arm("flat").plan_request(REQUEST))
        levels = [float(level) for level in plan.noise_levels]
        assert levels[0] < float(constant.noise_levels[0]) < levels[-1]
        assert float(plan.epsilon_certified) <= float(plan.target_epsilon)


class TestQuantile:
    def test_geometric_update(self) -> None:
        """5 steps of eta .2 make gain 1: C exp(-(0.8 - 0.5)) = C exp(-0.3)."""
        assert quantile.updated(0.1, 0.8, steps=5) == pytest.approx(0.1 * math.exp(-0.3))
        assert quantile.updated(0.1, 0.2, steps=1) == pytest.approx(0.1 * math.exp(0.06))

    def test_noise_beyond_a_share_counts_as_the_end_and_long_windows_do_not_overshoot(self) -> None:
        assert quantile.updated(1.0, 7.0, steps=100) == pytest.approx(math.exp(-0.5))
        assert quantile.updated(1.0, -7.0, steps=100) == pytest.approx(math.exp(0.5))


class TestGeoclip:
    def test_variance_is_that_of_the_released_sum(self) -> None:
        """signal 300 over 100 coordinates, noise std .5: 3 + .25."""
        found = geoclip.variance(group(signal_norm_squared=300.0, noise_std=0.5))
        assert found == pytest.approx(3.25)
        assert geoclip.variance(group(signal_norm_squared=-9.0, noise_std=0.5)) == pytest.approx(
            0.25
        )

    def test_weights_go_with_the_fourth_root_at_flat_energy(self) -> None:
        """lambda 16 and 1: roots 2 and 1; equal sizes 10, so 10 (4 + 1) s^2 = 20 C^2, s = 2C."""
        found = geoclip.weights([16.0, 1.0], [10.0, 10.0], joint=math.sqrt(10.0))
        assert found == pytest.approx([4.0, 2.0])

    def test_a_group_of_more_variance_is_clipped_later(self) -> None:
        loud = group(0, signal_norm_squared=1600.0, noise_std=0.0)
        quiet = group(1, signal_norm_squared=100.0, noise_std=0.0)
        chosen = geoclip.rule(window(loud, quiet), (0.02, 0.02), {})
        assert chosen.clips[0] / chosen.clips[1] == pytest.approx(2.0)
        assert chosen.clips[0] ** 2 + chosen.clips[1] ** 2 == pytest.approx(2 * 0.02**2)

    def test_the_average_forgets_with_beta_per_step(self) -> None:
        """After equal windows of variance 1 and 3 of one step: (.999 + 3) / 1.999, nearly 2."""
        first = geoclip.rule(
            window(group(signal_norm_squared=100.0, noise_std=0.0), steps_per_chunk=1), (1.0,), {}
        )
        second = geoclip.rule(
            window(group(signal_norm_squared=300.0, noise_std=0.0), steps_per_chunk=1),
            first.clips,
            first.memory,
        )
        mean = second.memory["sums"][0] / second.memory["weight"][0]
        assert mean == pytest.approx((0.999 + 3) / 1.999)


class TestDcSgd:
    def test_clipping_error_at_the_ends(self) -> None:
        """C near 0 takes away all: E||g||^2 = exp(2 mu + 2 tau^2); C large takes away nothing."""
        norms = NormDistribution(mu=0.3, tau=0.5)
        everything = math.exp(0.6 + 0.5)
        assert dc_sgd.clipping_error(norms, 1e-9) == pytest.approx(everything, rel=1e-6)
        assert dc_sgd.clipping_error(norms, 1e3) == pytest.approx(0.0, abs=1e-9)

    def test_clipping_error_of_nearly_equal_norms(self) -> None:
        """All norms near 2 and C = 1.5: (2 - 1.5)^2."""
        norms = NormDistribution(mu=math.log(2.0), tau=1e-4)
        assert dc_sgd.clipping_error(norms, 1.5) == pytest.approx(0.25, rel=1e-3)

    def test_the_best_clip_solves_the_trade(self) -> None:
        """Equal norms n: minimise v C^2 + (n - C)^2, so C = n / (1 + v); v = 1/3: C = .75 n."""
        norms = NormDistribution(mu=0.0, tau=0.2)
        found = dc_sgd.best_clip(norms, noise_variance_per_square=1 / 3)
        assert found == pytest.approx(0.75, rel=0.05)

    def test_without_noise_nothing_is_clipped(self) -> None:
        norms = NormDistribution(mu=0.0, tau=0.5)
        found = dc_sgd.best_clip(norms, noise_variance_per_square=0.0)
        assert found == pytest.approx(math.exp(1.5))

    def test_two_trusted_points_give_the_line(self) -> None:
        """Fractions .1587 and .8413 at log C = -.5 and .5: probits -1 and 1, mu 0, tau .5."""
        sums = [0.0] * 5
        for log_clip, fraction in ((-0.5, 0.158655), (0.5, 0.841345)):
            w, x, z = dc_sgd.observation(math.exp(log_clip), fraction, 0.001)
            point = (w, w * x, w * z, w * x * x, w * x * z)
            sums = [a + b for a, b in zip(sums, point, strict=True)]
        found = dc_sgd.fit(sums)
        assert found.mu == pytest.approx(0.0, abs=1e-6)
        assert found.tau == pytest.approx(0.5, rel=1e-3)

    def test_one_point_takes_the_prior_slope(self) -> None:
        """Fraction .5 at C: the median is C, tau the prior's 1/2."""
        w, x, z = dc_sgd.observation(0.3, 0.5, 0.1)
        found = dc_sgd.fit([w, w * x, w * z, w * x * x, w * x * z])
        assert found.mu == pytest.approx(math.log(0.3))
        assert found.tau == pytest.approx(0.5)

    def test_the_batch_size_follows_from_public_noise(self) -> None:
        """One group: s_bit = sigma/2 / sqrt(.015 * .85); std = s_bit / (128 sqrt(5))."""
        bit_std = 0.5 / math.sqrt(0.015 * 0.85)
        std = bit_std / 128 / math.sqrt(5)
        found = dc_sgd.batch_size(window(group(fraction_std=std)), std)
        assert found == pytest.approx(128.0)

    def test_a_clip_far_below_the_norms_moves_up_by_two_octaves_at_most(self) -> None:
        low = group(fraction=0.0, fraction_std=0.01, clip_norm=0.01, size=10)
        chosen = dc_sgd.rule(window(low), (0.01,), {})
        assert 0.01 < chosen.clips[0] <= 0.01 * 2**2.25 + 1e-12


class TestSteering:
    def test_reaches_the_wanted_clips_whatever_the_references_do(self) -> None:
        """What `admit` makes of the residual is the rule's own number."""
        wanted = (0.3, 0.002)
        policy = SteeringPolicy(
            name="test",
            groups=describe_groups(window(group(0), group(1))),
            rule=lambda telemetry, clips, memory: Chosen(clips=wanted, memory=memory),
        )
        seen = window(group(0, fraction=0.9), group(1, fraction=0.2))
        policy.propose(window(group(0), group(1), chunk=-1))
        policy.learn(seen)
        references = next_references(
            ClippingPlan(), (0.05, 0.05), (0.9, 0.2), steps=seen.steps_per_chunk
        )
        action = policy.propose(seen)
        reached = [r * 2 ** (12 * a) for r, a in zip(references, action.clip, strict=True)]
        assert reached == pytest.approx(wanted)

    def test_state_comes_back_and_repeats_the_proposal(self) -> None:
        first = quantile.policy(groups=describe_groups(window(group())), seed=1, chunks_planned=9)
        for chunk in range(3):
            seen = window(group(fraction=0.3), chunk=chunk)
            first.propose(seen)
            first.learn(seen)
        second = quantile.policy(groups=describe_groups(seen), seed=1, chunks_planned=9)
        second.restore(first.state())
        assert second.propose(seen) == first.propose(seen)
        assert second.digest() == first.digest()

    def test_another_arms_state_is_refused(self) -> None:
        groups = describe_groups(window(group()))
        state = quantile.policy(groups=groups, seed=1, chunks_planned=9).state()
        with pytest.raises(PolicyStateMismatch):
            dc_sgd.policy(groups=groups, seed=1, chunks_planned=9).restore(state)


class TestRandom:
    def test_spans_the_policys_range_and_repeats_itself(self) -> None:
        groups = describe_groups(window(*(group(k) for k in range(50))))
        make = random.policy
        first, again, other = (make(groups=groups, seed=s, chunks_planned=9) for s in (1, 1, 2))
        seen = window(*(group(k) for k in range(50)))
        action = first.propose(seen)
        assert action == again.propose(seen)
        assert action != other.propose(seen)
        assert 0.4 < max(action.clip) <= 0.5  # half of what the plan allows
        assert -0.5 <= min(action.clip) < -0.4
        assert 0.8 < max(action.rate) <= 1.0  # all of it

    def test_the_first_window_is_the_references(self) -> None:
        before = window(group(), chunk=-1)
        policy = random.policy(groups=describe_groups(before), seed=1, chunks_planned=9)
        assert set(policy.propose(before).clip) == {0.0}
