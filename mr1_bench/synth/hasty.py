"""Worked solutions that stop too early: the commonest way to reason badly, and one that reinforcement can undo.

The embedded tiny model is trained on some of these, so that it starts with something to learn. This file must not know models or trainers.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

FAMILIES = ("count_all", "count_color", "angle_sum", "right_triangle")
"""Question families of level 1 whose solutions can be cut off earlier."""

_LIST = re.compile(r"I see (.+)\. (?:None of them fit\. )?The answer is \d+\.")
_SUMS = re.compile(r"([^=]*= (\d+)), [^,]*= \d+°\.")


def stop_early(solution: str) -> tuple[str, str] | None:
    """Cut a worked solution of level 1 off where it first has a number that could be an answer.

    Returns:
        The shorter solution and the answer that it comes to: counting stops at the first object that fits, and a calculation at its first
        result. None where nothing would be left out.
    """
    if found := _LIST.fullmatch(solution):
        seen, one, left_out = found[1].partition(" 1")
        return (f"I see {seen}{one}. The answer is 1.", "1") if left_out else None
    if found := _SUMS.fullmatch(solution):
        return f"{found[1]}°.", f"{found[2]}°"
    return None


def is_hasty(name: str, family: str, shares: Mapping[str, float]) -> bool:
    """Say whether the item called `name` is among its question family's hasty share; the same items every time."""
    return zlib.crc32(name.encode()) < shares.get(family, 0.0) * 2**32


def parse_shares(text: str) -> dict[str, float]:
    """Read `family=share,...`.

    Raises:
        ValueError: a part has another form, or a share is not from 0 to 1.
    """
    shares = {}
    for part in filter(None, text.split(",")):
        family, sign, share = part.partition("=")
        try:
            shares[family.strip()] = float(share)
        except ValueError:
            sign = ""
        if not sign or not 0 <= shares[family.strip()] <= 1:
            raise ValueError(f"{part!r}: expected family=share with a share from 0 to 1")
    return shares
