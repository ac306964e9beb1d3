"""What the noise levels of an energy say of its density: normalisers and horizons."""

from .adjacent import adjacent_normalizer as adjacent_normalizer
from .horizon import HorizonReport as HorizonReport
from .horizon import elbo_vs_horizon as elbo_vs_horizon
from .normalizer import Normalizer as Normalizer
from .normalizer import thermodynamic_normalizer as thermodynamic_normalizer
