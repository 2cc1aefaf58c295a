"""What a family of tools is made of, and how the values of arguments are drawn."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from demo import pools

Draw = Callable[[Random], Any]


def one_of(pool: list[str]) -> Draw:
    return lambda rng: rng.choice(pool)


def between(low: int, high: int) -> Draw:
    return lambda rng: rng.randint(low, high)


@dataclass(frozen=True, slots=True)
class Param:
    """One argument: the names it may have, its JSON type, what it may be described as, and how values are drawn."""

    names: str
    type: str
    about: str
    draw: Draw
    # A closed set declared as the schema's enum.
    enum: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """Tools for one purpose. Questions name the parameters they give by {0}, {1}, ...; those not named are optional."""

    purpose: str
    names: str
    about: str
    params: tuple[Param, ...]
    questions: str
    # Keys and value pools of a result object; each key may have several names, parted by |.
    results: tuple[tuple[str, Draw], ...] = field(default=())


def topic(rng: Random) -> str:
    return rng.choice(
        [
            f"{rng.choice(pools.ADJECTIVES)} {rng.choice(pools.THINGS)}",
            rng.choice(pools.THINGS),
            f"{rng.choice(pools.THINGS)} in {rng.choice(pools.CITIES)}",
            f"{rng.choice(pools.ADJECTIVES)} {rng.choice(pools.WORDS)}",
            " ".join(rng.choice(pools.COMMON) for _ in range(rng.randint(1, 4))),
        ]
    )


def clock(rng: Random) -> str:
    return rng.choice(
        [
            f"{rng.randint(6, 23)}:{rng.choice(['00', '15', '30', '45'])}",
            f"{rng.randint(1, 12)} {rng.choice(['am', 'pm'])}",
        ]
    )


def expression(rng: Random) -> str:
    sign = rng.choice("+-*/")
    return f"{rng.randint(2, 999)} {sign} {rng.randint(2, 999)}"


def message(rng: Random) -> str:
    return rng.choice(
        [rng.choice(pools.MESSAGES)] * 3
        + [
            f"I will be {rng.randint(5, 45)} minutes late",
            f"the code is {rng.randint(100, 999)}",
            f"I am in {rng.choice(pools.CITIES)}",
            f"the {rng.choice(pools.WORDS)} is {rng.choice(pools.COLORS)}",
            " ".join(rng.choice(pools.COMMON) for _ in range(rng.randint(2, 6))),
        ]
    )
