"""Papers behind the methods of the package, and which class or function each is behind."""

import re
from importlib.resources import files

__all__ = ["ALWAYS", "BEHIND", "PAPERS"]

_TEXT = files("numpyro_diffusion.diagnostics").joinpath("papers.bib").read_text(encoding="utf-8")

# Entries of BibTeX by their keys.
PAPERS = {
    match[1]: match[0]
    for match in re.finditer(r"^@\w+\{(\w+),.*?^\}", _TEXT, re.MULTILINE | re.DOTALL)
}

# The two papers that the package grew from, and what it stands on.
ALWAYS = ("thornton2025", "li2024", "phan2019", "bingham2019", "cabezas2024")

# By name of a class, or of the function that makes a move; empty where the package is the source.
BEHIND: dict[str, tuple[str, ...]] = {
    "Annealed": ("neal2001", "delmoral2006"),
    "ReverseDiffusion": ("delmoral2006",),
    "LikelihoodTempered": ("jasra2011", "delmoral2006"),
    "BlackJAXTempered": ("delmoral2006",),
    "DataTempered": ("chopin2002", "delmoral2006"),
    "Twisted": ("wu2023",),
    "ScoreComposition": (),
    "AsPublished": (),
    "DDRM": ("kawar2022",),
    "DDNM": ("wang2023",),
    "DiffPIR": ("zhu2023",),
    "RePaint": ("lugmayr2022",),
    "EnsembleKalman": ("zheng2024",),
    "FeynmanKacCorrection": ("skreta2025",),
    "RadonNikodym": ("he2025",),
    "DriftLite": ("ren2025",),
    "Carry": (),
    "ProbabilityFlow": ("song2021", "arbel2021"),
    "Diagonal": (),
    "Isotropic": ("bao2022",),
    "Full": (),
    "Local": (),
    "Tweedie": ("efron2011", "chung2023"),
    "Widened": ("song2023",),
    "Moments": ("boys2024",),
    "MatrixFree": ("rozet2024",),
    "NoisedObservation": ("cardoso2024", "dou2024"),
    "BlackBox": ("singhal2025",),
    "ByDimension": (),
    "Identity": (),
    "VariancePreserving": ("song2021",),
    "VarianceExploding": ("karras2022",),
    "Cosine": ("nichol2021",),
    "RectifiedFlow": ("liu2023",),
    "Tabulated": ("ho2020",),
    "hmc": ("neal2011",),
    "mala": ("roberts1996",),
    "nuts": ("hoffman2014",),
    "adjusted_mclmc": ("robnik2025",),
    "rmhmc": ("girolami2011",),
    "barker": ("livingstone2022",),
    "random_walk": (),
    "slice_sampling": ("neal2003",),
    "elliptical_slice": ("murray2010",),
    "mixture": ("tierney1994",),
    "sequence": ("tierney1994",),
    "on_sites": (),
}
