"""Projected steps of priors that are scores alone: the same steps as with their energies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_projections import coupled

import numpyro_diffusion as nd
from numpyro_diffusion.factors import Coupling, log_repulsion
from numpyro_diffusion.samplers.projections import projected_langevin


def score_of(joint: nd.energies.Joint) -> nd.ScoreFunction:
    fn = lambda joint, x, t: joint.score(x, t)
    ends = {"t_min": joint.t_min, "t_max": joint.t_max}
    mean, variance = joint.data_moments(jnp.asarray(joint.t_min))
    rough = {"mean": mean, "variance": variance}
    return nd.ScoreFunction(fn, joint.shape, joint.schedule, params=joint, **rough, **ends)


def test_coupled_scores_take_the_steps_of_their_energy(key):
    """The published toy, with two priors of which the scores are known."""
    law, box = coupled()
    scores = score_of(law.base) + Coupling(log_repulsion(1.5), 32.0)
    assert not isinstance(scores, nd.AbstractEnergy)
    start = jnp.broadcast_to(jnp.asarray([[3.5], [6.0]]), (500, 2, 1))
    options = {"step_size": 0.05, "num_steps": 100, "num_samples": 500, "initial": start}
    found, expected = (projected_langevin(key, e, box, **options) for e in (scores, law))
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-6)
    apart = np.abs(np.diff(np.asarray(found.positions)[..., 0], axis=-1))
    assert abs(np.mean(apart >= 4) - 0.916) < 4 * (0.916 * 0.084 / 500) ** 0.5 + 0.005
    assert not found.exact and bool(jax.vmap(box.contains)(found.positions).all())
    # Without the coupling it is another distribution: the factor is what keeps them apart.
    alone = projected_langevin(key, scores.base, box, **options).positions
    assert np.mean(np.abs(np.diff(np.asarray(alone)[..., 0], axis=-1)) >= 4) < 0.1


def test_what_is_no_score_is_refused(key):
    with pytest.raises(TypeError, match=r"`nd.ScoreFunction\(fn, shape\)`"):
        projected_langevin(key, lambda x: -x, lambda x: x)  # pyright: ignore
