"""Arguments by the names that they have elsewhere: an error that says what does the same here.

Who comes from NumPyro, PyMC, BlackJAX or a training loop writes `num_samples=`, `tune=` or `epochs=`. Python
then says that there is no such argument, and not what to do.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from . import _faq

__all__ = ["elsewhere", "explain_model_argument", "familiar"]

F = TypeVar("F", bound=Callable)

# What does the same here: the first of these arguments that a function has, or a sentence.
_DRAWS = ("num_draws", "num_particles", "num_live")
_WARM_UP = (
    "num_burn_in",
    "there is no warm-up to set, since a pilot cloud tunes levels and moves: `pilot` of the scheme",
)
_MOVES = (
    "num_inner_steps",
    "moves are set in the scheme, such as `nd.Annealed(moves=nd.moves.hmc(8))`, and tune themselves",
)
_DATA = ("data", "data are arguments of the model, and go to `run` or `nd.from_model`")
_WORDS: dict[str, tuple[str, ...]] = {
    "rng_key prng_key rng seed random_seed random_state": ("key",),
    "num_samples n_samples nsamples draws n_draws num_draws samples iter_sampling sample_size "
    "n_particles nparticles particles num_particles num_points n_live nlive num_live_points num_live": _DRAWS,
    "num_warmup warmup tune n_tune iter_warmup burn_in burnin n_burn n_burn_in num_burnin": _WARM_UP,
    "chains n_chains nchains num_walkers n_clouds num_clouds": ("num_chains",),
    "cores chain_method num_devices parallel": ("devices", "all chains run together"),
    "thin thinning_interval": ("thinning", "nothing is thinned here"),
    "progressbar progress show_progress verbose": ("progress_bar", "it has no progress bar"),
    "init_params initvals init_strategy start initial_position initial_positions": (
        "initial", "all starts from draws of the prior, or from noise",
    ),
    "kernel sampler step algorithm": ("scheme", "sampler"),
    "step_size target_accept target_accept_prob max_tree_depth num_integration_steps num_mcmc_steps "
    "num_moves moves": _MOVES,
    "resampling_fn resampler": ("resampling",),
    "target_ess ess_threshold ess_min": ("threshold",),
    "obs observed y X": _DATA,
    "epochs num_epochs n_epochs max_epochs num_steps n_steps max_steps iterations num_iterations n_iter "
    "num_iters": ("steps", "num_draws"),
    "lr step_size learning_rate_init": ("learning_rate",),
    "batch bs mini_batch_size minibatch_size": ("batch_size",),
    "val_data validation_data val eval_data": ("validation",),
    "loss_fn objective": ("loss",),
    "optim opt tx": ("optimizer", "learning_rate"),
    "patience early_stopping": ("stopping",),
    "return_inferencedata idata_kwargs": ("`to_arviz()` of the finished run gives the ArviZ object",),
}  # fmt: skip
_ELSEWHERE: dict[str, list[tuple[str, ...]]] = {}
for _names, _here in _WORDS.items():
    for _name in _names.split():
        _ELSEWHERE.setdefault(_name, []).append(_here)


def elsewhere(name: str, known: Iterable[str]) -> str:
    """A sentence on what does here what an argument of this name does elsewhere; empty if none is known.

    Args:
        name: Of the argument.
        known: Names of the arguments that there are.
    """
    known = list(known)
    words = [word for here in _ELSEWHERE.get(name, []) for word in here if word != name]
    for word in words:
        if word in known:
            return f"What `{name}` is elsewhere is `{word}` here."
    has_scheme = "scheme" in known or "model" in known
    for word in words:
        if " " in word and (has_scheme or "scheme" not in word):
            return f"For `{name}`: {word}."
    close = difflib.get_close_matches(name, known, 1)
    return f"Is `{close[0]}` meant?" if close else ""


def explain_model_argument(error: TypeError, given: dict[str, Any], function: Callable) -> None:
    """Add a note to a model's error about an argument that it has not, if `function` has one that does that.

    Args:
        error: Of the model.
        given: Keyword arguments that were passed on to it.
        function: Where the argument may belong.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not found or found[1] not in given:
        return
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    title = function.__qualname__.removesuffix(".__init__")
    if found[1] in known:
        sentence = f"`{found[1]}` is an argument of `{title}` itself."
    else:
        sentence = elsewhere(found[1], known).replace(" here.", f" of `{title}`.")
    error.add_note(
        f"Keyword arguments of `run` are passed on to the model, which does not take `{found[1]}`. "
        f"{sentence}{' ' * bool(sentence)}{_faq.keywords}"
    )


def familiar(function: F) -> F:
    """The same function, which explains names of arguments that it has not."""
    parameters = inspect.signature(function).parameters
    several = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
    named = [name for name, p in parameters.items() if name != "self" and p.kind not in several]
    by_place = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    needed = {n for n in by_place if parameters[n].default is inspect.Parameter.empty}
    title = function.__qualname__.removesuffix(".__init__")

    def explain(args: tuple, kwargs: dict[str, Any]) -> str:
        missing = needed - set(by_place[: len(args)]) - set(kwargs)
        for name in kwargs:
            if (
                name in named
                or takes_all
                and not any((w,) in _ELSEWHERE.get(name, []) for w in missing)
            ):
                continue
            sentence = elsewhere(name, missing if takes_all else named)
            return (
                f"`{title}` expects arguments among {', '.join(named)}; got `{name}`. "
                f"{sentence}{' ' * bool(sentence)}{_faq.keywords}"
            )
        if len(args) > len(by_place) and not takes_more:
            given = len(args) - ("self" in by_place)
            places = [name for name in by_place if name != "self"]
            rest = [name for name in named if name not in places]
            return (
                f"`{title}` takes {len(places)} arguments without their names, {', '.join(places)}; got "
                f"{given}. Name the others, such as `{rest[0] if rest else places[-1]}=`. {_faq.keywords}"
            )
        return ""

    @functools.wraps(function)
    def call(*args, **kwargs):
        fits = parameters.keys() >= kwargs.keys() and len(args) <= len(by_place)
        if not fits and (words := explain(args, kwargs)):
            raise TypeError(words)
        return function(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType]
