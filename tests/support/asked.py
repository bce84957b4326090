"""Requests of every kind, whose pictures are files that nobody reads."""

from jaxpa.media.subjects import Subject
from jaxpa.request.groups import Editing, Method, Sampling, Starting
from jaxpa.request.request import Request
from jaxpa.schedule import Steps

CAR = Subject("car.png", mask="car mask.png", at=(0.4, 0.6))
CAT = Subject("cat.png", word="cat", caption="a cat", flip=True, at=(0.1, 0.2, 0.5, 0.9), stretch=True)
REQUESTS = {
    "a schedule": Request(prompt="a cat", sampling=Sampling(sigmas=(1.0, 0.6, 1 / 3), shift=1.5, cache=0.1)),
    "a start": Request(prompt="a cat", starting=Starting(image="a.png", strength=0.4)),
    "generate": Request(prompt='a "red" cat', sampling=Sampling(seed=(3, 5), steps=4, guidance=2.5, height=64)),
    "one subject": Request(prompt="a car", subjects=(CAR,)),
    "all of it": Request(
        prompt="a car and a cat in a meadow, it's spring",
        subjects=(CAR, CAT),
        scene=Subject("beach.png"),
        method=Method(
            preset="paper", tau=(0.9, Steps(0.3)), concat=None, tau_blocks="0-2=0.4", soft=True, blocks=(1, 3)
        ),
    ),
    "places": Request(prompt="a car", subjects=(CAR,), places=((-0.1, 0.3), (0.7, 0.3))),
    "inpaint": Request(prompt="a cat", editing=Editing(image="a.png", mask="m.png", caption="b", grow=2, feather=1.5)),
    "outpaint": Request(prompt="a cat", editing=Editing(image="a.png", pad=(0, 16, 0, 16)), method=Method(tau=0.2)),
}
