"""A small network by hand, which networks of other libraries are to equal."""

import jax.numpy as jnp
import numpy as np

from numpyro_diffusion.nets import Applied

READ = np.random.default_rng(0).normal(size=(8, 3)) / 2
WRITE = np.random.default_rng(1).normal(size=(2, 8)) / 4
DATA = np.random.default_rng(2).normal(size=(400, 2)) @ [[1.0, 0.4], [0.0, 0.5]] + [0.5, -1.0]


def by_hand():
    def apply(params, w, c_noise):
        return params["write"] @ jnp.tanh(params["read"] @ jnp.append(w, c_noise))

    return Applied(apply, {"read": jnp.asarray(READ), "write": jnp.asarray(WRITE)}, (2,))
