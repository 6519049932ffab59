"""A byte budget: a tiled answer holds a few tiles at a time, so that its peak grows with the length, not its square."""

from collections.abc import Callable

from qlab.checks.report import require

BLOCK, WIDTH = 64, 2  # one strip of a tile's side costs 64 scores a row, 256 bytes in FP32
FEW, MORE, MANY = 2 * BLOCK, 3 * BLOCK, 5 * BLOCK
Peak = Callable[[int, int, bool], int]
LONG, IN_PYTHON = 640, 800_000  # a square of FP32 has 1.6 MB; 16 tiles of FP64 have 500 KB, Python's objects 50
SQUARE = "An N × N tensor of scores, weights or mask was alive: compute a tile, use it up, and go on to the next."


def require_tiles_only(peak: Peak, *, per_row: int, per_column: int) -> None:
    """Refuse an answer whose peak grows by more bytes for each further query, or key, than vectors in FP64 need.

    `peak(rows, columns, is_causal)` runs the answer with tiles of BLOCK by BLOCK. Two tiles each way are the least:
    from there on, what one tile leaves behind while the next is computed is part of every peak.
    """
    small = peak(FEW, FEW, False)
    by_row = (peak(MORE, FEW, False) - small) / (MORE - FEW)
    by_column = (peak(FEW, MORE, False) - small) / (MORE - FEW)
    told = f"tiles of {BLOCK} × {BLOCK}, width {WIDTH}: from {FEW} to {MORE}"
    require(
        by_row <= per_row or by_column <= per_column,
        f"{told} queries the peak grew by {by_row:.0f} bytes a query, and with the keys by {by_column:.0f} a key;"
        f" allowed are {per_row} and {per_column}",
        misconception="materializes-n-by-n",
        thought=SQUARE,
    )
    strip = (
        "A strip as long as the sequence is no tile: two loops, one over blocks of rows, one over blocks of columns."
    )
    require(
        by_row <= per_row,
        f"{told} queries the peak grew by {by_row:.0f} bytes a query, allowed are {per_row}",
        misconception="scores-of-all-queries-at-once",
        thought=strip,
    )
    require(
        by_column <= per_column,
        f"{told} keys the peak grew by {by_column:.0f} bytes a key, allowed are {per_column}",
        misconception="scores-of-all-keys-at-once",
        thought=strip,
    )
    causal = (peak(MANY, MANY, True) - peak(FEW, FEW, True)) / (MANY - FEW)
    require(
        causal <= per_row + per_column,
        f"causal, from {FEW} to {MANY} queries and keys the peak grew by {causal:.0f} bytes a token, allowed are"
        f" {per_row + per_column}: a mask of N × N booleans takes {MANY + FEW}",
        misconception="materializes-n-by-n",
        thought=f"{SQUARE} Make the mask of one tile from the numbers of its rows and columns.",
    )


def require_no_square_in_python(held: Callable[[int], int]) -> None:
    """Refuse an answer that holds an N × N array of NumPy's or list of Python's, which torch does not see.

    `held(length)` runs the answer and returns the most bytes of both; what it imports on the way, it imports once.
    """
    most = held(LONG)
    most = most if most <= IN_PYTHON else min(most, held(LONG))
    require(
        most <= IN_PYTHON,
        f"with {LONG} queries and keys, Python and NumPy held {most:,} bytes at one time, allowed are {IN_PYTHON:,};"
        f" {LONG} × {LONG} numbers in FP32 take {4 * LONG**2:,}",
        misconception="materializes-n-by-n",
        thought=SQUARE,
    )
