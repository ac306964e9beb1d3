"""Discrete latent sites are summed out: against sums over all of their values, one by one."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to
from numpyro.infer.util import log_density as log_joint
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.bridge import Sums, log_density
from numpyro_diffusion.ppl import model_bridge
from numpyro_diffusion.ppl.draws import with_discrete

WEIGHTS = np.array([0.6, 0.4])
MEANS = np.array([[0.5, 1.0], [-1.0, 0.3]])
COVARIANCES = np.array([[[0.3, 0.1], [0.1, 0.4]], [[0.2, 0.0], [0.0, 0.5]]])
energy = nd.GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
Y = jnp.array([0.45, -0.1])


def observed(x, y, sd=0.3):
    numpyro.sample("y", dist.Normal(x, sd).to_event(1), obs=y)


def diffusion():
    return numpyro.sample("x", nd.DiffusionPrior(energy))


def sign(y):
    flag = numpyro.sample("flag", dist.Bernoulli(0.3))
    x = diffusion()
    numpyro.deterministic("seen", jnp.where(flag, -x, x))
    observed(jnp.where(flag, -x, x), y)


def chain(y):
    """One site depends on another, and both on the diffusion site."""
    x = diffusion()
    first = numpyro.sample("first", dist.Bernoulli(logits=x[0]))
    second = numpyro.sample(
        "second", dist.Categorical(jnp.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])[first])
    )
    observed(x * second - first, y)


def outliers(y):
    """An entry of each site for each datum, and what all data share."""
    x = diffusion()
    bad_day = numpyro.sample("bad_day", dist.Bernoulli(0.2))
    rate = numpyro.sample("rate", dist.Beta(1.0, 4.0))
    with numpyro.plate("data", len(y)):
        outlier = numpyro.sample("outlier", dist.Bernoulli(0.5 * (rate + 0.5 * bad_day)))
        level = numpyro.sample(
            "level", dist.Categorical(jnp.array([[0.5, 0.5], [0.1, 0.9]])[outlier])
        )
        numpyro.sample("y", dist.Normal(x[0] + 0.3 * level, jnp.where(outlier, 2.0, 0.2)), obs=y)


def event(y):
    """Entries that no plate marks, of data that are vectors."""
    x = diffusion()
    flags = numpyro.sample("flags", dist.Bernoulli(0.4).expand([len(y)]).to_event(1))
    location = jnp.where(flags[::-1, None], x, -x)
    numpyro.sample("y", dist.Normal(location, 0.5).to_event(2), obs=jnp.stack([y, 1 - y], 1))


def together(y):
    """Flags that no datum sees alone."""
    x = diffusion()
    with numpyro.plate("parts", 3):
        on = numpyro.sample("on", dist.Bernoulli(0.4))
    observed(x + jnp.sum(on * jnp.array([0.5, 1.0, -2.0])), y)


def other_latent(y):
    """A continuous site whose law, and whose bounds, depend on a label."""
    k = numpyro.sample("k", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
    shift = numpyro.sample("shift", dist.Normal(1.0 * k, 0.5 + k))
    scale = numpyro.sample("scale", dist.Uniform(0.1, 1.0 + k))
    factor = numpyro.sample("factor", dist.LogNormal(0.5 * k, 1.0))  # no Jacobian of a label's
    observed(factor * diffusion() + shift, y, scale)


def counts(y):
    """Data that are not positive everywhere, and a law of zeros."""
    x = diffusion()
    k = numpyro.sample("k", dist.Categorical(logits=jnp.array([0.0, -jnp.inf, 1.0])))
    numpyro.sample("free", dist.Normal(x[1], 0.4), obs=y[1])
    numpyro.sample("bounded", dist.Uniform(x[0] - 0.5 - k, x[0] + 0.5), obs=y[0])
    numpyro.sample("count", dist.Poisson(jnp.exp(x[0]) + k), obs=2)


def seen_discrete(y):
    """An observed discrete site is data like any other."""
    x = diffusion()
    flag = numpyro.sample("flag", dist.Bernoulli(0.3))
    numpyro.sample("seen", dist.Bernoulli(logits=x[0] + flag), obs=1)
    observed(x, y)


FOUR = jnp.array([0.3, 1.2, -0.8, 0.5])
SITES = {
    "sign": (sign, Y, {"flag": (2, ())}),
    "chain": (chain, Y, {"first": (2, ()), "second": (3, ())}),
    "outliers": (outliers, FOUR, {"bad_day": (2, ()), "outlier": (2, (4,)), "level": (2, (4,))}),
    "event": (event, FOUR[:3], {"flags": (2, (3,))}),
    "together": (together, Y, {"on": (2, (3,))}),
    "other_latent": (other_latent, Y, {"k": (3, ())}),
    "counts": (counts, Y, {"k": (3, ())}),
    "seen_discrete": (seen_discrete, Y, {"flag": (2, ())}),
}


def one_by_one(model, y, sites, z, bridge):
    """All joint values of the discrete sites, and the log densities that they have in unconstrained space."""
    entries = [range(count) for count, shape in sites.values() for _ in range(int(np.prod(shape)))]
    rows, start = np.array(list(itertools.product(*entries))), 0
    values = {}
    for name, (_, shape) in sites.items():
        size = int(np.prod(shape))
        values[name] = jnp.asarray(rows[:, start : start + size].reshape(-1, *shape))
        start += size

    def one(labels):
        def unconstrained(site):
            if site["type"] != "sample" or site["is_observed"]:
                return None
            if site["name"] in labels:
                return labels[site["name"]]
            value = z[site["name"]]
            return value if site["name"] == "x" else biject_to(site["fn"].support)(value)

        filled = numpyro.handlers.substitute(model, substitute_fn=unconstrained)
        total, trace = log_joint(filled, (y,), {}, {})
        for name in bridge.other_sites:
            site = trace[name]
            jacobian = biject_to(site["fn"].support).log_abs_det_jacobian(z[name], site["value"])
            total = total + jnp.sum(jacobian)
        return total

    return values, np.asarray(jax.jit(jax.vmap(one))(values))


@pytest.fixture(scope="module", params=SITES)
def summed(request):
    """A bridge, a place, and the log densities of all labels there."""
    model, y, sites = SITES[request.param]
    bridge = nd.from_model(model, y)
    z = bridge.sample_base(jax.random.key(3))
    z = {**z, "x": jnp.array([0.7, 0.2])}
    return bridge, z, *one_by_one(model, y, sites, z, bridge)


@pytest.mark.filterwarnings("ignore:observed site")
def test_the_density_is_that_of_the_marginal_model(summed):
    bridge, z, _, expected = summed
    clean, one = jnp.asarray(0.0), jnp.asarray(1.0)
    density = jax.jit(lambda z: log_density(bridge, z, clean, one)[0])
    np.testing.assert_allclose(density(z), logsumexp(expected), rtol=1e-9)
    assert all(np.isfinite(g).all() for g in jax.jit(jax.grad(density))(z).values())


@pytest.mark.filterwarnings("ignore:observed site")
def test_labels_follow_their_law_given_the_rest(summed):
    bridge, z, values, expected = summed
    weights = np.exp(expected - logsumexp(expected))
    known = jax.jit(lambda z: bridge.discrete_probabilities(z))(z)
    for name, value in values.items():
        size = known[name].shape[-1]
        shares = np.einsum(
            "r,r...k->...k", weights, np.asarray(value)[..., None] == np.arange(size)
        )
        np.testing.assert_allclose(known[name], shares, atol=1e-9)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.jit(jax.vmap(lambda key: bridge.draw_discrete(z, key)))(keys)
    flat = lambda labels: np.concatenate(
        [np.asarray(labels[n]).reshape(len(labels[n]), -1) for n in values], 1
    )
    rows, found = flat(values), flat(drawn)
    # Means and all second moments, the joint law of pairs among them.
    for moment in (lambda r: r, lambda r: (r[:, :, None] * r[:, None]).reshape(len(r), -1)):
        mean = weights @ moment(rows)
        error = np.sqrt(weights @ (moment(rows) - mean) ** 2 / len(found))
        assert (abs(moment(found).mean(0) - mean) <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize(
    ("name", "num_shared", "num_values"),
    [
        ("chain", 6, []),
        ("outliers", 2, [4]),
        ("event", 1, [2]),
        ("together", 8, []),
        ("sign", 2, []),
    ],
)
def test_as_many_runs_as_it_takes(name, num_shared, num_values, monkeypatch):
    found = found_for(monkeypatch, *SITES[name][:2])
    assert (found.num_shared, found.num_values) == (num_shared, num_values)


def found_for(monkeypatch, model, y):
    """How the discrete sites of a model are enumerated."""
    found = []
    make = model_bridge.enumeration
    monkeypatch.setattr(
        model_bridge, "enumeration", lambda *args: found.append(make(*args)) or found[0]
    )
    nd.from_model(model, y)
    return found[0]


def test_the_cost_of_a_plate_is_linear(monkeypatch):
    found = found_for(monkeypatch, event, jax.random.normal(jax.random.key(0), (3000, 2))[:, 0])
    assert (found.num_shared, found.num_values, found.num_entries) == (1, [2], [3000])
    np.testing.assert_array_equal(found.owners["prior", "flags"][0], np.arange(3000))
    data = found.owners["smooth", "y"].reshape(3000, 2)  # of both pixels the flag at the other end
    np.testing.assert_array_equal(data, np.arange(3000)[::-1, None] * np.ones(2, int))


def act_together(y):
    """Entries that act together where the prior has no mass."""
    x = diffusion()
    with numpyro.plate("data", 12):
        on = numpyro.sample("on", dist.Bernoulli(0.4))
        share = jnp.where(x[1] > 20, on.mean(), 1.0)
        numpyro.sample("y", dist.Normal(x[0] + on * share, 1.0), obs=y[0])


@pytest.mark.filterwarnings("ignore:observed site")
def test_a_sum_that_was_wrong_after_all_is_refused():
    bridge = nd.from_model(act_together, Y)
    cloud = lambda place: SimpleNamespace(
        positions={"x": jnp.broadcast_to(jnp.array([0.5, place]), (2, 8, 2))},
        log_weights=jnp.zeros((2, 8)),
        _replace=lambda **kwargs: kwargs["positions"],
    )
    assert with_discrete(bridge, cloud(1.0), jax.random.key(0))["on"].shape == (2, 8, 12)
    with pytest.raises(ValueError, match=r"`?on`?.* at \d+ of 16 particles it depends on several"):
        with_discrete(bridge, cloud(30.0), jax.random.key(0))


def switch(y):
    if numpyro.sample("flag", dist.Bernoulli(0.3)):
        y = 1 - y
    observed(diffusion(), y)


def of_a_site(y):
    count = numpyro.sample("count", dist.Categorical(jnp.ones(3) / 3))
    observed(diffusion() + numpyro.sample("k", dist.Binomial(count, 0.3)), y)


def too_many(y):
    with numpyro.plate("parts", 20):
        on = numpyro.sample("on", dist.Bernoulli(0.4))
    observed(diffusion() + jnp.sum(on), y)


def never_seen(y):
    """Data that are impossible wherever it is looked: nobody knows what depends on what."""
    x = diffusion()
    with numpyro.plate("parts", 20):
        on = numpyro.sample("on", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Uniform(x[0] - 0.1 * on, x[0] + 1e-9), obs=jnp.full(20, 50.0))


def only_discrete(y):
    flag = numpyro.sample("flag", dist.Bernoulli(0.3))
    observed(flag * jnp.ones(2), y)


def chosen_energy(y):
    k = numpyro.sample("k", dist.Bernoulli(0.3))
    prior = nd.EnergyFunction(_quadratic, shape=(2,), params=1.0 + k)
    observed(numpyro.sample("x", nd.DiffusionPrior(prior)), y)


def _quadratic(scale, x, t):
    return 0.5 * jnp.sum(x**2) / scale


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (switch, "`if` or a `range` ask for the discrete site `flag`.*jnp.where"),
        (of_a_site, "discrete latent site `k` .*no finite list.*depend on no other site"),
        (too_many, r"`on` have 2\^20 joint values.*`y` depends on several.*own entry in a plate"),
        (never_seen, r"`on` have 2\^20.*`y` .*was not finite where"),
        (only_discrete, "all latent sites of the model are discrete.*infer_discrete"),
        (chosen_energy, r"energy of site `x` depends.*normaliser.*jnp.stack\(\[x0, x1\]\)\[k\]"),
    ],
)
def test_refusals_name_the_site(model, message):
    with pytest.raises(ValueError, match=message):
        nd.from_model(model, Y)


def test_a_position_without_labels_has_no_values(summed):
    bridge, z, *_ = summed
    with pytest.raises(ValueError, match="draw_discrete"):
        bridge.constrain(z)


def test_impossible_labels_leave_the_gradient_finite():
    """Where all values are impossible as well."""
    zero = jnp.full((1, 2, 3), -jnp.inf)
    some = zero.at[0, 0, 1].set(0.3)
    for values in (zero, some, jnp.zeros((1, 2, 3))):
        total = lambda v: Sums(jnp.zeros(1), (v,)).total
        value, slope = jax.value_and_grad(total)(values)
        np.testing.assert_allclose(value, logsumexp(values, 1).sum())
        assert np.isfinite(slope).all()


def truth(y):
    """P(flag = 1) and the log evidence of the sign model, in closed form."""
    variance = 0.3**2 + float(energy.schedule.noise_level(energy.t_min)) ** 2
    parts = [
        p
        * WEIGHTS[i]
        * multivariate_normal(s * MEANS[i], COVARIANCES[i] + variance * np.eye(2)).pdf(y)
        for s, p in ((1, 0.7), (-1, 0.3))
        for i in range(2)
    ]
    return sum(parts[2:]) / sum(parts), np.log(sum(parts))


@pytest.fixture(scope="module")
def run():
    y = jnp.array([0.9, -0.1])
    smc = nd.SMC(sign, num_particles=640, progress_bar=False)
    return smc.run(jax.random.key(1), y), *truth(y)


def test_a_sign_is_found_where_gibbs_sticks(run):
    smc, probability, log_evidence = run
    assert 0.63 < probability < 0.65
    found = smc.discrete_probabilities()["flag"]
    np.testing.assert_allclose(found, [1 - probability, probability], atol=0.03)  # three errors
    assert abs(smc.log_evidence - log_evidence) < 3.5 * smc.log_evidence_error < 0.2


def test_draws_of_labels_belong_to_their_particles(run):
    smc, probability, _ = run
    draws = {name: np.asarray(value) for name, value in smc.get_samples().items()}
    assert draws["flag"].dtype.kind == "i" and set(np.unique(draws["flag"])) == {0, 1}
    assert abs(draws["flag"].mean() - probability) < 0.045
    turned = np.where(draws["flag"][:, None] == 1, -1, 1) * draws["x"]
    np.testing.assert_array_equal(draws["seen"], turned)
    assert (abs(turned - np.array([0.9, -0.1])) < 6 * 0.3).all()  # the data's noise
    values, weights = smc.get_weighted_samples()
    assert abs(np.sum(weights * values["flag"]) - draws["flag"].mean()) < 0.02


def test_labels_are_in_summary_and_arviz(run, capsys):
    smc, probability, _ = run
    smc.print_summary()
    printed = capsys.readouterr().out
    shown = smc.discrete_probabilities()["flag"]
    assert f"flag: {shown[0]:.3f}  {shown[1]:.3f}" in printed
    data = smc.to_arviz(num_prior=10)
    posterior = data.posterior
    assert posterior["flag"].dtype.kind == "i"
    sign = np.where(posterior["flag"].values[..., None] == 1, -1, 1)
    np.testing.assert_array_equal(posterior["seen"].values, sign * posterior["x"].values)
    # New data are drawn with the label of the draw.
    gap = data.posterior_predictive["y"].values - posterior["seen"].values
    np.testing.assert_allclose(gap.std(), 0.3, rtol=0.05)


def which(y):
    """Which of three priors made the vector."""
    k = numpyro.sample("k", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
    each = [numpyro.sample(f"x{i}", nd.DiffusionPrior(prior)) for i, prior in enumerate(PRIORS)]
    observed(jnp.stack(each)[k], y)


PLACES, SPREADS = np.array([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.5]]), np.array([0.3, 0.5, 0.2])
PRIORS = [nd.Gaussian(m, np.eye(2) * v) for m, v in zip(PLACES, SPREADS, strict=True)]


@pytest.mark.long
def test_which_of_several_priors():
    y = np.array([0.3, 0.6])
    variances = SPREADS + 0.3**2
    variances = variances + [float(p.schedule.noise_level(p.t_min)) ** 2 for p in PRIORS]
    each = [
        np.log(q) + multivariate_normal(m, np.eye(2) * v).logpdf(y)
        for q, m, v in zip((0.5, 0.3, 0.2), PLACES, variances, strict=True)
    ]
    smc = nd.SMC(which, num_particles=640, progress_bar=False).run(jax.random.key(2), jnp.array(y))
    np.testing.assert_allclose(
        smc.discrete_probabilities()["k"], np.exp(each - logsumexp(each)), atol=0.04
    )
    assert abs(smc.log_evidence - logsumexp(each)) < 3.5 * smc.log_evidence_error < 0.2


@pytest.mark.long
def test_outliers_of_a_regression():
    """Against all sixty-four patterns of outliers, each of which leaves a mixture of Gaussians."""
    operator = np.random.default_rng(1).normal(size=(6, 2))
    y = operator @ [0.5, 1.0] + [0, 4.0, 0, 0, -3.0, 0.8]

    def robust(y):
        x = diffusion()
        with numpyro.plate("data", 6):
            outlier = numpyro.sample("outlier", dist.Bernoulli(0.2))
            sd = jnp.where(outlier, 3.0, 0.3)
            numpyro.sample("y", dist.Normal(jnp.asarray(operator) @ x, sd), obs=y)

    resolution = float(energy.schedule.noise_level(energy.t_min)) ** 2 * np.eye(2)
    rows = np.array(list(itertools.product([0, 1], repeat=6)))
    each = []
    for row in rows:
        noise = np.diag(np.where(row, 9.0, 0.09))
        laws = [
            multivariate_normal(operator @ m, operator @ (c + resolution) @ operator.T + noise)
            for m, c in zip(MEANS, COVARIANCES, strict=True)
        ]
        parts = [np.log(w) + law.logpdf(y) for w, law in zip(WEIGHTS, laws, strict=True)]
        each.append(logsumexp(parts) + np.log(np.where(row, 0.2, 0.8)).sum())
    smc = nd.SMC(robust, num_particles=256, progress_bar=False).run(jax.random.key(0), jnp.array(y))
    weights = np.exp(each - logsumexp(each))
    found = smc.discrete_probabilities()["outlier"][:, 1]
    np.testing.assert_allclose(found, weights @ rows, atol=0.03)
    assert abs(smc.log_evidence - logsumexp(each)) < 3.5 * smc.log_evidence_error < 0.3
