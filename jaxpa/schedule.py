"""Flow times: t = 1 is noise, t = 0 is data, and the path is x_t = (1 - t) x0 + t noise.

FLUX spends its steps where they matter: the more tokens an image has, the longer it stays near noise. With
u = 1 - i / S the shifted time is t = e^mu / (e^mu + 1 / u - 1), mu growing linearly with the token count.

So tau as a flow time and tau as a share of the steps (`Steps`) are two numbers for one gate, and which is meant is
always explicit. FLUX.1-dev at 1024 x 1024 (4096 tokens) replaces in this many of its steps:

    tau           1   0.95  0.9  0.8  0.7  0.6  0.45  0.1
    28 steps      0     4     8   13   17   19   23    28
    Steps(tau)    0     1     3    6    8   11   15    25
    50 steps      0     8    13   23   29   34   40    49
    Steps(tau)    0     3     5   10   15   20   28    45

A smaller image spends less time near noise: at 512 x 512 (1024 tokens) tau 0.8 replaces 9 of 28 steps.
`steps_above(times, tau_time(tau, times))` is the number for any schedule, `tau_time` the flow time of a share.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpa import checks
from jaxpa.arrays import Array, Float, Float32, Int32, Scalar
from jaxpa.config import ScheduleConfig


def log_shift(tokens: int, config: ScheduleConfig) -> float:
    """mu of the resolution-dependent shift: linear in the number of image tokens."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (tokens - config.base_image_seq_len)


def flow_times(steps: int, tokens: int, config: ScheduleConfig) -> Float32[np.ndarray, " {steps}+1"]:
    """The S + 1 flow times of a schedule, from 1 down to 0.

    Raises ValueError for fewer than one step or token.
    """
    checks.whole("steps", steps, 1)
    checks.whole("tokens", tokens, 1)
    return shifted(1.0 - np.arange(steps + 1, dtype=np.float64) / steps, shift_factor(tokens, config))


def shift_factor(tokens: int, config: ScheduleConfig) -> float:
    """F = e^mu of a schedule's shift: grown with the number of image tokens, or the one of the configuration."""
    return math.exp(log_shift(tokens, config)) if config.use_dynamic_shifting else config.shift


def shifted(u: Float[np.ndarray, " times"], factor: float) -> Float32[np.ndarray, " times"]:
    """Times u from 0 to 1, moved towards noise (F > 1) or data (F < 1): t = F u / (1 + (F - 1) u)."""
    return (factor * u / (1.0 + (factor - 1.0) * u)).astype(np.float32)


@dataclass(frozen=True)
class Steps:
    """tau as a share of the steps: Steps(0.8) replaces in the first 20% of them, rounded to the nearest step.

    The paper counts tau this way ("tau = 80% of the steps"); a plain number is a flow time.
    """

    share: float


def tau_time(tau: Scalar | Steps, times: Float[Array | np.ndarray, " times"]) -> float:
    """tau in flow time: a number is one already; `Steps(s)` leaves the first (1 - s) S steps above it.

    Raises ValueError for a value outside [0, 1].
    """
    value = tau.share if isinstance(tau, Steps) else tau
    checks.number("tau", value, 0.0, 1.0)
    if not isinstance(tau, Steps):
        return float(tau)
    steps = len(times) - 1
    above = math.floor((1.0 - float(value)) * steps + 0.5 + 1e-9)  # to the nearest; a half counts as replaced
    # Half way between the last replaced step and the first free one, so that rounding cannot move the gate.
    return float((times[above - 1] + times[above]) / 2) if above else 1.0


def steps_above(times: Float[Array, " times"], tau: Scalar) -> Int32[Array, ""]:
    """How many steps start at a flow time above tau, strictly (the official gate).

    Raises ValueError for flow times that do not fall, or a tau outside [0, 1].
    """
    checks.flow_times("times", times)
    checks.number("tau", tau, 0.0, 1.0)
    return jnp.sum(times[:-1] > tau).astype(jnp.int32)


def count_above(times: Any, tau: Any) -> int:
    """`steps_above` of numbers that are known, without a device: times (S + 1,) and a tau in float32."""
    return int(np.sum(np.asarray(times, np.float32)[:-1] > np.float32(tau)))
