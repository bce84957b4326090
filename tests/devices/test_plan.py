"""What a plan counts where solvers, sweeps and concatenations differ: against the same run without them."""

import pytest

from jaxpa.checkpoint.source import resolve
from jaxpa.devices import cost
from jaxpa.devices.plan import plan
from jaxpa.media.subjects import Subject
from jaxpa.request.request import Request

SUBJECT = Subject("a picture that is not opened.png", mask="its mask.png")


def planned(**words):
    return plan(resolve("mini"), Request.of("a car", subjects=(SUBJECT,), **words))


@pytest.mark.parametrize(("solver", "asked"), [("euler", 1), ("heun", 2), ("ab2", 1)])
def test_solvers(solver, asked):
    """As many forwards as velocities in a step: of the images, of the references, and of an inversion."""
    for words in ({"path": "line"}, {"path": "ode"}, {"path": "ode", "concat": "zero"}, {"level": "token"}):
        assert planned(solver=solver, **words)["sample_forwards"] == asked * planned(**words)["sample_forwards"]
    # RF inversion stays Euler's.
    rf, line = ({"path": "rf", "gamma": 0.5}, {"path": "line"})
    inversion = planned(**rf)["sample_forwards"] - planned(**line)["sample_forwards"]
    assert planned(solver=solver, **rf)["sample_forwards"] == asked * planned(**line)["sample_forwards"] + inversion


def test_sweeps():
    once, thrice = (planned(path="ode", sweeps=sweeps, steps=10) for sweeps in (0, 2))
    assert (once["inversion_steps"], thrice["inversion_steps"]) == (10, 30)
    assert thrice["sample_forwards"] - once["sample_forwards"] == 20


def test_joined_tokens():
    """No row of the reference after tau, but longer sequences of the images."""
    none, zero, joined = (planned(path="line", concat=concat, steps=10) for concat in (None, "zero", "joined"))
    late = 10 - none["steps_above_tau"][0]
    assert 0 < late < 10
    assert joined["sample_forwards"] == none["sample_forwards"] == zero["sample_forwards"] - late
    source, n, m = resolve("mini"), none["image_tokens"], none["text_tokens"]
    longer, usual = (cost.transformer_flops(source.config.transformer, tokens, m) for tokens in (2 * n, n))
    assert joined["tflop"] - none["tflop"] == pytest.approx(late * (longer - usual) / 1e12)
