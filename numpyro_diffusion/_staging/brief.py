"""Compilation of programs that run once."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax

__all__ = ["brief_jit"]

_IN_A_HURRY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def brief_jit(function: Callable) -> Callable:
    """`equinox.filter_jit` for a program that runs once: on CPUs the compiler is told to hurry.

    Options that the compiler does not know are left out.
    """
    usual = eqx.filter_jit(function)
    hurried, options = usual, {}

    @functools.wraps(function)
    def call(*args, **kwargs):
        nonlocal hurried, options
        if jax.default_backend() != "cpu":
            return usual(*args, **kwargs)
        if options != _IN_A_HURRY:
            options = dict(_IN_A_HURRY)
            hurried = eqx.filter_jit(function, compiler_options=options)  # type: ignore[call-overload]
        try:
            return hurried(*args, **kwargs)
        except jax.errors.JaxRuntimeError as error:
            unknown = [name for name in options if f"'{name}'" in str(error)]
            if not unknown:
                raise
            for name in unknown:
                _IN_A_HURRY.pop(name, None)
            return call(*args, **kwargs)

    return call
