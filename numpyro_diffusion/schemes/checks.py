"""Refusals of what a tuned scheme cannot use."""

from typing import Any

from .. import _faq
from .._arguments import whole_number
from ..bridge import Bridge
from .base import check_scheme
from .levels import Level, check_levels
from .tuned import TunedScheme

__all__ = ["check_choices", "check_has_diffusion", "check_tuned"]


def check_tuned(who: str, scheme: Any) -> None:
    """Refuse a scheme whose moves and transport cannot be had one by one; `None` is allowed.

    Args:
        who: Takes it apart.
        scheme: What came.
    """
    check_scheme(scheme)
    if scheme is not None and not isinstance(scheme, TunedScheme):
        raise TypeError(
            f"`{who}` takes the moves, the transport and the levels of a scheme apart, so that it expects a "
            f"`TunedScheme`; `{type(scheme).__name__}` is an `AbstractScheme` with no more than a call. Run "
            "that with `nd.SMC` or `nd.run_smc`, or use `nd.ReverseDiffusion()` or "
            f"`nd.Annealed()` here. {_faq.moves}"
        )


def check_choices(
    scheme: TunedScheme,
    *,
    joint_moves: bool | None = None,
    inflation: Any = 1.0,
    start: float = 1.0,
) -> None:
    """Refuse what no scheme can use.

    Args:
        scheme: Whose levels and moves are looked at.
        joint_moves: Whether it needs joint moves; `None` if it can do with and without.
        inflation: Of the proposals; an array is taken as it is.
        start: Clock at which frozen levels must begin.
    """
    name, levels, num = type(scheme).__name__, scheme.levels, scheme.moves.num
    if joint_moves and num == 0:
        raise ValueError(
            f"`{name}` goes on by joint moves, so their number must be at least 1; got 0. Weights alone are "
            f"`nd.ReverseDiffusion(moves=0)`. {_faq.moves}"
        )
    if joint_moves is False and num != 0:
        raise ValueError(
            f"`{name}` makes no joint moves, since no density would accept them; got {num}. Moves of "
            "the other sites are `nd.schemes.Moves(num=0, other=..., "
            f"num_other=...)`. {_faq.moves}"
        )
    if isinstance(inflation, float | int) and inflation < 1:
        raise ValueError(
            f"`inflation` widens the proposals, so it is at least 1; got {inflation}. Narrow proposals "
            f"give rare huge weights. {_faq.numbers}"
        )
    if isinstance(levels, Level):
        check_levels(levels, start)
    elif isinstance(levels, bool) or not (levels is None or isinstance(levels, int)):
        raise TypeError(
            f"`levels` of `{name}` is a number, frozen levels or `None`; got {type(levels).__name__}. "
            f"The levels of an earlier run are in its `result.levels`. {_faq.levels}"
        )
    elif levels is not None:
        whole_number("levels", levels, 1)


def check_has_diffusion(scheme: TunedScheme, bridge: Bridge) -> None:
    """Refuse a model that has nothing to propose for."""
    if not bridge.diffusion_sites:
        raise ValueError(
            f"`{type(scheme).__name__}` needs a diffusion site, and the model has none. Use `Annealed`, "
            f"which is then likelihood tempering. {_faq.blocks}"
        )
