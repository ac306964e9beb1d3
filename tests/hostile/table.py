"""The table of hostile cases: inputs on which a sampler may be wrong in silence, and what proves it right.

`scripts/hostile_page.py` makes `docs/hostile.md` of it; `test_table.py` checks that every test named here
exists. A case that is wrong has no place in it: it is mended first.
"""

from typing import NamedTuple


class Case(NamedTuple):
    """One row.

    Attributes:
        name: The case in a few words.
        given: What a reader would write.
        right: What is right.
        found: What the package does: the right value, a refusal with its first words, or a warning.
        test: `file::test` or `file::test[case]`, below `tests`.
    """

    name: str
    given: str
    right: str
    found: str
    test: str


QUADRATURE = "evidence and mean by quadrature"
WITHIN = "right, within its error"
EDGES, ZEROS = "test_edges.py::", "hostile/test_zeros.py::test_evidence_and_mean"
REFUSALS, ARGUMENTS = "hostile/test_refusals.py::", "test_arguments.py::"
OUTSIDE = REFUSALS + "test_data_outside_the_support_have_density_0"
KERNEL = "test_finite.py::test_kernels_refuse_infinite_densities_and_name_the_place"
BRIDGED = "test_finite.py::test_samplers_of_bridges_refuse_infinite_densities_and_warn_of_nan"
HARD = "test_hostile.py::test_hostile_models_are_right_by_default"
ROWS, COUNTS = "hostile/test_rows.py::", "test_counts.py::"
BAD, FINITE, VERDICT = "test_bad_input.py::", "test_finite.py::", "test_diagnostics.py::"


def edge(name, given, test, right=QUADRATURE, found=WITHIN):
    """A likelihood that is 0 somewhere."""
    return Case(name, given, right, found, EDGES + test)


def zero(name, given, found=WITHIN):
    """One of the likelihoods of `test_zeros.py`."""
    return Case(name, given, QUADRATURE, found, f"{ZEROS}[{name}]")


def refused(name, given, right, words, test):
    """An input that is refused."""
    return Case(name, given, right, f"refused: “{words}”", test)


NOTHING = "no posterior"

TABLE: dict[str, tuple[Case, ...]] = {
    "Densities that are 0 somewhere": (
        edge(
            "half-line cut off",
            'factor("hard", where(x > 1, -inf, 0))',
            "test_annealed[above]",
        ),
        edge(
            "half-line cut off, no data",
            'factor("hard", where(x < 0, -inf, 0))',
            "test_annealed[below, no data]",
        ),
        edge(
            "gap that holds the prior's mean",
            'factor("hard", where((-.1 < x) & (x < .7), -inf, 0))',
            "test_annealed[gap at the prior's mean]",
        ),
        edge(
            "all but an interval",
            'factor("hard", where((1.8 < x) & (x < 2.1), 0, -inf))',
            "test_annealed[all but an interval]",
        ),
        edge(
            "steep but finite",
            'factor("hard", where(x > 1, -30, 0))',
            "test_annealed[steep step]",
        ),
        edge(
            "NaN for 0",
            'factor("hard", where(x > 1, nan, 0))',
            "test_annealed[not a number]",
            found=f"{WITHIN}; warns: “log density NaN at site `hard`”",
        ),
        edge(
            "reverse-diffusion proposals and a cut",
            "SMC(model, ReverseDiffusion())",
            "test_beside_another_latent[steep step-reverse]",
        ),
        edge("path-space weights and a gap", "SMC(model, Twisted())", "test_twisted"),
        edge(
            "replica exchange and a gap", "replica_exchange(key, bridge)", "test_replica_exchange"
        ),
        edge(
            "particle Gibbs and a cut",
            "MCMC(ParticleGibbs(model, num_particles=16))",
            "test_particle_gibbs",
            right="posterior mean by quadrature",
        ),
        edge(
            "bounded noise of several data",
            'sample("y", Uniform(x - .5, x + .5), obs=[.6, .3, .9, .55])',
            "test_beside_another_latent[a floor for each datum-annealed]",
        ),
        edge("in 32 bits", "float32 throughout", "test_in_single_precision"),
        edge(
            "a function that says no, without a model",
            "from_energy(prior, lambda x: where(x > 0, -x / 2, -inf))",
            "test_likelihood_without_a_model",
        ),
        edge(
            "sharp and smooth is no zero",
            'factor("smooth", -1e6 * (x - .3) ** 2)',
            "test_only_what_can_be_zero_is_an_edge",
            right="no floor under it",
            found="no floor under it",
        ),
        zero("Pareto", 'sample("y", Pareto(exp(x), 2), obs=3)'),
        zero("truncated at x", 'sample("y", LeftTruncatedDistribution(Normal(), low=x), obs=.6)'),
        zero("uniform up to x", 'sample("y", Uniform(0, x), obs=.5)'),
        zero("noise of one sign", "y = x + Exponential(2), y = .6"),
        zero("clipped probability", 'sample("y", Bernoulli(probs=clip(x, 0, 1)), obs=1)'),
        zero("rate cut off at 0", 'sample("y", Poisson(relu(x)), obs=2)'),
        zero("probability beyond 1", 'sample("y", Binomial(5, probs=x), obs=2)'),
        zero("two pieces", 'factor("y", where(abs(x) > 1, 0, -inf))'),
        zero("rounded", 'factor("y", where(floor(4 * x) == 3, 0, -inf))'),
        zero("rounded after noise", 'factor("y", log(cdf((.75 - x) / .1) - cdf((.5 - x) / .1)))'),
        zero("logarithm of x", 'sample("y", Normal(log(x), .3), obs=.2)'),
        zero("root of x", 'sample("y", LogNormal(sqrt(x), .3), obs=2)'),
        zero(
            "lowest float for never",
            'factor("y", where(x > .5, finfo(x.dtype).min, norm.logpdf(.6, x, .5)))',
        ),
        zero("gradient that is not a number", 'factor("y", -3 * sqrt(maximum(x, 0)))'),
        Case(
            "an energy that is NaN where its score is not, under a sampler that uses the score alone",
            "Twisted, PnPDM, DAPS",
            "density 0 there",
            f"{WITHIN}; warns: “log density NaN at site `x`”",
            FINITE + "test_samplers_that_use_the_score_alone_look_at_the_value_too",
        ),
        Case(
            "ladders that no fresh state refreshes",
            "replica_exchange, a mode of weight 1e-6 that holds all the posterior",
            "no small error",
            "error of many nats, and a verdict that says so",
            "test_reliance.py::test_ladders_that_nothing_refreshes_hand_out_no_small_error",
        ),
        Case(
            "NaN of a logarithm is named",
            'sample("y", Normal(log(x), .3), obs=.2)',
            "weight 0, and said",
            "warns: “log density NaN at site `y`”",
            "hostile/test_zeros.py::test_not_a_number_is_named[logarithm of x]",
        ),
        refused(
            "zero everywhere",
            'factor("no", -inf)',
            NOTHING,
            "every pilot particle has weight 0 at level 1",
            BAD + "test_likelihood_that_is_zero_everywhere",
        ),
        edge(
            "order of two latents",
            'factor("order", where(x < z, 0, -inf))',
            "test_beside_another_latent[order, y = 1.0-annealed]",
        ),
        edge(
            "gradient that is NaN where the density is 0",
            'factor("root", where(x < z, sqrt(z - x), -inf))',
            "test_beside_another_latent[gradient that is not a number-annealed]",
        ),
        edge(
            "a cut and a large constant",
            'factor("hard", where(x > 1, -inf, 1e4))',
            "test_annealed[with a large constant]",
        ),
        Case(
            "half of eight dimensions",
            'factor("half", where(x.sum() > 0, 0, -inf))',
            "log 1/2 in closed form",
            WITHIN,
            ROWS + "test_half_space_in_eight_dimensions[no data]",
        ),
        Case(
            "half of eight dimensions, and a datum on the other side",
            'sample("y", Normal(x[0], .5), obs=-1) beside it',
            "closed form",
            WITHIN,
            ROWS + "test_half_space_in_eight_dimensions[with a datum]",
        ),
        Case(
            "bounded noise of half width .05",
            'sample("y", Uniform(x - .05, x + .05), obs=.6)',
            QUADRATURE,
            "right, or a wide error and a verdict that says why",
            ROWS + "test_narrow_bounded_noise_is_right_or_says_so",
        ),
        *(
            Case(name, given, "density 0", "density 0", f"{OUTSIDE}[{name}]")
            for name, given in (
                ("half a count", 'sample("y", Poisson(exp(x)), obs=2.5)'),
                ("coin that shows 2", 'sample("y", Bernoulli(logits=x), obs=2)'),
                ("category that is not there", 'sample("y", Categorical(logits=three), obs=5)'),
                ("more successes than trials", 'sample("y", Binomial(5, logits=x), obs=7)'),
                ("negative duration", 'sample("y", Exponential(exp(x)), obs=-.1)'),
                ("share above 1", 'sample("y", Beta(exp(x), 1), obs=1.5)'),
                ("shares that add up to 2", 'sample("y", Dirichlet(a), obs=[1.5, .5])'),
                ("angle beyond pi", 'sample("y", VonMises(x, 1), obs=9)'),
            )
        ),
    ),
    "Densities that are not finite": (
        *(
            refused(
                f"+inf on a part of the space, `{name}`",
                'factor("bad", where(x > 1, inf, 0))',
                NOTHING,
                f"log density +inf … in `{name}` at site …",
                f"{KERNEL}[{name}]",
            )
            for name in ("ParticleGibbs", "ParticleMarginal", "MoveKernel", "SplitKernel")
        ),
        Case(
            "NaN in proposals that are refused",
            'factor("bad", where(x > 1, nan, 0)), MCMC(MoveKernel(model))',
            "density 0, and said",
            "warns: “log density NaN in `MoveKernel` at site `bad`, first in chain …”",
            f"{KERNEL}[MoveKernel]",
        ),
        refused(
            "+inf on 3 % of the prior",
            'factor("rare", where(x > 1.88, inf, 0)), MCMC(MoveKernel(model))',
            NOTHING,
            "log density +inf in `MoveKernel` at site `rare`",
            FINITE + "test_a_place_of_infinite_density_that_is_rare_is_found",
        ),
        refused(
            "a split chain that starts where the energy is NaN",
            "split_gibbs(key, bridge, DAPS(), initial=...)",
            "weight 0, and said",
            "every draw of chain 0 has weight 0",
            FINITE + "test_draws_that_are_impossible_have_no_weight",
        ),
        refused(
            "normaliser of an energy that is NaN somewhere",
            "thermodynamic_normalizer(energy, data, key)",
            "no number",
            "`thermodynamic_normalizer` met NaN or +inf at …",
            FINITE
            + "test_estimates_of_an_energy_that_is_nan_are_refused[thermodynamic_normalizer]",
        ),
        *(
            refused(
                f"+inf on a part of the space, `{name}`",
                "from_energy(prior, lambda x: where(x > 1, inf, 0))",
                NOTHING,
                "log density +inf at site `likelihood`",
                f"{BRIDGED}[{name}]",
            )
            for name in ("replica_exchange", "split_gibbs", "run_smc")
        ),
        refused(
            "NaN or +inf in nested sampling",
            "nested_sampling(key, bridge)",
            NOTHING,
            "log density NaN at site `likelihood` …",
            FINITE + "test_nested_sampling_names_the_site",
        ),
        refused(
            "+inf in a block of `Gibbs`",
            "MCMC(Gibbs([(ParticleGibbs(model), ...), (NUTS(model), None)]))",
            NOTHING,
            "… in `ParticleGibbs` at site `bad`",
            FINITE + "test_a_block_of_gibbs_refuses_too",
        ),
        refused(
            "data that are never met",
            "split_gibbs(key, where(x < 40, -inf, 0), ...)",
            NOTHING,
            "every draw of chain 0 has weight 0",
            FINITE + "test_a_split_chain_that_never_meets_the_data_is_refused",
        ),
        refused(
            "data that are not finite",
            'sample("y", Normal(x, .5), obs=[.3, nan])',
            "name the entry",
            "observed site `y` has 1 values that are not finite, the first at index (1,)",
            BAD + "test_data_that_are_not_finite",
        ),
    ),
    "Hard shapes and scales": (
        *(
            Case(name, given, QUADRATURE, WITHIN, f"{HARD}[{name}]")
            for name, given in (
                ("heavy tail", 'sample("y", StudentT(2, x, .3), obs=6)'),
                ("asymmetric", 'sample("y", Gumbel(x, .5), obs=.4)'),
                ("bounded", 'gain ~ Uniform(.2, 1); sample("y", Normal(gain * x, .2), obs=1.2)'),
                ("funnel", 'v ~ Normal(0, 2); sample("y", Normal(x, exp(v / 2)), obs=three)'),
            )
        ),
        Case(
            "a thousand times sharper than the prior",
            'sample("y", Normal(x, 1e-3), obs=-1.7)',
            "the prior's density there",
            WITHIN,
            "test_hostile.py::test_a_spike_a_thousand_times_sharper_than_the_prior",
        ),
        Case(
            "narrower than the floats",
            'sample("y", Normal(x, 1e-8), obs=.7) in float32',
            "evidence not to be had",
            "the verdict says so, with 64 bits or centring as remedy",
            VERDICT + "test_verdict_names_what_is_wrong_and_nothing_else[narrower than its floats]",
        ),
        Case(
            "a large constant",
            'factor("c", 1e8) in float32',
            "digits are lost",
            "the verdict says so",
            VERDICT + "test_verdict_names_what_is_wrong_and_nothing_else[a large constant]",
        ),
        Case(
            "datum far from the prior, few levels",
            'sample("y", Normal(x, .1), obs=4), 60 particles',
            "no small error",
            "a wide error; warns: “`log_evidence` is not to be relied on”",
            "test_reliance.py::test_a_collapsed_run_hands_out_no_small_error",
        ),
        Case(
            "a surface of steps",
            'factor("steps", floor(x))',
            "no promise",
            "the verdict names the site that takes steps",
            VERDICT + "test_verdict_cannot_promise_on_a_surface_of_steps",
        ),
        *(
            Case(
                f"data in units of {unit}",
                f'sample("y", Normal({unit} * x + shift, {unit} / 2), obs={unit} * .7)',
                QUADRATURE,
                WITHIN,
                ROWS + f"test_units_of_the_data_change_the_evidence_by_themselves[{test}]",
            )
            for unit, test in (("1e-6", "1e-06"), ("1e6", "1000000.0"))
        ),
        Case(
            "two particles",
            "SMC(model, num_particles=2)",
            "no small error",
            "a wide error; warns: “`log_evidence` is not to be relied on”",
            ROWS + "test_two_particles_do_not_pass_for_a_posterior",
        ),
        refused(
            "one particle",
            "SMC(model, num_particles=1)",
            "at least two",
            "`num_particles` must be at least 2; got 1",
            ROWS + "test_one_particle_is_refused",
        ),
        Case(
            "one cloud",
            "SMC(model, num_chains=1)",
            "an error of its own",
            "error from the cloud's genealogy",
            VERDICT + "test_log_evidence_error_of_one_cloud_is_its_own",
        ),
        Case(
            "clouds that agree by chance",
            "SMC(model, num_chains=2)",
            "no smaller error",
            "the error is no smaller",
            VERDICT + "test_clouds_that_agree_by_chance_do_not_shrink_the_error",
        ),
        Case(
            "a spread evidence over 4,000 clouds of 6",
            "run_smc(key, model, 6, num_chains=4000)",
            "posterior mean in closed form",
            WITHIN,
            "test_reliance.py::test_clouds_that_count_by_their_evidence_have_no_bias_of_their_own",
        ),
    ),
    "Constants, functions and threads": (
        Case(
            "globals, attributes, cells that change",
            "width = 3.0 between two runs",
            "new numbers",
            "evidence in closed form each time",
            "test_staging.py::test_changed_constants_give_new_numbers",
        ),
        Case(
            "another function that does the same",
            "SMC(make_model()) again",
            "nothing to compile",
            "compiles nothing",
            "test_staging.py::test_what_does_not_matter_compiles_nothing",
        ),
        Case(
            "two models in two threads",
            "Thread(target=run)",
            "each its own sites",
            "each its own sites",
            ARGUMENTS + "test_two_threads_do_not_read_each_others_sites",
        ),
        Case(
            "Ctrl-C in a loop over data sets",
            "for y in sets: smc.run(key, y)",
            "the loop ends",
            "`KeyboardInterrupt`, with what was computed",
            "test_smc.py::test_an_interrupt_ends_a_loop_over_runs",
        ),
        refused(
            "generator or coroutine as a model",
            "def model(y): yield ...",
            "its body never runs",
            "`model` must be a plain function; got one with `yield` or `async`",
            REFUSALS + "test_what_is_no_model",
        ),
        refused(
            "value of a latent in Python or NumPy",
            "np.exp(x), float(x), if x > 0",
            "cannot be traced",
            "the model needs the values of its array arguments or latent sites",
            REFUSALS + "test_python_that_needs_the_value_of_a_latent",
        ),
        refused(
            "random numbers inside the model",
            "jax.random.normal(numpyro.prng_key())",
            "another model each time",
            "the model asks for a PRNG key",
            ARGUMENTS + "test_what_is_no_site_is_refused",
        ),
        refused(
            "a plain number for a key",
            "smc.run(0, y)",
            "a typed key",
            "`key` must be one PRNG key",
            BAD + "test_arguments_of_another_class",
        ),
        refused(
            "half a particle",
            "SMC(model, num_particles=2.5)",
            "an integer",
            "`num_particles` must be an integer of at least 2",
            BAD + "test_numbers_out_of_range",
        ),
        refused(
            "NaN, `True`, -1, 2.5 or 10**30 of anything",
            "fit(..., steps=nan), Annealed(pilot=True), split_gibbs(..., thinning=2.5)",
            "an integer",
            "`steps` must be an integer of at least 1; got nan",
            COUNTS + "test_what_is_no_count_is_refused_by_name",
        ),
    ),
    "Sites, names and shapes": (
        refused(
            "two sites of one name",
            'sample("x", ...) twice',
            "a name each",
            "two sites are called `x`",
            BAD + "test_two_sites_of_one_name",
        ),
        Case(
            "names with slashes and spaces",
            'sample("a/b c", ...), sample("y (m/s)", ...)',
            QUADRATURE,
            WITHIN,
            ROWS + "test_names_with_slashes_and_spaces",
        ),
        Case(
            "sites called like dimensions",
            'sample("draw", ...), sample("log_weight", ...)',
            "every site in the export",
            "every site in the export",
            "test_arviz.py::test_sites_called_like_dimensions_and_complex_ones_are_all_there",
        ),
        Case(
            "complex deterministic sites",
            'deterministic("z", x + 1j * y)',
            "both parts",
            "both parts in table and export",
            "test_arviz.py::test_a_table_has_both_parts_of_a_complex_site",
        ),
        *(
            refused(name, given, right, words, BAD + "test_models_that_cannot_be_sampled")
            for name, given, right, words in (
                (
                    "discrete latent without end",
                    'sample("k", Poisson(.3))',
                    "give it an end",
                    "has no finite list of values",
                ),
                (
                    "improper prior",
                    'sample("s", ImproperUniform(...))',
                    "a proper one",
                    "site `shift` has no sampler",
                ),
                (
                    "subsampled plate",
                    'plate("data", 2, subsample_size=1)',
                    "the whole plate",
                    "plate `data` subsamples 1 of 2",
                ),
                (
                    "masked prior",
                    "handlers.mask(mask=False)",
                    "mask the data",
                    "the latent site `x` is masked",
                ),
                (
                    "prior under a scale",
                    "handlers.scale(scale=2)",
                    "a power of the energy",
                    "the latent site `x` is under a `scale`",
                ),
                (
                    "energy that depends on a latent",
                    "DiffusionPrior(energy(scale))",
                    "unknown normaliser",
                    "the energy of site `x` depends on other latent sites",
                ),
                (
                    "data of another shape",
                    "obs=y[:, None]",
                    "no broadcast",
                    "observed site `y` expects values of shape (2,)",
                ),
                (
                    "no latent site",
                    "def model(y): ...",
                    "nothing to infer",
                    "the model has no latent site",
                ),
            )
        ),
        Case(
            "a datum that a plate repeats",
            'plate("data", 5): sample("y", ..., obs=.3)',
            "once, or said",
            "warns: “each value counts 5 times”",
            ARGUMENTS + "test_a_datum_that_counts_several_times_is_told",
        ),
        refused(
            "`param` at its initial value",
            'numpyro.param("p", 2.)',
            "a prior or a value",
            "the parameter `p` would stay at its initial value",
            ARGUMENTS + "test_what_is_no_site_is_refused",
        ),
        refused(
            "diffusion site inside `scan`",
            "scan(step, ...) with DiffusionPrior",
            NOTHING,
            "… sample all steps in a `plate`",
            "test_distributions.py::test_diffusion_site_in_numpyro_scan_is_refused_and_not_wrong",
        ),
    ),
    "Data and arguments": (
        Case(
            "plain number beside a bound that moves",
            'sample("y", Uniform(x - .5, x + .5), obs=.6)',
            "density by hand",
            "the density",
            ARGUMENTS + "test_plain_numbers_beside_bounds_that_move",
        ),
        Case(
            "tables, text, dates, dataclasses",
            "smc.run(key, y, DataFrame(...))",
            "reach the model",
            "reach the model as they are",
            ARGUMENTS + "test_arguments_of_any_kind_reach_the_model",
        ),
        Case(
            "lists, pandas columns, long doubles",
            "obs=Series(y)",
            "the same numbers",
            "the same numbers",
            ARGUMENTS + "test_data_of_any_kind_are_the_same_numbers",
        ),
        Case(
            "half precision and booleans",
            "obs=np.float16(.25), obs=True",
            "the same numbers",
            "the same numbers",
            REFUSALS + "test_half_precision_and_booleans_are_numbers",
        ),
        refused(
            "text as data",
            'obs=["a", "b"]',
            "encode it",
            "observed site `y` expects numbers; got a list",
            ARGUMENTS + "test_arguments_that_are_refused",
        ),
        refused(
            "complex data, complex factors",
            'obs=.3 + 1j, factor("f", 1j)',
            "real densities",
            "observed site `y` has a distribution of real numbers",
            REFUSALS + "test_data_and_factors_that_are_no_real_numbers",
        ),
        refused(
            "integers beyond 32 bits",
            "obs=3_000_000_000",
            "no wrapping",
            "… holds integers beyond 2147483647",
            ARGUMENTS + "test_integers_that_do_not_fit_are_not_wrapped",
        ),
        Case(
            "no data",
            "obs=np.zeros(0)",
            "likelihood 1",
            "likelihood 1; a plate of size 0 is refused by NumPyro",
            REFUSALS + "test_no_data",
        ),
        refused(
            "scale that is 0, negative or NaN",
            "Normal(x, -1.)",
            NOTHING,
            "Normal distribution got invalid scale parameter",
            REFUSALS + "test_scales_that_are_none_are_refused_by_numpyro",
        ),
    ),
    "Priors": (
        refused(
            "function that is no energy",
            "EnergyFunction(lambda x, t: x**2, (1,))",
            "one real number",
            "the function of `EnergyFunction` must return real numbers of shape ()",
            REFUSALS + "test_functions_that_are_no_energies",
        ),
        refused(
            "shape that is none",
            "EnergyFunction(f, shape=(0,))",
            "positive integers",
            "`shape` must be at least 1; got 0",
            REFUSALS + "test_shapes_that_are_none",
        ),
        refused(
            "powers and temperatures that are none",
            "energy / 0, inf * energy, energy - energy",
            "no normalised distribution",
            "expected a temperature other than 0 / … has no positive precision",
            REFUSALS + "test_compositions_that_are_none",
        ),
        refused(
            "covariance that is none",
            "Gaussian([0, 0], [[1, 2], [2, 1]])",
            "positive definite",
            "`covariance` must be positive definite",
            "test_energies.py::test_impossible_gaussians_are_refused",
        ),
        Case(
            "draws of a composed prior",
            "Predictive(model, ...) with (e1 + e2) / .5",
            "another distribution than the prior's, and said",
            "warns, and marks the group",
            "test_distributions.py::test_draws_of_a_composed_prior_warn_that_they_follow_another_law",
        ),
        Case(
            "traced means",
            'Gaussian(sample("mu", ...), ...)',
            "a Gaussian is normalised",
            "parameters like any others",
            "test_energies.py::test_traced_means_and_weights_are_parameters_like_any_others",
        ),
        Case(
            "table with few values, other units, constant columns",
            "ProperEnergy.from_data(net, table)",
            "say so",
            "warns: “takes this table badly: column 1 …”",
            "test_tables.py::test_columns_that_a_diffusion_takes_badly_are_named",
        ),
        Case(
            "training that learned nothing",
            "fit(key, energy, table, learning_rate=1.)",
            "say so at once",
            "warns: “training learned nothing”",
            "test_tables.py::test_training_that_learned_nothing_is_said_at_once",
        ),
    ),
    "Files": (
        *(
            Case(
                f"damaged files, {name}",
                given,
                "refused, or the same numbers",
                "refused: a `ValueError` in words for each of some hundred mutants",
                f"test_fuzz_readers.py::test_no_mutant_gets_through[{name}]",
            )
            for name, given in (
                ("prior", 'load("prior.safetensors")'),
                ("checkpoint", 'fit(..., checkpoint="run.safetensors")'),
                ("torch", 'teachers.read_torch("weights.pt")'),
                ("equinox", 'teachers.read_equinox_leaves("weights.eqx")'),
                ("safetensors", 'teachers.read_safetensors("weights.safetensors")'),
                ("diffusers", 'teachers.diffusers_unet("folder")'),
            )
        ),
        refused(
            "weights that are NaN",
            "save(path, energy), load(path)",
            "name the array",
            "… in `energy.net.read.weight` are NaN or infinite",
            "test_io.py::test_weights_that_are_not_numbers_are_refused_by_name",
        ),
        Case(
            "lazily negated PyTorch tensors",
            "read_torch(path)",
            "signs as PyTorch has them",
            "the right signs",
            "test_teachers_torch.py::test_lazy_negation_is_done",
        ),
        refused(
            "checkpoint of another run",
            "fit(..., augment=another)",
            "not gone on from",
            "… another run: augment is …",
            "test_checkpoint.py::test_functions_of_another_run_are_told_from_a_checkpoint",
        ),
        Case(
            "code in a pickle",
            "read_torch(path)",
            "never run",
            "refused: a `ValueError`, and nothing runs",
            "test_teachers_torch.py::test_no_code_runs",
        ),
    ),
}
