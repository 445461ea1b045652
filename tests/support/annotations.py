"""What checks annotations while tests run."""

import beartype

# As PEP 484 has it: where a float is wanted, an int will do.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
