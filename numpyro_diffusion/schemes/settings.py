"""Settings that tuned schemes share: the moves within a level, and the pilot cloud that tunes them."""

import dataclasses
from typing import Any, ClassVar, Literal, Self

import equinox as eqx

from .. import _faq
from .._arguments import check_instance, plain, whole_number
from .._written import alike, call, written
from ..smc.moves import Move, hmc, mala

__all__ = ["MOVES", "PILOT", "Moves", "Pilot"]

_OWN: Any = None  # left out: what is in its place in a scheme's own settings


class _Settings(eqx.Module):
    main: ClassVar[str]
    least: ClassVar[dict[str, int]]

    def __check_init__(self):
        for name, least in self.least.items():
            value, label = getattr(self, name), f"{name}` of `{type(self).__name__}"
            if value is not None and not (name == "num" and value == "pilot"):
                remedy = '"pilot" for the pilot\'s choice.' if name == "num" else ""
                whole_number(label, value, least, remedy)

    def __repr__(self) -> str:
        given = {n: written(v) for n, v in self._given().items() if v is not None}
        return call(type(self).__name__, given)

    def _given(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def written_since(self, default: Any) -> str:
        """What to give a scheme so that it has these settings in the place of its own.

        Args:
            default: The scheme's own settings.
        """
        own = default._given() if isinstance(default, type(self)) else {}
        new = {n: v for n, v in self._given().items() if n not in own or not alike(v, own[n])}
        alone = next(iter(new)) if len(new) == 1 else ""
        if alone == self.main and not isinstance(new[alone], str) or alone == "joint":
            return written(new[alone])
        return call(type(self).__name__, {n: written(v) for n, v in new.items()})

    def but(self, given: Any) -> Self:
        """These settings, where those given take the place of their own.

        Args:
            given: Settings, or a number alone: of joint moves, or of particles of the pilot. A move alone is
                the joint one.
        """
        if not isinstance(given, type(self)):
            given = type(self)(**{"joint" if isinstance(given, Move) else self.main: given})
        named = {n: v for n, v in given._given().items() if v is not None}
        return dataclasses.replace(self, **named)


class Moves(_Settings):
    """Moves within a level, which leave its distribution as it is. What is left out is as the scheme has it.

    Attributes:
        joint: Of all sites; `hmc(n)` or `mala()`. Two short trajectories of two steps move a cloud as far as
            five MALA moves, for one evaluation less.
        num: Joint moves a level, may be 0; `"pilot"` for the pilot's choice at each level, by their
            autocorrelation.
        other: Of the non-diffusion sites given what they see; costs no network evaluation.
        num_other: Such moves a level.
        rank: Directions along which coordinates move together that moves know of, beside the scale of every
            coordinate; the pilot measures them.
    """

    joint: Move = _OWN
    num: int | Literal["pilot"] = eqx.field(static=True, converter=plain, default=_OWN)
    other: Move = _OWN
    num_other: int = eqx.field(static=True, converter=plain, default=_OWN)
    rank: int = eqx.field(static=True, converter=plain, default=_OWN)
    main: ClassVar[str] = "num"
    least: ClassVar[dict[str, int]] = {"num": 0, "num_other": 1, "rank": 0}

    def __check_init__(self):
        for name in ("joint", "other"):
            check_instance(name, getattr(self, name), Move, "nd.moves.hmc()")


class Pilot(_Settings):
    """The pilot cloud that tunes a scheme before the run. What is left out is as the scheme has it.

    Attributes:
        num_particles: Of the cloud.
        conditional_ess: Share of the effective sample size that each level may keep, in (0, 1). Of no use
            where the number of levels is given, nor is the next.
        max_levels: Give up, and say why, when more levels than this are needed.
    """

    num_particles: int = eqx.field(static=True, converter=plain, default=_OWN)
    conditional_ess: float = eqx.field(static=True, default=_OWN)
    max_levels: int = eqx.field(static=True, converter=plain, default=_OWN)
    main: ClassVar[str] = "num_particles"
    least: ClassVar[dict[str, int]] = {"num_particles": 2, "max_levels": 1}

    def __check_init__(self):
        if self.conditional_ess is not None and not 0 < self.conditional_ess < 1:
            raise ValueError(
                "`conditional_ess` is the share that a level keeps, in (0, 1); got "
                f"{self.conditional_ess}. Try 0.9. {_faq.numbers}"
            )


MOVES = Moves(hmc(), 2, mala(), 2, 0)
PILOT = Pilot(256, 0.97, 400)
