"""What to cite for a run: BibTeX of the package and of the methods that the run used."""

import dataclasses
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import _faq
from ..schemes import AbstractScheme
from ..smc import SMCResult
from ..smc.moves import Move
from .bibliography import ALWAYS, BEHIND, PAPERS

__all__ = ["citation"]


def citation(run: Any) -> str:
    """BibTeX of what a run used: the package and what it stands on, scheme, moves, twist and schedules.

    Args:
        run: `SMC`, before or after its run; a scheme; or an `SMCResult`, which does not know its scheme.

    Raises:
        TypeError: If it is none of these.

    Example:
        >>> print(nd.diagnostics.citation(smc))
    """
    keys = [*ALWAYS, *(key for name in _names(run) for key in BEHIND.get(name, ()))]
    result = run if isinstance(run, SMCResult) else getattr(run, "_result", None)
    if isinstance(run, SMCResult):
        keys.append("delmoral2006")
    chain_length = getattr(run, "chain_length", None)
    if chain_length is not None:
        keys.append("dau2022")
    elif result is not None and result.weighted:
        keys += ["chan2013", "lee2018"]  # the error of the evidence
    if result is not None and not isinstance(run, SMCResult):
        keys.append("vehtari2021")  # R-hat of the summary
    entries = [PAPERS[key] for key in dict.fromkeys(keys)]
    return "\n\n".join([_package(), *entries])


def _package() -> str:
    try:
        known = version("numpyro-diffusion")
    except PackageNotFoundError:  # run from a source tree
        known = "unknown"
    return (
        "@software{numpyro_diffusion,\n  author = {{The numpyro-diffusion developers}},\n"
        f"  title = {{numpyro-diffusion}},\n  version = {{{known}}},\n}}"
    )


def _names(run: Any) -> Iterator[str]:
    if isinstance(run, SMCResult):
        return
    if isinstance(run, AbstractScheme):
        yield from _of(run)
        yield from _of(run.twist)
        return
    if not isinstance(getattr(run, "scheme", None), AbstractScheme):
        raise TypeError(
            f"`citation` expects an `SMC`, a scheme or an `SMCResult`; got {type(run).__name__}. Pass the "
            f"`SMC` itself, `nd.diagnostics.citation(smc)`. {_faq.kinds}"
        )
    yield from _of(run.scheme)
    if getattr(run, "_result", None) is not None:
        yield from _of(dict(run.bridge.sites))  # energies with their schedules
        yield from _of(run.bridge.twist)
    else:
        yield from _of(run.scheme.twist if run.twist is None else run.twist)


def _of(value: Any) -> Iterator[str]:
    """Names of the classes of an object and of its parts; of moves those of their functions."""
    if isinstance(value, Move):
        yield repr(value).partition("(")[0].strip("<>")
    elif type(value).__module__.startswith("numpyro_diffusion"):
        yield type(value).__name__
    if dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        parts = list(value.values())
    else:
        parts = list(value) if isinstance(value, tuple | list) else []
    for part in parts:
        yield from _of(part)
