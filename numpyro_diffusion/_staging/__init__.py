"""Staging of functions as programs: traced once, compared by what they compute, common work hoisted.

`settle` traces a function of arrays and keeps the program. Two programs are equal if they do the same, so
that one compiled form serves both, and every array that the function read when it was traced is data: a
program is never older than what it was made from. `hoist` computes now what does not depend on the
arguments, so that neither loops nor repeated calls do it again.
"""

from .brief import brief_jit as brief_jit
from .fingerprint import fingerprint as fingerprint
from .hoist import Done as Done
from .hoist import hoist as hoist
from .settled import Settled as Settled
from .settled import settle as settle
