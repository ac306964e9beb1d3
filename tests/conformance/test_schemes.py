"""What every scheme promises: with defaults only, the evidence of a law whose evidence is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import numpyro_diffusion as nd


def test_flatten_unflatten_and_repr(scheme):
    leaves, structure = jax.tree.flatten(scheme)
    assert eqx.tree_equal(jax.tree.unflatten(structure, leaves), scheme)
    # A scheme without weights or resampling prints the function that makes it.
    made_by = {"AsPublished": ("unweighted(", "unresampled(")}
    name = type(scheme).__name__
    assert repr(scheme).startswith(made_by.get(name, (f"{name}(",)))


@pytest.mark.long
def test_defaults_find_the_evidence_of_one_gaussian_datum(scheme, key):
    energy = nd.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]])
    noise = float(energy.schedule.noise_level(jnp.asarray(energy.t_min))) ** 2
    y, sigma = 1.5, 0.4
    log_normal = jax.scipy.stats.norm.logpdf
    expected = float(log_normal(y, 0.5, (1.0 + noise + sigma**2) ** 0.5))
    composed = isinstance(scheme, nd.ScoreComposition)
    bridge = nd.from_energy(
        1.0 * energy if composed else energy,
        lambda x: log_normal(y, x[0], sigma),
        twist=scheme.twist,
        bridge_type=scheme.bridge_type,
    )
    result = nd.run_smc(key, scheme(bridge), num_particles=1000)
    assert bool(result.completed)
    assert abs(float(result.log_evidence) - expected) < 0.15
    assert result.exact and result.target and result.evidence
