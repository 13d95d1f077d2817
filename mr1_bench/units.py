"""Units of measure as they stand in answers: their spellings, what they measure, and how one converts into another.

A unit is a product of powers of canonical symbols, for example `(("cm", 2),)`. This module must not know how text is cut into tokens
(`lexing`), how expressions are evaluated (`expressions`), or when two answers count as equal (`grading`).
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

Unit = tuple[tuple[str, int], ...]
"""Canonical symbols with their exponents, sorted by symbol; never empty."""

Dimension = tuple[tuple[str, int], ...]
"""Dimensions with their exponents, sorted by name; empty for a pure number such as `m/m`."""

DEGREE: Unit = (("deg", 1),)
_ONE = Fraction(1)

# symbol -> (dimension, exponent of that dimension, factor to the base of the dimension)
_SYMBOLS: dict[str, tuple[str, int, Fraction]] = {
    "deg": ("angle", 1, Fraction(1)),
    "arcmin": ("angle", 1, Fraction(1, 60)),
    "arcsec": ("angle", 1, Fraction(1, 3600)),
    "rad": ("angle", 1, Fraction(180 / math.pi)),
    "nm": ("length", 1, Fraction(1, 10**9)),
    "um": ("length", 1, Fraction(1, 10**6)),
    "mm": ("length", 1, Fraction(1, 1000)),
    "cm": ("length", 1, Fraction(1, 100)),
    "dm": ("length", 1, Fraction(1, 10)),
    "m": ("length", 1, Fraction(1)),
    "dam": ("length", 1, Fraction(10)),
    "hm": ("length", 1, Fraction(100)),
    "km": ("length", 1, Fraction(1000)),
    "li": ("length", 1, Fraction(500)),
    "zhang": ("length", 1, Fraction(10, 3)),
    "chi": ("length", 1, Fraction(1, 3)),
    "cun": ("length", 1, Fraction(1, 30)),
    "ha": ("length", 2, Fraction(10000)),
    "acre": ("length", 2, Fraction(40468564224, 10**7)),
    "mu": ("length", 2, Fraction(2000, 3)),
    "nmi": ("length", 1, Fraction(1852)),
    "in": ("length", 1, Fraction(254, 10000)),
    "ft": ("length", 1, Fraction(3048, 10000)),
    "yd": ("length", 1, Fraction(9144, 10000)),
    "mi": ("length", 1, Fraction(1609344, 1000)),
    # "5 units": a length whose scale is not said.
    "unit": ("length", 1, Fraction(1)),
    "mL": ("length", 3, Fraction(1, 1000000)),
    "L": ("length", 3, Fraction(1, 1000)),
    "s": ("time", 1, Fraction(1)),
    "min": ("time", 1, Fraction(60)),
    "h": ("time", 1, Fraction(3600)),
    "day": ("time", 1, Fraction(86400)),
    "mg": ("mass", 1, Fraction(1, 1000000)),
    "g": ("mass", 1, Fraction(1, 1000)),
    "kg": ("mass", 1, Fraction(1)),
    "t": ("mass", 1, Fraction(1000)),
    "yuan": ("money", 1, Fraction(1)),
    "dollar": ("dollars", 1, Fraction(1)),
}

_SPELLINGS: dict[str, str] = {
    "deg": "deg degs degree degrees degreee ° 度",
    "rad": "rad rads radian radians 弧度",
    "arcmin": "arcmin arcmins arcminute arcminutes 角分",
    "arcsec": "arcsec arcsecs arcsecond arcseconds 角秒",
    "nm": "nm nanometer nanometers nanometre nanometres 纳米",
    "um": "um micrometer micrometers micrometre micrometres micron microns 微米",
    "mm": "mm millimeter millimeters millimetre millimetres 毫米",
    "cm": "cm cms centimeter centimeters centimetre centimetres 厘米 公分",
    "dm": "dm decimeter decimeters decimetre decimetres 分米",
    "m": "m meter meters metre metres 米 公尺",
    "km": "km kms kilometer kilometers kilometre kilometres 千米 公里",
    "dam": "dam decameter decameters decametre decametres",
    "hm": "hm hectometer hectometers hectometre hectometres",
    "nmi": "nmi NM 海里 浬",
    "li": "里 华里",
    "zhang": "丈",
    "chi": "尺 市尺",
    "cun": "寸",
    "ha": "ha hectare hectares 公顷",
    "acre": "acre acres 英亩",
    "mu": "亩",
    "in": "in inch inches 英寸",
    "ft": "ft foot feet 英尺",
    "yd": "yd yard yards",
    "mi": "mi mile miles 英里",
    "unit": "unit units 单位 个单位 单位长度 个单位长度",
    "mL": "ml milliliter milliliters millilitre millilitres 毫升",
    "L": "liter liters litre litres 升",
    "s": "s sec secs second seconds 秒 秒钟",
    "min": "min mins minute minutes 分 分钟",
    "h": "h hr hrs hour hours 小时 时",
    "day": "day days 天",
    "mg": "mg milligram milligrams 毫克",
    "g": "g gram grams 克",
    "kg": "kg kgs kilogram kilograms 千克 公斤",
    "t": "tonne tonnes 吨",
    "yuan": "yuan 元",
    "dollar": "dollar dollars",
}

_SQUARED = frozenset({"nm", "um", "mm", "cm", "dm", "m", "km", "nmi", "li", "zhang", "chi", "cun", "in", "ft", "mi", "unit"})
_WORDS: dict[str, tuple[str, int]] = {word: (symbol, 1) for symbol, words in _SPELLINGS.items() for word in words.split()}
_WORDS.update({"平方": ("m", 2), "立方": ("m", 3)})
for _prefix, _exponent in (("平方", 2), ("立方", 3)):
    for _word, (_symbol, _) in list(_WORDS.items()):
        if _word[0] > "\u2fff" and _symbol in _SQUARED and not _word.startswith(("平方", "立方")):
            _WORDS[_prefix + _word] = (_symbol, _exponent)

CJK_SPELLINGS: tuple[str, ...] = tuple(sorted((word for word in _WORDS if word[0] > "\u2fff"), key=len, reverse=True))
"""Chinese spellings, longest first, so that an alternation of them takes the longest."""


def unit_of_word(word: str) -> Unit | None:
    """Unit spelled by one word or sign, or None where the word is no unit.

    Single capital letters are names of points rather than units.
    """
    found = _WORDS.get(word)
    if found is None and len(word) > 1:
        found = _WORDS.get(word.lower())
    return (found,) if found else None


def other_measure(words: str) -> Unit:
    """Unit of a measure that the table does not hold (`kPa`, `light years`): it equals itself only and converts into nothing."""
    return ((words, 1),)


def power(unit: Unit, exponent: int) -> Unit:
    """The unit raised to a whole power other than zero."""
    return tuple((symbol, each * exponent) for symbol, each in unit)


def product(left: Unit | None, right: Unit | None) -> Unit | None:
    """Product of two units; None stands for a pure number."""
    powers: dict[str, int] = {}
    for symbol, exponent in (left or ()) + (right or ()):
        powers[symbol] = powers.get(symbol, 0) + exponent
    return tuple(sorted((symbol, exponent) for symbol, exponent in powers.items() if exponent)) or None


def root(unit: Unit, degree: int) -> Unit | None:
    """The unit whose power `degree` is `unit`, or None where there is none."""
    if any(exponent % degree for _, exponent in unit):
        return None
    return tuple((symbol, exponent // degree) for symbol, exponent in unit)


@lru_cache(maxsize=512)
def dimension(unit: Unit) -> Dimension:
    """What the unit measures, for example `(("length", 2),)` for square centimetres."""
    powers: dict[str, int] = {}
    for symbol, exponent in unit:
        name, per, _ = _SYMBOLS.get(symbol, (symbol, 1, _ONE))
        powers[name] = powers.get(name, 0) + per * exponent
    return tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))


@lru_cache(maxsize=512)
def conversion(source: Unit, target: Unit) -> Fraction | None:
    """Factor by which a number of `source` is multiplied to become a number of `target`; None where the units contradict."""
    if source == target:
        return Fraction(1)
    if dimension(source) != dimension(target):
        return None
    if any(symbol == "unit" for symbol, _ in source + target):
        return Fraction(1)
    return _to_base(source) / _to_base(target)


def _to_base(unit: Unit) -> Fraction:
    factor = Fraction(1)
    for symbol, exponent in unit:
        factor *= _SYMBOLS[symbol][2] ** exponent if symbol in _SYMBOLS else 1
    return factor


def render_unit(unit: Unit) -> str:
    """Canonical spelling, for example `cm^2` or `km/h`."""
    above = [_power_text(symbol, exponent) for symbol, exponent in unit if exponent > 0]
    below = [_power_text(symbol, -exponent) for symbol, exponent in unit if exponent < 0]
    text = "*".join(above) or "1"
    return f"{text}/{'/'.join(below)}" if below else text


def _power_text(symbol: str, exponent: int) -> str:
    return symbol if exponent == 1 else f"{symbol}^{exponent}"
