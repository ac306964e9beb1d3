"""Sections of the page of messages, with which errors end: cause and remedy of each family of errors.

`raise ValueError(f"... {_faq.shapes}")`. Every name below but `PAGE` and `bare` is an anchor of the page.
"""

PAGE = "docs/faq.md"
"""The page; with the site's address in front when `site_url` of mkdocs.yml has one."""


def _more(anchor: str) -> str:
    return f"More: {PAGE}#{anchor}"


def bare(error: Exception | str) -> str:
    """A message without its link, to be quoted in the middle of another one."""
    return str(error).partition(f" More: {PAGE}#")[0]


# What is passed.
numbers = _more("numbers")
shapes = _more("shapes")
finite = _more("finite")
real_numbers = _more("real-numbers")
kinds = _more("kinds")
choices = _more("choices")
together = _more("together")
keys = _more("keys")
arguments = _more("arguments")
names = _more("names")
keywords = _more("keywords")
covariances = _more("covariances")

# Runs.
dead_cloud = _more("dead-cloud")
error_infinite = _more("error-infinite")
nan = _more("nan")
lost = _more("lost")
no_result = _more("no-result")
chain_length = _more("chain-length")
devices = _more("devices")
checkpoint = _more("checkpoint")
update = _more("update")
budget = _more("budget")
a_heuristic = _more("a-heuristic")

# Pilots and schemes.
pilot_weights = _more("pilot-weights")
pilot_levels = _more("pilot-levels")
pilot_impossible = _more("pilot-impossible")
levels = _more("levels")
score_only = _more("score-only")
bridge_type = _more("bridge-type")
compositions = _more("compositions")
operator = _more("operator")
exact_draws = _more("exact-draws")
moves = _more("moves")
proposal = _more("proposal")

# Models.
not_a_model = _more("not-a-model")
needs_values = _more("needs-values")
hidden_randomness = _more("hidden-randomness")
no_finite_list = _more("no-finite-list")
many_values = _more("many-values")
discrete_site = _more("discrete-site")
improper = _more("improper")
subsample = _more("subsample")
missing_data = _more("missing-data")
masked = _more("masked")
param = _more("param")
site_kind = _more("site-kind")
blocks = _more("blocks")
plates = _more("objects")

# Priors.
no_distribution = _more("no-distribution")
log_prob = _more("log-prob")
shape = _more("shape")
normaliser = _more("normaliser")
needs_normaliser = _more("needs-normaliser")
table_range = _more("table-range")
fixed_energy = _more("fixed-energy")
stacked = _more("stacked")
schedules = _more("schedules")
inconsistent = _more("inconsistent")
network = _more("network")
reward = _more("reward")

audit = {  # by the name of the check in `auditing.faults`
    name: _more(f"audit-{name.replace('_', '-')}")
    for name in (
        "untrained",
        "few_values",
        "gradient",
        "linear",
        "calibration",
        "curl",
        "covariance",
        "spread",
        "rest",
        "normalizer",
        "levels",
        "faint",
        "draws",
        "memorised",
    )
}

# Training and files.
examples = _more("examples")
diverged = _more("diverged")
nothing_learned = _more("nothing-learned")
saving = _more("saving")
paths = _more("paths")
unreadable = _more("unreadable")
unknown_class = _more("unknown-class")
no_pretrained = _more("no-pretrained")
version = _more("version")
foreign_weights = _more("foreign-weights")
cards = _more("cards")
