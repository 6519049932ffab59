"""The checker of annotations at run time: beartype, with an int accepted for a float, as PEP 484 says."""

from beartype import BeartypeConf, beartype

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))
