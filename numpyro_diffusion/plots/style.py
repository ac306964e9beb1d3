"""Colours, and an optional import of Matplotlib."""

from typing import Any

__all__ = ["FAINT", "INK", "TRUTH", "pyplot"]

INK, TRUTH, FAINT = "#30506d", "#c8553d", "0.75"


def pyplot() -> Any:
    """`matplotlib.pyplot`, imported when a figure is asked for."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        error.add_note("Plots need Matplotlib: pip install 'numpyro-diffusion[plots]'")
        raise
    return plt
