"""Flow times against the goldens of diffusers' scheduler and in closed form; tau against the official gate."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpa.config import ScheduleConfig
from jaxpa.schedule import Steps, flow_times, log_shift, steps_above, tau_time

# A float32 between 1/2 and 1 is exact to 6e-8; both sides round once.
ATOL = 1e-6
# How many of 28 steps the official code replaces, by tokens and tau.
REPLACED = {4096: {0.6: 19, 0.8: 13, 0.9: 8}, 1024: {0.6: 16, 0.8: 9, 0.9: 5}}


@pytest.fixture(scope="module")
def configs(goldens) -> dict[str, ScheduleConfig]:
    """Each model's own scheduler_config.json."""
    return {
        model: ScheduleConfig.from_json(goldens.json(f"flux-{model}-tiny/scheduler/scheduler_config.json"))
        for model in ("dev", "schnell")
    }


def close(got, want, atol=ATOL):
    np.testing.assert_allclose(np.asarray(got), want, atol=atol, rtol=0)


def test_every_tensor(goldens, configs):
    """sigmas, timesteps and mu of every token and step count, and no tensor besides."""
    tensors = goldens.load("schedules.safetensors")
    assert tensors
    for name, want in tensors.items():
        model, tokens, steps, kind = re.fullmatch(
            r"(dev|schnell)/tokens(\d+)/(?:steps(\d+)/)?(sigmas|timesteps|mu)", name
        ).groups()
        if kind == "mu":
            close(log_shift(int(tokens), configs[model]), want, 1e-12)
            continue
        times = flow_times(int(steps), int(tokens), configs[model])
        assert times.dtype == np.float32
        if kind == "sigmas":
            close(times, want)
        else:
            close(times[:-1], want / 1000)


def test_schedules_of_the_pipelines(goldens, configs):
    """The times that the reference's pipelines sampled at, text to image and personalised."""
    seen = 0
    for model in configs:
        tensors = goldens.load(f"t2i_{model}.safetensors")
        for key in (key for key in tensors if key.endswith("/timesteps")):
            tokens = tensors[key.replace("timesteps", "noise_packed")].shape[1]
            close(flow_times(len(tensors[key]), tokens, configs[model])[:-1], tensors[key] / 1000)
            seen += 1
    for name in ("pa_inputs", "pa_inversion"):
        tensors = goldens.load(f"{name}.safetensors")
        want = tensors["sigmas"]
        close(flow_times(len(want) - 1, len(tensors["img_ids"]), configs["dev"]), want)
        seen += 1
    assert seen >= 4


@pytest.mark.parametrize(
    "config", [ScheduleConfig(), ScheduleConfig(base_shift=0.25, max_shift=0.9, base_image_seq_len=64)]
)
@pytest.mark.parametrize("steps", [1, 5, 28])
def test_shift_in_closed_form(config, steps):
    """t = e^mu / (e^mu + 1 / u - 1), mu on the line through its two stated ends."""
    close(log_shift(config.base_image_seq_len, config), config.base_shift, 1e-12)
    close(log_shift(config.max_image_seq_len, config), config.max_shift, 1e-12)
    for tokens in (24, 1024, 9000):
        share = (tokens - config.base_image_seq_len) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = (1 - share) * config.base_shift + share * config.max_shift
        want = [math.exp(mu) / (math.exp(mu) + 1 / (1 - i / steps) - 1) for i in range(steps)]
        times = flow_times(steps, tokens, config)
        assert (times[0], times[-1]) == (1.0, 0.0)
        close(times[:-1], want, 1e-7)


def test_without_a_shift_the_times_are_even():
    close(flow_times(4, 1024, ScheduleConfig(use_dynamic_shifting=False)), [1, 0.75, 0.5, 0.25, 0], 0)


def test_constant_shift():
    """Where the shift is not dynamic it is a constant, whatever the size: 3 u / (1 + 2 u)."""
    config = ScheduleConfig(use_dynamic_shifting=False, shift=3.0)
    for tokens in (24, 4096):
        close(flow_times(4, tokens, config), [1, 0.9, 0.75, 0.5, 0], 1e-7)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(16, 20_000), st.booleans())
def test_times_fall_from_one_to_zero(steps, tokens, dynamic):
    config = ScheduleConfig(use_dynamic_shifting=dynamic)
    times = flow_times(steps, tokens, config)
    assert times.shape == (steps + 1,)
    assert (times[0], times[-1]) == (1.0, 0.0)
    assert (np.diff(times) < 0).all()
    # Twice the steps go through the same times, and more tokens never make them earlier.
    np.testing.assert_array_equal(flow_times(2 * steps, tokens, config)[::2], times)
    assert (flow_times(steps, 2 * tokens, config) >= times).all()


@pytest.mark.parametrize("steps", [0, -1])
def test_a_schedule_has_a_step(steps):
    with pytest.raises(ValueError, match=rf"steps.*{steps}"):
        flow_times(steps, 1024, ScheduleConfig())


@pytest.mark.parametrize("tokens", REPLACED)
def test_official_gate(tokens):
    """tau is compared with the shifted time, not with a share of the steps."""
    times = flow_times(28, tokens, ScheduleConfig())
    for tau, replaced in REPLACED[tokens].items():
        assert int(steps_above(jnp.asarray(times), tau_time(tau, times))) == replaced


def test_gate_of_the_personalised_goldens(goldens):
    """The stored runs replace the steps whose stored time is above tau, strictly."""
    times = goldens.load("pa_inputs.safetensors")["sigmas"]
    taus = {float(tau) for tau in re.findall(r"tau([\d.]+)/", " ".join(goldens.load("pa_single.safetensors")))}
    assert taus
    for tau in taus:
        assert int(steps_above(jnp.asarray(times), tau)) == sum(float(t) > tau for t in times[:-1])


def test_gate_is_strict():
    times = jnp.array([1.0, 0.75, 0.5, 0.25, 0.0])
    gates = [int(steps_above(times, tau)) for tau in (1.0, 0.76, 0.75, 0.74, 0.25, 0.2, 0.0)]
    assert gates == [0, 1, 1, 2, 3, 4, 4]


def test_gate_is_data():
    """One compiled program for every tau, and a batch of them under vmap."""
    times = jnp.asarray(flow_times(28, 1024, ScheduleConfig()))
    gate = jax.jit(lambda times, tau: steps_above(times, tau))  # programs of one function are counted together
    taus = jnp.array([0.6, 0.8, 0.9])
    assert [int(gate(times, tau)) for tau in taus] == [16, 9, 5]
    assert gate._cache_size() == 1
    assert jax.vmap(steps_above, (None, 0))(times, taus).tolist() == [16, 9, 5]


def test_tau_as_flow_time_is_itself():
    times = flow_times(28, 1024, ScheduleConfig())
    for tau in (0.0, 0.6, 1, 1.0):
        assert tau_time(tau, times) == tau


@pytest.mark.parametrize(("steps", "share", "above"), [
    (28, 1.0, 0), (28, 0.0, 28), (28, 0.5, 14), (28, 0.25, 21), (50, 0.8, 10), (50, 0.1, 45), (10, 0.7, 3), (1, 0.0, 1),
])  # fmt: skip
def test_tau_as_share_of_the_steps(steps, share, above):
    """Steps(s) leaves the first (1 - s) S steps above it, on any schedule."""
    for config in (ScheduleConfig(), ScheduleConfig(use_dynamic_shifting=False)):
        for tokens in (144, 4096):
            times = flow_times(steps, tokens, config)
            tau = tau_time(Steps(share), times)
            assert 0 <= tau <= 1
            assert int(steps_above(jnp.asarray(times), tau)) == above


@settings(deadline=None)
@given(st.integers(1, 60), st.floats(0, 1), st.integers(16, 5000))
def test_share_counts_steps(steps, share, tokens):
    """Within a step of (1 - s) S, whatever rounds; half a unit in the last place does not move the gate."""
    times = flow_times(steps, tokens, ScheduleConfig())
    tau = np.float32(tau_time(Steps(share), times))
    above = (times[:-1] > tau).sum()
    assert abs(above - (1 - share) * steps) <= 0.5 + 1e-6
    if above:
        for moved in (np.nextafter(tau, np.float32(0)), np.nextafter(tau, np.float32(1))):
            assert (times[:-1] > moved).sum() == above


@pytest.mark.parametrize("tau", [-0.1, 1.1, math.nan, math.inf, Steps(-0.1), Steps(1.5), Steps(math.nan)])
def test_tau_outside_the_unit_interval(tau):
    with pytest.raises(ValueError, match=r"tau must lie in \[0, 1\]"):
        tau_time(tau, flow_times(4, 64, ScheduleConfig()))
