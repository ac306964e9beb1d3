"""What to cite: every method of the package has its entry, and a run names those that it used."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import moves, schedules, schemes, twists
from numpyro_diffusion.diagnostics import citation
from numpyro_diffusion.diagnostics.bibliography import ALWAYS, BEHIND, PAPERS
from numpyro_diffusion.schemes.covariance import AbstractCovariance

BASES = (
    schemes.AbstractScheme,
    schemes.AbstractTransport,
    schemes.AbstractCorrection,
    schemes.AbstractProposal,
    AbstractCovariance,
    twists.AbstractTwist,
    schedules.AbstractSchedule,
)
CLASSES = {
    name
    for room in (schemes, twists, schedules)
    for name, cls in vars(room).items()
    if isinstance(cls, type) and issubclass(cls, BASES) and not eqx.is_array(cls)
    if not getattr(cls, "__abstractmethods__", None) and not name.startswith("Abstract")
}
FUNCTIONS = set(vars(moves)) & {
    name for name, each in vars(moves).items() if callable(each) and name.islower()
}


def test_every_method_has_an_entry():
    assert {"Annealed", "Twisted", "Tweedie", "DriftLite", "Full", "Cosine"} <= CLASSES
    assert {"hmc", "mala", "sequence", "elliptical_slice"} <= FUNCTIONS
    assert CLASSES | (FUNCTIONS - {"from_blackjax"}) == set(BEHIND) - {"AsPublished"}


def test_entries_are_whole_and_used():
    used = {key for keys in BEHIND.values() for key in keys} | set(ALWAYS)
    assert used | {"lee2018", "chan2013", "dau2022", "vehtari2021"} == set(PAPERS)
    for key, text in PAPERS.items():
        assert text.startswith("@") and text.count("{") == text.count("}"), key
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", text, re.MULTILINE))
        assert {"author", "title", "year"} <= set(fields) and fields["year"] in key
        name = fields["author"].split(",")[0].lower().replace(" ", "")
        assert key.startswith(name), key
        assert ("eprint" in fields) == ("archiveprefix" in fields)


def keys_of(run):
    return re.findall(r"^@\w+\{(\w+),", citation(run), re.MULTILINE)


def test_a_scheme_names_its_parts():
    scheme = nd.Twisted(proposal=schemes.DDRM(), moves=moves.sequence(moves.nuts(), moves.barker()))
    keys = keys_of(scheme)
    assert keys[0] == "numpyro_diffusion" and len(keys) == len(set(keys))
    assert {"wu2023", "kawar2022", "hoffman2014", "livingstone2022", "tierney1994"} <= set(keys)
    assert {"efron2011", "chung2023"} <= set(keys)  # its twist
    assert not {"neal2001", "zhu2023", "lee2018"} & set(keys)
    assert "wu2023" in keys_of(schemes.unweighted(nd.Twisted()))


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian(schedule=schedules.Cosine())))
    numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)


def test_a_run_names_what_it_used():
    smc = nd.SMC(model, nd.Annealed(levels=2, moves=1, pilot=8), num_particles=8, num_chains=2,
                 twist=nd.twists.ByDimension(), progress_bar=False)  # fmt: skip
    before = set(keys_of(smc))
    assert {"neal2001", "delmoral2006", "neal2011"} <= before
    assert not {"nichol2021", "lee2018"} & before
    smc.run(jax.random.key(0), 0.3)
    after = set(keys_of(smc))
    assert {
        "nichol2021",
        "lee2018",
        "song2023",
    } <= after  # schedule, error, the twist of two coordinates
    assert not {"chung2023", "song2021"} & after
    assert {"delmoral2006", "lee2018"} <= set(keys_of(smc.result))
    smc.chain_length = 4
    assert "dau2022" in keys_of(smc) and "lee2018" not in keys_of(smc)


def test_what_is_no_run_is_refused():
    with pytest.raises(TypeError, match="expects an `SMC`, a scheme or an `SMCResult`; got int"):
        citation(3)


def test_a_result_without_a_scheme_is_cited():
    walk = nd.from_kernels(
        initial=jax.random.normal,
        kernel=lambda key, x, y: x + jax.random.normal(key),
        log_potential=lambda x, new, y: -0.5 * (y - new) ** 2,
        levels=jnp.zeros(2),
    )
    result = nd.run_smc(jax.random.key(0), walk, num_particles=8)
    keys = keys_of(result)
    assert {"thornton2025", "delmoral2006", "lee2018"} <= set(keys)
    assert not {"neal2001", "vehtari2021"} & set(keys)
