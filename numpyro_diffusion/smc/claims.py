"""What a run says of its results."""

from typing import NamedTuple

__all__ = ["Claims"]


class Claims(NamedTuple):
    """Target and evidence of a sampler, in words and flags; it goes from a scheme to the result unchanged.

    Attributes:
        target: One sentence that names the distribution of the weighted particles (or draws) in the limit.
        evidence: One sentence that names what the log evidence is the logarithm of.
        exact: Whether the distribution is reached as particles (or draws) become many, at any number of
            levels; if not, this is a heuristic.
        normalized: Whether the evidence is free of the prior's normaliser; if not, it holds that constant
            unless the energy's `log_normalizer` is known.
        weighted: Whether particles are weighed at all; if not, there is no evidence.
    """

    target: str = "as defined by the user's kernels"
    evidence: str = "the integral of the target, less the prior's normaliser where that is known"
    exact: bool = True
    normalized: bool = False
    weighted: bool = True
