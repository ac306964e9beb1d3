"""Running a user's model under NumPyro's handlers: locked, with data as arrays, never at random.

NumPyro keeps its handlers in one list for all threads, so that two threads that trace would read each
other's sites: `tracing` lets one wait for the other.
"""

import inspect
import numbers
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import Distribution
from numpyro.primitives import Messenger

from .. import _faq
from .._arguments import as_jax, is_numeric
from .where import Reached, number_as_distribution, prior_as_distribution

__all__ = ["Watched", "tracing"]

tracing = threading.RLock()


class Watched(Messenger):
    """A model whose observed values are arrays, and which is refused where its density would be none.

    NumPyro's constraints take NumPy for a plain number, which fails beside traced bounds: data that are
    numbers, lists, or columns of a table become JAX arrays. An error of the model keeps its type and gets a
    note that says which sites and plates it came after.

    Args:
        model: The model.
        drawn: Whether it is run to draw from it. If not, nothing in it may be random apart from its sites:
            its density would be another each time.

    Raises:
        ValueError: For two sites of one name, and for random numbers where there may be none.
        TypeError: For observed values that are not numbers, and for priors of this package that were given to
            `numpyro.sample` as if they were distributions.
    """

    def __init__(self, model: Callable, drawn: bool = True):
        super().__init__(model)
        self.drawn = drawn
        self.kinds: dict[str, str] = {}
        self.initialising = False
        self.reached = Reached()

    def __enter__(self):
        self.kinds, self.initialising, self.reached = {}, False, Reached()
        super().__enter__()

    def __exit__(self, exc_type, exc_value, traceback):
        super().__exit__(exc_type, exc_value, traceback)
        if not isinstance(exc_value, Exception):
            return
        number = number_as_distribution(traceback)
        if number is not None:
            raise TypeError(
                f"site `{number[0]}`: `numpyro.sample` takes a distribution; got {number[1]}. What is "
                f"known needs no site: write `{number[0]} = ...`, or `numpyro.deterministic` to keep it. "
                f"{_faq.no_distribution}"
            ) from exc_value
        prior = prior_as_distribution(traceback)
        if prior is None:
            self.reached.add_note(exc_value, traceback)
            return
        site, kind = prior
        raise TypeError(
            f"`{kind}` is a prior of this package and no NumPyro distribution: write "
            f'`numpyro.sample("{site}", nd.DiffusionPrior(prior))`. {_faq.no_distribution}'
        ) from exc_value

    def process_message(self, msg: Any) -> None:
        """Look at a site before the other handlers do."""
        name, kind, value = msg.get("name"), msg["type"], msg.get("value")
        if kind == "prng_key" and not self.drawn and msg["kwargs"]["rng_key"] is None:
            if not self.initialising:
                raise ValueError(f"{_drawn_anew()} {_faq.hidden_randomness}")
            msg["value"] = jax.random.key(
                0
            )  # always the same; what is made of it is looked at later
        if kind not in ("sample", "deterministic", "param", "plate"):
            return
        if not (isinstance(name, str) and name):
            raise ValueError(
                f"a site's name must be a string that is not empty; got {name!r}. {_faq.names}"
            )
        before = self.kinds.get(name)
        # A plate may be entered again, and NumPyro's modules ask twice for their parameters.
        again = before == kind and kind in ("plate", "param")
        if before is not None and not again:
            raise ValueError(
                f"two sites are called `{name}` (a {before} and a {kind}): each needs a name of its own. "
                f"In a loop, number them; under `handlers.scope` they get a prefix. {_faq.names}"
            )
        self.kinds[name] = kind
        if kind == "param" and value is None:
            self.initialising = msg["is_initial"] = True
        if kind == "sample" and value is not None and isinstance(msg["fn"], Distribution):
            msg["value"] = _as_data(name, value)

    def postprocess_message(self, msg: Any) -> None:
        """Note sites that are done, and the end of an initialisation: networks ask for a value in vain, and
        then for a key.
        """
        self.reached.see(msg)
        if msg["type"] == "param":
            self.initialising = msg["value"] is None and msg["name"].endswith("$params")


def _drawn_anew() -> str:
    hidden = _hidden_site()
    if hidden is not None:
        return (
            f"site `{hidden}` is hidden by `handlers.block` and drawn anew with every evaluation of the "
            "density, so that no weight would be right. Leave it visible, to be inferred, or fix it: "
            f"`handlers.substitute(model, {{{hidden!r}: value}})` inside the block."
        )
    return (
        "the model asks for a PRNG key, with `numpyro.prng_key()`: it would be another model with every "
        "evaluation of the density. Draw outside the model and pass the draws as an argument, or make them "
        "latent sites."
    )


def _hidden_site() -> str | None:
    """The site for which `handlers.block` asks for a key, which no handler outside of it can see."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is handlers.block.process_message.__code__:
            return frame.f_locals["msg"].get("name")
        frame = frame.f_back
    return None


def _as_data(name: str, value: Any) -> Any:
    """An observed value as an array; what is no value, such as a tuple of parts, stays."""
    if isinstance(value, jax.Array):
        if not is_numeric(value.dtype):
            raise TypeError(f"{_no_numbers(name, value)} {_faq.arguments}")
        return value
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value)):
        return jnp.asarray(value) if isinstance(value, list) else value
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError(
            f"observed site `{name}` holds a masked array. Give its mask to the distribution: "
            f"`numpyro.sample(name, fn.mask(~y.mask), obs=y.filled(0))`. {_faq.missing_data}"
        )
    array = _array(value)
    if array is None:
        raise TypeError(f"{_no_numbers(name, value)} {_faq.arguments}")
    with jax.ensure_compile_time_eval():  # known now, whatever is being traced
        data = as_jax(array, f"observed site `{name}`")
        # A plain number takes the precision of what it meets.
        return jnp.asarray(value) if isinstance(value, bool | int | float | complex) else data


def _array(value: Any) -> np.ndarray | None:
    """Numbers as an array, also those that a table keeps as objects; `None` for anything else."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # a ragged list
        return None
    if array.dtype == object and all(isinstance(v, numbers.Real | np.generic) for v in array.flat):
        array = array.astype(float)
    return array if is_numeric(array.dtype) else None


def _no_numbers(name: str, value: Any) -> str:
    return (
        f"observed site `{name}` expects numbers; got {_words(value)}. Encode categories as integers and "
        "dates as differences, and mask what is missing."
    )


def _words(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return f"a {type(value).__name__}" + (f" of type {dtype}" if dtype is not None else "")
