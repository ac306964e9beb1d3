"""Labels that classes had in files of earlier versions."""

__all__ = ["FORMER_LABELS"]


# Where classes stood when files of versions 1 and 2 named them by module; no module need be there now.
# Nothing is ever taken out of this table. Insides of readers and `_Pairs`, whose field is a function, are
# left out: no file could hold them.
_PLACES = {
    "energies.algebra": "Composed ComposedDenoiser Inverse",
    "energies.box": "Box",
    "energies.denoiser": "NetworkDenoiser",
    "energies.factored": "Factored FactoredDenoiser",
    "energies.factors": "Noised",
    "energies.foreign": "EnergyFunction ScoreFunction",
    "energies.forms": "AutoencoderEnergy ScalarEnergy SquaredEnergy",
    "energies.gaussian": "Gaussian GaussianMixture",
    "energies.joint": "Joint",
    "energies.mixture": "Mixture",
    "energies.network": "InnerProductEnergy ProperEnergy",
    "energies.optimize": "OptimizeResult",
    "energies.smoothed": "DoubleWell SmoothedDensity",
    "energies.standardized": "Standardized",
    "factors.coupling": "Coupling",
    "factors.power": "LawFactor",
    "factors.ratio": "Ratio",
    "factors.restrict": "Restrict",
    "factors.tilt": "Tilt",
    "factors.value": "ExactValue LearnedValue MonteCarloValue TweedieValue",
    "nets.condition": "Labels Vectors",
    "nets.mlp": "Linear NoiseLevel ResidualBlock ResidualMLP Scaled",
    "nets.scalar": "ScalarHead",
    "nets.unet": "Convolution ImageBlock UNet",
    "population.kernels": "InverseMultiquadric Polyharmonic Polynomial RBF",
    "population.mmd": "MMD",
    "schedules": "Cosine RectifiedFlow ReverseMoments VarianceExploding VariancePreserving",
    "tabulated": "Tabulated",
    "teachers.card": "PriorCard",
    "teachers.host": "HostTeacher",
    "teachers.mixer": "MixerBlock MixerNet",
    "teachers.predictions": "Denoised FlowVelocity Noise Score Velocity",
    "teachers.student": "TeacherBackbone",
    "teachers.teacher": "Teacher",
    "teachers.transforms": "Affine Identity LogScale",
    "teachers.unet": "UNetForm",
}


# All labels that a class had before: its places, and the names that it gave up.
FORMER_LABELS = {
    f"{place}.{name}": name for place, names in _PLACES.items() for name in names.split()
} | {
    "energies.algebra._Times": "PowerProduct",
    "teachers.mixer._LayerNorm": "MixerNorm",
    "teachers.mixer._Layers": "MixerLayers",
    "teachers.unet.UNet": "DiffusersUNet",
}
