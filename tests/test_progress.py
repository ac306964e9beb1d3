"""Progress bars: in a terminal, in a log, and what they say before anything is done."""

import contextlib
import io
import sys
import time

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import tqdm.auto

import numpyro_diffusion as nd
from numpyro_diffusion import _progress

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(size=(60, 2))


def model(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def tuned():
    return nd.Annealed(levels=4, pilot=8)(nd.from_model(model, 0.5))


def network():
    return nd.ProperEnergy.from_data(
        nd.nets.ResidualMLP(KEY, width=4), DATA, noise_min=0.05, noise_max=10.0
    )


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def a_log(monkeypatch):
    """Standard error as a file."""
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(_progress.LogBar, "_last", None)
    return file


def bar_of(desc: str = "bar", **options):
    return _progress.progress(enabled=True, total=10, desc=desc, compiles="a bar", **options)


def test_a_log_gets_a_line_a_minute_whatever_the_bars(monkeypatch):
    log = a_log(monkeypatch)
    clock = Clock()
    monkeypatch.setattr(_progress, "monotonic", clock)
    for number in range(5):  # bars of 50 s
        with bar_of(f"bar {number}") as bar:
            for _ in range(10):
                clock.now += 5
                bar.update(1)
                bar.set_postfix_str("so far", refresh=True)
    lines = log.getvalue().splitlines()
    assert len(lines) == 250 // 60 and "\r" not in log.getvalue()
    assert lines[0].startswith("bar 1:  2") or lines[0].startswith("bar 1:  1")
    assert _progress.progress(enabled=False, total=3, compiles="").disable


def test_a_log_gets_no_line_of_a_bar_that_says_nothing(monkeypatch):
    """A second bar of a long run: nothing of it is done, and nothing is compiled for long."""
    log, clock = a_log(monkeypatch), Clock()
    monkeypatch.setattr(_progress, "monotonic", clock)
    with bar_of("pilot") as bar:
        clock.now = 61.0
        bar.update(1)
        bar.set_postfix_str("so far")
    clock.now = 200.0
    with bar_of("run"):
        pass
    assert log.getvalue().count("\n") == 1 and log.getvalue().startswith("pilot:  10%")


def test_a_log_is_told_what_is_compiled_if_that_takes_long(monkeypatch):
    log = a_log(monkeypatch)
    monkeypatch.setattr(_progress, "SILENCE", 0.05)
    with bar_of() as bar:
        for _ in range(200):
            if log.getvalue():
                break
            time.sleep(0.05)
        bar.update(1)
    assert log.getvalue() == "bar: compiling a bar\n"
    assert bar.postfix == ""  # not said any more once something is done


@pytest.mark.parametrize("ended", ["by a step", "by other words", "by an error"])
def test_a_log_is_told_nothing_of_what_was_compiled_before(monkeypatch, ended):
    log = a_log(monkeypatch)
    monkeypatch.setattr(_progress, "SILENCE", 0.2)
    with contextlib.suppress(RuntimeError), bar_of() as bar:
        if ended == "by an error":
            raise RuntimeError
        bar.update(1) if ended == "by a step" else bar.set_postfix_str("3 levels", refresh=False)
        time.sleep(0.5)
    time.sleep(0.3)
    assert log.getvalue() == ""


def test_a_terminal_gets_the_bar_of_tqdm(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    with bar_of(ncols=80) as bar:
        assert "bar:   0%" in screen.getvalue() and "compiling a bar" in screen.getvalue()
        bar.update(10)
        screen.truncate(screen.seek(0))
        bar.refresh()
    assert isinstance(bar, tqdm.auto.tqdm) and not isinstance(bar, _progress.LogBar)
    assert "\r" in screen.getvalue() and "compiling" not in screen.getvalue()


RUNS = {
    "SMC": lambda: nd.SMC(model, num_particles=8, num_chains=1).run(KEY, 0.5),
    "tempered": lambda: nd.SMC(model, nd.schemes.BlackJAXTempered()).run(KEY, 0.5),
    "run_smc": lambda: nd.run_smc(
        KEY, nd.Annealed(levels=4)(nd.from_model(model, 0.5)), 8, progress_bar=True
    ),
    "replica_exchange": lambda: nd.replica_exchange(
        KEY, nd.from_model(model, 0.5), progress_bar=True
    ),
    "fit": lambda: nd.fit(KEY, network(), DATA),
    "audit": lambda: nd.audit(nd.GaussianMixture(), DATA, key=KEY),
    "fit_imperfect": lambda: nd.train.fit_imperfect(KEY, nd.Gaussian(), DATA, noise=0.1),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_bar_says_what_it_waits_for_before_anything_is_done(monkeypatch, name):
    """The first words of a bar come before the work, which is interrupted here by its first program."""
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    told = []

    class Stop(Exception):
        pass

    def stop(self):
        told.append(self._waits)
        raise Stop

    monkeypatch.setattr(_progress.Bar, "_wait", stop)
    monkeypatch.setattr(_progress.LogBar, "_wait", stop)
    with pytest.raises(Stop):
        RUNS[name]()
    assert len(told) == 1 and told[0].startswith("compiling ") and " (" in told[0]
