"""Normalisers of energies: by a sampler, from data along noise levels, and at single points."""

from .adjacent import adjacent_normalizer as adjacent_normalizer
from .by_sampler import prior_normalizer as prior_normalizer
from .fit_power import PowerFit as PowerFit
from .fit_power import fit_power as fit_power
from .pointwise import LabelNormalizers as LabelNormalizers
from .pointwise import label_normalizers as label_normalizers
from .pointwise import pointwise_normalizer as pointwise_normalizer
from .tabulate import tabulate as tabulate
from .thermodynamic import Normalizer as Normalizer
from .thermodynamic import thermodynamic_normalizer as thermodynamic_normalizer
