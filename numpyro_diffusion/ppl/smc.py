r"""`SMC`: the sampler with the interface of NumPyro's `MCMC`.

It turns the model into a bridge, lets the scheme tune itself with a pilot cloud, runs several independent
clouds of particles together, and answers with draws, weighted particles, the log evidence with its
standard error, a summary and an ArviZ object.

Clouds take the place of chains, and agreement between them is what to look at. Draws within a cloud
stand in the order of their ancestry, not of time: neighbours are relatives, so autocorrelation tells
of shared ancestors, and an effective sample size from it is roughly right where that of shuffled draws
would be several times too large.

What a finished run answers is in `finished`. This file is long for the state that `run`, `update` and
`resume` share, and for what a user is told of their arguments.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from .. import _faq
from .._arguments import check_instance, positive, whole_number
from .._familiar import explain_model_argument, familiar
from .._prng import alike, check_key, lean
from .._typing import PRNGKey
from .._written import differing, written
from ..bridge import Bridge, grown
from ..schemes import AbstractScheme, Annealed
from ..schemes.base import check_scheme
from ..schemes.data_tempered import DataTempered
from ..schemes.kept import KeptPilots
from ..smc import FeynmanKac, SMCResult, run_smc
from ..smc.footprint import check_batch
from ..smc.resampling import check_threshold, scheme_of
from ..smc.spread import spread_over
from ..smc.step import Resampler
from ..twists import AbstractTwist
from .amortised import AmortisedProposal
from .bridge import from_model
from .budget import Budget, costs_of, stopped
from .checks import check_model
from .draws import with_discrete
from .finished import AbstractRun
from .plan import Plan, make_plan
from .simulate import Observations
from .start import ProposalDiagnostics, check_start, from_proposal
from .update import (
    Increment,
    between,
    check_can_update,
    scheme_for,
    warn_of_fewer,
)

__all__ = ["SMC"]


class SMC(AbstractRun):
    r"""Feynman-Kac sampler for a NumPyro model with diffusion priors.

    The weighted particles follow the model's posterior under $e^{-E(\cdot, t_{\min})}$ as their number
    grows, at any number of levels. A model without a `DiffusionPrior` is sampled by likelihood
    tempering. Discrete latent sites are summed out, and drawn given the rest when the run is done.

    Args:
        model: A NumPyro model.
        scheme: The sampler; `Annealed()` by default, `schemes.DataTempered()` from a proposal.
        num_particles: Particles a cloud.
        num_chains: Independent clouds, at least 1; two or more give R-hat and a standard error of
            the evidence across clouds.
        twist: What the likelihood sees at noisy levels; what the scheme prefers by default.
        initial: By diffusion site, the distribution from which its particles start at the noisy end, in
            units of the data; the Gaussian of the energy's moments by default. Or a proposal for all latent
            sites from `nd.ppl.fit_proposal`, from which they start at the clean end. Weights correct for it.
        resampling: `"systematic"`, `"stratified"`, `"multinomial"` or `"residual"`; or a function
            `(key, weights, num_samples) -> indices`.
        threshold: Resample when the effective sample size falls below this share of the particles: 0 for
            never, 1 for at every level.
        chain_length: For waste-free clouds, whose particles are all states of chains of this length; `None`
            for the usual cloud. See `run_smc`.
        keep_genealogy: Keep every particle's parent at every level, for `plots.plot_genealogy`.
        batch_size: Particles that step at once, to bound memory; `"auto"` for what half of the free holds.
        devices: Devices, or a mesh of them, over which the particles of all clouds are spread; see `run_smc`.
        checkpoint: A file to which `run` is written as it goes, and from which the same call goes on to the
            same bits if its process was killed. The pilot is in a file beside it, `.pilot`. Not for `update`.
        checkpoint_every: Seconds between two writings.
        max_seconds: What a call of `run` or `resume` may take. It stops at the first chunk of levels after
            them; `result` then is of an intermediate distribution, which its `target` names, and `resume`
            goes on.
        max_evaluations: The same in network evaluations, over particles, levels and clouds, pilots apart.
        finish: Take fewer levels than the pilot chose where the budget asks for it, and end at the
            posterior. Weights are right for it, and less even.
        progress_bar: Show progress of pilot and run.

    Raises:
        ValueError: If a number is out of range, or there is no resampling of that name.
        TypeError: If an argument is of another kind.

    Example:
        >>> smc = nd.SMC(model, num_particles=512, num_chains=4)
        >>> smc.run(jax.random.key(0), blur, y=y)
        >>> smc.print_summary()
    """

    @familiar
    def __init__(
        self,
        model: Callable,
        scheme: AbstractScheme | None = None,
        *,
        num_particles: int = 512,
        num_chains: int = 4,
        twist: AbstractTwist | None = None,
        initial: dict[str, Any] | AmortisedProposal | None = None,
        resampling: str | Resampler = "systematic",
        threshold: float = 0.5,
        chain_length: int | None = None,
        keep_genealogy: bool = False,
        batch_size: int | str | None = None,
        devices: Sequence[Any] | Mesh | None = None,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_every: float = 60.0,
        max_seconds: float | None = None,
        max_evaluations: float | None = None,
        finish: bool = False,
        progress_bar: bool = True,
    ):
        check_model(model)
        check_scheme(scheme)
        check_instance("twist", twist, AbstractTwist, "nd.Tweedie()")
        num_chains = whole_number("num_chains", num_chains, 1)
        num_particles = whole_number("num_particles", num_particles, 2)
        if chain_length is not None:
            chain_length = whole_number("chain_length", chain_length, 2)
        check_batch(batch_size)
        self.model = model
        if isinstance(initial, AmortisedProposal):
            scheme = check_start(scheme, twist)
        self.scheme = Annealed() if scheme is None else scheme
        self.num_particles, self.num_chains = num_particles, num_chains
        self.twist, self.initial = twist, initial
        scheme_of(resampling)
        self.resampling, self.threshold = resampling, check_threshold(threshold)
        self.chain_length, self.keep_genealogy = chain_length, keep_genealogy
        self.batch_size = batch_size
        # Refuses what does not fit.
        spread = spread_over(devices, num_chains, num_particles // (chain_length or 1))
        if spread is not None:
            spread.check_alone(checkpoint=checkpoint, max_seconds=max_seconds)
        self.devices, self.checkpoint = devices, checkpoint
        self.checkpoint_every = positive("checkpoint_every", checkpoint_every)
        self._budget = Budget.of(max_seconds, max_evaluations, finish, checkpoint)
        self.progress_bar = progress_bar
        self._bridge: Bridge | None = None
        self._feynman_kac = None
        self._result: SMCResult | None = None
        self._pilots: KeptPilots | None = None  # while they are made
        self._seconds = 0.0  # of the run with its pilot and updates
        self._arguments: tuple[tuple, dict] = ((), {})
        self._keys: dict[str, PRNGKey] = {}
        self._increments: tuple[Increment, ...] = ()
        self._proposal_diagnostics: ProposalDiagnostics | None = None
        self._earlier: tuple[SMCResult, tuple[tuple, dict]] | None = None  # than the update at hand
        self._tempered: DataTempered | None = None  # the scheme of the last update
        self._spent: int | None = 0  # network evaluations before that

    def __repr__(self) -> str:
        shown = {"num_particles": str(self.num_particles), "num_chains": str(self.num_chains)}
        given = {n: text for n, text in differing(self).items() if n not in ("model", "scheme")}
        rest = ", ".join(f"{name}={text}" for name, text in (shown | given).items())
        return f"SMC({written(self.model)}, {self.scheme}, {rest})"

    def _written(self) -> dict[str, Any]:
        seconds, evaluations, finish = self._budget
        return {"max_seconds": seconds, "max_evaluations": evaluations, "finish": finish}

    def _repr_html_(self) -> str | None:
        return None if self._result is None else super()._repr_html_()

    @familiar
    def run(self, key: PRNGKey, *args: Any, **kwargs: Any) -> "SMC":
        """Sample the posterior of the model at these arguments.

        Data are arrays, tables of pandas, lists or numbers; arrays may change without compilation. The model
        gets all arguments as they are, with NumPy arrays of numbers as JAX arrays.

        Args:
            key: PRNG key.
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If the model or its data cannot be used; the message names the site.
            PilotError: If the model is too hard for the allowed number of levels.
            TypeError: If `key` is no PRNG key, or observed values are not numbers.
            KeyboardInterrupt: Once the levels at hand are done. They stay in `result`, and `resume` goes on.
                In the pilot there is no `result` yet, and `resume` goes on with the pilot.
            FloatingPointError: If a log density is +inf, or every particle has weight 0; what was
                computed stays in `result`.
        """
        names = ("pilot", "run", "resample", "predict", "prior")
        self._keys = dict(zip(names, _split(check_key(key), len(names)), strict=True))
        self._arguments = args, kwargs
        self._result = self._bridge = self._feynman_kac = self._pilots = None
        self._earlier = self._tempered = None
        self._increments, self._spent, self._seconds = (), 0, 0.0
        self._proposal_diagnostics = None
        self._bridge = self._made(self._arguments)
        return self._go(None)

    def update(self, *args: Any, **kwargs: Any) -> "SMC":
        r"""Go on from a finished run to the posterior of the model at other arguments, such as more data.

        Each cloud goes on from its own particles: they are weighed by the model's joint density at the new
        arguments over that at the old ones, in steps of a power where that leaves too little of the
        effective sample size, resampled, and moved at clock 0 by the scheme's own moves, which a pilot cloud
        drawn from the old posterior tunes (see `schemes.data_tempered`). Then everything here is of the new
        posterior: `log_evidence` is that of all data, with an error that holds both runs', and `increments`
        says what the update added.

        Arguments are all those of `run` but the key: the new data beside the old, not instead of
        them. Arrays of the same shapes compile nothing anew; a mask of what has been seen so far keeps them.
        Since the pilot draws from the clouds that are then weighed, the evidence is no longer unbiased but
        consistent, with a bias of the order of one over the number of particles.

        Args:
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            RuntimeError: If nothing was run, or the run was interrupted.
            ValueError: If the run was a heuristic or in path space, if the model's latent sites or priors
                are others at these arguments, if data are not finite, or if they allow what the old ones
                ruled out.
            KeyboardInterrupt: As for `run`; `resume` goes on. After any other error the object is as it was.

        Warns:
            UserWarning: If the new data are fewer than the old.

        Example:
            >>> smc.run(jax.random.key(0), y[:10])
            >>> for n in (20, 30, 40):
            ...     smc.update(y[:n])
            >>> smc.increments[-1].log_evidence  # log p(y[30:40] | y[:30])

        References:
            Chopin (2002), A sequential particle filter method for static models, Biometrika. Del Moral,
            Doucet & Jasra (2006), Sequential Monte Carlo samplers, JRSS B. Dawid (1984), The prequential
            approach, JRSS A.
        """
        if self._result is None:
            raise RuntimeError(
                "`update` goes on from a finished run, and there is none: call `run` with a key "
                f"first. {_faq.no_result}"
            )
        before = self._finished
        check_can_update(self.scheme, self.bridge, before)
        state = dict(self.__dict__)
        try:
            warn_of_fewer(self.model, self._arguments, (args, kwargs))
            self._spent = self.network_evaluations
            self._earlier = before, self._arguments
            self._arguments, self._feynman_kac = (args, kwargs), None
            old, self._bridge = self.bridge, self._made(self._arguments)
            self._feynman_kac, start = self._between(old)
            return self._go(start)
        except BaseException as error:
            if not (isinstance(error, KeyboardInterrupt) and self._interrupted):
                vars(self).update(state)
            raise

    @property
    def _batch(self) -> int | None:
        """The batch size where "auto" is not followed."""
        return None if isinstance(self.batch_size, str) else self.batch_size

    @property
    def _interrupted(self) -> bool:
        return self._result is not None and not self._result.completed

    def _between(self, old: Bridge) -> tuple[FeynmanKac, SMCResult]:
        """The Feynman-Kac model of the update at hand, and the clouds that it starts from."""
        assert self._earlier is not None
        before, self._tempered = self._earlier[0], scheme_for(self.scheme)
        # Numbers that no split of this key has reached; one more for each update.
        key = jax.random.fold_in(lean(self._keys["pilot"]), 2**20 + len(self._increments))
        return between(
            key, self._tempered, old, self.bridge, before, self._batch, self.progress_bar
        )

    def bridge_at(self, *args: Any, **kwargs: Any) -> Bridge:
        """The bridge from noise to the posterior at some arguments of the model; nothing is run."""
        return self._made((args, kwargs))

    def _made(self, arguments: tuple[tuple, dict]) -> Bridge:
        """The bridge at the arguments of a run."""
        args, kwargs = arguments
        proposal = self.initial if isinstance(self.initial, AmortisedProposal) else None
        try:
            bridge = from_model(
                self.model,
                *args,
                twist=self.scheme.twist if self.twist is None else self.twist,
                bridge_type=self.scheme.bridge_type,
                initial=None if isinstance(self.initial, AmortisedProposal) else self.initial,
                **kwargs,
            )
        except TypeError as error:
            explain_model_argument(error, kwargs, SMC.__init__)
            raise
        # An update goes on from the clouds that are there.
        if proposal is None or self._earlier is not None or self._increments:
            return bridge
        return proposal.bridge(bridge, Observations.of(self.model, args, kwargs))

    def __getstate__(self) -> dict[str, Any]:
        # Compiled programs cannot be pickled; they are made again from the model and its arguments.
        return {**self.__dict__, "_bridge": None, "_feynman_kac": None}

    def plan(self, key: PRNGKey, *args: Any, **kwargs: Any) -> Plan:
        """What `run` with these arguments will cost: print and return estimates. The pilot is made for it.

        Args:
            key: PRNG key.
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            ValueError: As for `run`.
            PilotError: As for `run`.
        """
        since = monotonic()
        bridge = self.bridge_at(*args, **kwargs)
        pilot, run = _split(check_key(key), 2)
        if bridge.proposal is None:
            model = self.scheme(bridge, pilot, progress_bar=self.progress_bar)
        else:
            model, _ = from_proposal(pilot, self.scheme, bridge, self.progress_bar)
        number = self.num_particles * self.num_chains
        costs = costs_of(self.scheme, bridge, model.levels, self.chain_length)
        found = make_plan(
            run,
            model,
            None if costs is None else number * np.array([bridge.evaluations, *costs]),
            monotonic() - since,
            num_particles=number,
            batch_size=self._batch,
            chain_length=self.chain_length,
        )
        print(found)
        return found

    def resume(self) -> "SMC":
        """Go on with an interrupted run, to the same numbers as without the interrupt."""
        in_pilot = self._result is None and self._pilots is not None
        if not in_pilot and (self._result is None or self._result.completed):
            raise RuntimeError(
                f"there is no interrupted run to resume; call `run` first. {_faq.no_result}"
            )
        return self._go(self._result)

    def _go(self, state: SMCResult | None) -> "SMC":
        since = monotonic()
        if self._feynman_kac is None and self._earlier is not None:  # an update that was pickled
            self._feynman_kac, _ = self._between(self._made(self._earlier[1]))
        elif self._feynman_kac is None:
            self._feynman_kac = self._tuned(since)
        try:
            self._result = self._ran(self._feynman_kac, state, since)
        except KeyboardInterrupt as error:
            self._result = getattr(error, "result", state)
            if self._result is not None and not self._result.completed:
                error.add_note(
                    "The particles are not yet draws from the posterior; `resume()` goes on."
                )
            raise
        except FloatingPointError as error:
            self._result = getattr(error, "result", None)
            raise
        finally:
            self._seconds += monotonic() - since
        if not self._result.completed:
            self._result = stopped(self._result)
            return self
        if self._earlier is not None:
            self._increments += (Increment.of(self._earlier[0], self._result),)
            self._earlier = None
        with_discrete(self.bridge, self._result, self._keys["resample"])  # refuses a wrong sum
        return self

    def _tuned(self, since: float) -> FeynmanKac:
        """What the scheme makes of the bridge; a pilot that was interrupted goes on."""
        if self._pilots is None:
            self._pilots = KeptPilots(self.checkpoint, self.checkpoint_every)
        key, show = self._keys["pilot"], self.progress_bar
        try:
            with self._pilots:
                if self.bridge.proposal is None:
                    model = self.scheme(self.bridge, key, progress_bar=show)
                else:
                    model, self._proposal_diagnostics = from_proposal(
                        key, self.scheme, self.bridge, show
                    )
        except KeyboardInterrupt as error:
            self._seconds += monotonic() - since
            error.add_note("`resume()` goes on with the pilot, to the same levels.")
            raise
        except BaseException:
            self._pilots = None
            raise
        self._pilots = None
        return model

    def _ran(self, model: FeynmanKac, state: SMCResult | None, since: float) -> SMCResult:
        """The engine's result, within the budget."""
        run = partial(
            run_smc,
            self._keys["run"],
            num_particles=self.num_particles,
            num_chains=self.num_chains,
            resampling=self.resampling,
            threshold=self.threshold,
            chain_length=self.chain_length,
            keep_genealogy=self.keep_genealogy,
            batch_size=self.batch_size,
            devices=self.devices,
            checkpoint=self.checkpoint if self._earlier is None else None,
            checkpoint_every=self.checkpoint_every,
            progress_bar=self.progress_bar,
        )
        if self._budget.is_open:
            return run(model, state=state)
        scheme, bridge = self._costing()
        costs = costs_of(scheme, bridge, model.levels, self.chain_length)
        clouds = self.num_particles * self.num_chains
        costs = None if costs is None else clouds * costs
        return self._budget.run(run, model, state, costs, clouds * bridge.evaluations, since)

    def _costing(self) -> tuple[AbstractScheme, Bridge]:
        """The scheme and bridge that know what a level costs."""
        if self._tempered is None:
            return self.scheme, self.bridge
        return self._tempered, grown(self.bridge, self.bridge, self._earlier[0].positions)  # type: ignore[index]

    @property
    def result(self) -> SMCResult:
        """The raw result of the engine; leading axes `(num_chains, num_particles)`."""
        if self._result is None:
            raise RuntimeError(
                "there is no result yet, and so neither samples nor an evidence; call `run` first. "
                f"{_faq.no_result}"
            )
        return self._result

    @property
    def bridge(self) -> Bridge:
        """The bridge from noise to the posterior."""
        pending = self._result is not None or self._pilots is not None
        if self._bridge is None and pending:  # it was pickled
            self._bridge = self._made(self._arguments)
        if self._bridge is None:
            raise RuntimeError(f"there is no bridge yet; call `run` first. {_faq.no_result}")
        return self._bridge

    @property
    def increments(self) -> tuple[Increment, ...]:
        """What each `update` added to the log evidence, with its error; empty before the first.

        `log_evidence` is that of `run` and the sum of these.
        """
        return self._increments

    @property
    def proposal_diagnostics(self) -> ProposalDiagnostics | None:
        """How close the proposal of the run is to the posterior; `None` for a run from noise or the prior."""
        return self._proposal_diagnostics

    @property
    def network_evaluations(self) -> int | None:
        """Network evaluations of the run and its updates, pilots apart, over particles, levels, clouds.

        `None` where the scheme does not say how many a level has.
        """
        if not self.bridge.diffusion_sites:
            return 0
        levels, chain = self.result.levels, self.chain_length
        scheme, bridge = self.scheme, self.bridge
        if self._tempered is not None:
            scheme, bridge = self._tempered, grown(bridge, bridge, self.result.positions)
        per_level = scheme.evaluations_per_level(bridge, levels, chain)
        if per_level is None or self._spent is None:
            return None
        per_particle = bridge.evaluations + per_level * self.result.num_levels_run
        return self._spent + round(per_particle * self.num_particles * self.num_chains)


@partial(jax.jit, static_argnums=1)
def _split(key: PRNGKey, num: int) -> list[PRNGKey]:
    return list(alike(jax.random.split(lean(key), num), key))
