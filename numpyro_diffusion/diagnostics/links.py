"""Where the documentation says more of a sentence of a verdict: its cause, and what to do about it."""

from .. import _faq

__all__ = ["more"]


# Words of a sentence, and the section that is about it; the first that fits.
_SECTIONS = {
    "No site is observed": "no-data",
    "Not finished": "not-finished",
    "A heuristic: weights were left out": "a-heuristic",
    "Log density +inf at": "infinite-density",
    "Log density NaN at": "nan",
    "The density is 0 where noise is left": "zero-density",
    "collapsed at level": "collapse",
    "The clouds are small for": "small-clouds",
    "of a cloud's effective sample size, where a": "steep-level",
    "The final effective sample size is": "uneven-weights",
    "have a heavy tail": "heavy-tail",
    "it rises by steps": "steps",
    "The clouds differ by more than": "clouds-differ",
    "A few families hold much": "few-hold-much",
    "The clouds disagree on the log evidence": "disagreement",
    "their step is too large there": "low-acceptance",
    "their steps are smaller than need be": "high-acceptance",
    "units in the last place": "unresolved",
    "Log densities are as large as": "rounded",
    "the evidence rests on that pair": "replica-gap",
    "states that were drawn afresh": "replica-trips",
    "The error of the log evidence is": "replica-error",
    "one cloud cannot be checked": "one-cloud",
    "are few clouds": "few-clouds",
    "Nothing to worry about": "nothing-to-worry-about",
}


def more(sentence: str) -> str:
    """The sentence with a reference to the section that explains it, where there is one."""
    section = next((name for words, name in _SECTIONS.items() if words in sentence), None)
    return sentence if section is None else f"{sentence} More: {_faq.PAGE}#{section}"
