r"""Bridges: sequences of distributions from noise to a posterior, as densities.

A particle's position $z$ holds the noised diffusion variables $u = x_t / \alpha_t$, in the units of the
data, and every other latent variable, unconstrained. A bridge gives the densities

$$\gamma_{c, \beta}(z) = p_c(u)\; p(\theta \mid \hat x)\; p_g(y \mid \hat x, \theta)^{\beta},
\qquad \hat x = \text{twist}(u, c), \quad g = g(\theta, c),$$

where the *clock* $c$ runs from 1 (noise) to 0 (every diffusion site at its own `t_min`) and the log-SNR
of each site is linear in it. At $c = 0$ the twist is the identity and $g = 1$, so $p_g$ is the likelihood
and $\gamma_{0, 1}$ the user's joint density and nothing else. What happens to a likelihood at $c > 0$
changes the variance of a sampler, never its target.

*Tempering by information.* At high noise the twist leaves a share $\rho(c)$ of the prior's variance open.
A Gaussian datum of information $\kappa(\theta)$ (per prior variance) then has the effective precision
$\kappa / (1 + \kappa \rho)$, so the likelihood is raised to a power $g(\theta, c)$ near
$1 / (1 + \kappa(\theta) \rho(c))$ (see `Tempering`) and made a density of the data again,

$$\log p_g(y) = g \log p(y) + (1 - g) \log p(\text{centre}) + \tfrac n2 \log g,$$

exact for $n$ Gaussian data. Without the power a small noise level would be ruled out at high noise, where
no $\hat x$ can fit the data, and could hardly be found again. Without the norm such levels would be too
rare among the particles, by a factor that even depends on the units of the data, and those few would
come to rule the cloud.

*Densities that are 0 somewhere.* Weights see no more than the particles that are there: what a level rules
out is lost for all that follow, although the clean values it would have led to may be possible. An observed
site or factor that is 0 for values that the prior allows is an *edge*, and its density at noisy levels is
$p_g + \delta$ with a *floor* $\delta$. The floor goes at the end, when the noise has fallen already and what
is possible only shrinks. Under a twist that widens, $p_g$ of an edge is averaged over a few points.
"""

from .base import Bridge as Bridge
from .base import seen_shapes as seen_shapes
from .combined import combine as combine
from .combined import floored as floored
from .combined import log_density as log_density
from .edges import with_finite_gradients as with_finite_gradients
from .energy import from_energy as from_energy
from .forms import DensityBridge as DensityBridge
from .forms import PathBridge as PathBridge
from .forms import check_bridge_type as check_bridge_type
from .grown import Grown as Grown
from .grown import grown as grown
from .grown import nested as nested
from .labels import LabelledData as LabelledData
from .labels import LabelsGiven as LabelsGiven
from .labels import Sums as Sums
from .labels import less as less
from .model import AbstractModel as AbstractModel
from .observed import Curvature as Curvature
from .observed import Observed as Observed
from .observed import curvature as curvature
from .potential import Potential as Potential
from .potential import at_level as at_level
from .proposal import Proposal as Proposal
from .proposal import proposed as proposed
from .site_forms import DensitySite as DensitySite
from .site_forms import PathSite as PathSite
from .sites import DiffusionSite as DiffusionSite
from .sites import open_share as open_share
from .terms import Edge as Edge
from .terms import Rest as Rest
from .terms import Seen as Seen
