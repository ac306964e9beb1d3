"""Files: energies and priors as safetensors with a JSON header, never pickle."""

from .files import load as load
from .files import read_card as read_card
from .files import save as save
