"""Checks of topic 01: decoding codes, rounding to a format, sums in few bits, and storage."""

from qlab.checks.data_types.bf16 import check_fp32_bits_to_bf16_bits, check_stochastic_round
from qlab.checks.data_types.decoding import check_decode, check_decode_e4m3
from qlab.checks.data_types.rounding import check_round_to_format
from qlab.checks.data_types.storage import check_pack_int4, check_store_in_16_bits
from qlab.checks.data_types.sums import check_kahan_sum

__all__ = [
    "check_decode",
    "check_decode_e4m3",
    "check_fp32_bits_to_bf16_bits",
    "check_kahan_sum",
    "check_pack_int4",
    "check_round_to_format",
    "check_stochastic_round",
    "check_store_in_16_bits",
]
