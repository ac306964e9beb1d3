"""Trained diffusion models of other libraries: files, units and conventions, without their frameworks."""

from .arrays import read_equinox_leaves as read_equinox_leaves
from .arrays import read_safetensors as read_safetensors
from .card import PriorCard as PriorCard
from .diffusers import diffusers_unet as diffusers_unet
from .files import read_bytes as read_bytes
from .galaxies import galaxygrad as galaxygrad
from .host import HostTeacher as HostTeacher
from .predictions import AbstractPrediction as AbstractPrediction
from .predictions import Denoised as Denoised
from .predictions import FlowVelocity as FlowVelocity
from .predictions import Noise as Noise
from .predictions import Score as Score
from .predictions import Velocity as Velocity
from .scheduler import ddpm_schedule as ddpm_schedule
from .student import draw_data as draw_data
from .student import student_of as student_of
from .student import teacher_weights as teacher_weights
from .teacher import Teacher as Teacher
from .torch_archive import read_torch as read_torch
from .transforms import AbstractTransform as AbstractTransform
from .transforms import Affine as Affine
from .transforms import Identity as Identity
from .transforms import LogScale as LogScale
