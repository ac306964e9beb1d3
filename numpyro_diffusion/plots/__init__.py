"""Figures of runs and of priors.

Needs Matplotlib: `pip install 'numpyro-diffusion[plots]'`. Every function returns a figure or draws on
axes that it is given; nothing is shown or saved.
"""

from .audit import plot_audit as plot_audit
from .run import plot_density as plot_density
from .run import plot_genealogy as plot_genealogy
from .run import plot_images as plot_images
from .run import plot_levels as plot_levels
from .run import plot_restoration as plot_restoration
from .summary import plot_run as plot_run
