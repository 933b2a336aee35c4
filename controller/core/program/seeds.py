"""Which names are seeds, and which calls set one. Pure.

The one definition of a seed. The tuner leaves seeds alone (agents/search_space.py), and a proposal that
changes nothing else is refused (normal_form.py, policy.py).
"""

from __future__ import annotations

import re

_SEED = re.compile(r"(?:(?:^|_)[sS]eed|[a-z\d]Seed)[\d_]*$")
_SCALE = re.compile(r"_(?:CPU|GPU)$")

SEED_CALLS = frozenset(
    {
        *("manual_seed", "manual_seed_all", "seed", "seed_all", "set_seed", "seed_everything"),
        *("set_rng_state", "set_rng_state_all", "setstate"),
        *("default_rng", "Random", "RandomState", "SeedSequence", "PCG64", "MT19937", "Philox", "SFC64"),
        *("PRNGKey",),
    }
)
"""Functions that take a seed, by the last part of their name."""

DRAWS = frozenset(
    {
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal"),
        *("random", "uniform", "gauss", "getrandbits", "randrange", "randbytes", "choice", "choices"),
        *("sample", "bernoulli", "multinomial", "standard_normal", "integers", "permutation"),
    }
)
"""Functions that only advance a random stream if their result is unused, by the last part of their name."""


def is_seed(name: str) -> bool:
    """True if the last word of a name is `seed`, digits after it aside: SEED, data_seed, rngSeed, seed0.

    RESEED_EVERY, SEED_TOKENS and `seeded` are not seeds.
    """
    name = _SCALE.sub("", name)
    return _SEED.search(name if not name.isupper() else name.lower()) is not None
