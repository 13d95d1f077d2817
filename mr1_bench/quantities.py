"""Quantities: a number with what is known of its exactness, its written digits and its unit, and bounded arithmetic on them.

Every operation is bounded in size and time; what cannot be computed within the bounds raises `UnreadableError`, never an arithmetic
exception. This module must not know text: cutting and reading are `lexing`, `expressions` and `answers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from mr1_bench.units import Unit, conversion, dimension, power, product, render_unit, root

Reason = Literal["no_value", "algebra", "relation", "ratio", "malformed", "ambiguous", "bounds"]
"""Why a text is no value: nothing to read, letters in a formula, an inequality, `a:b`, broken notation, several values, too big."""

MAX_BITS = 512
"""Largest numerator or denominator kept exactly; beyond it a number is a float."""

MAX_EXPONENT = 64
"""Largest whole exponent computed exactly."""

MAX_UNIT_EXPONENT = 6
"""Largest power of a unit that is read."""

RELATIVE_TOLERANCE = 1e-6
"""Two numbers this close, relative to the gold, are equal."""

ROUNDED_DIGITS = 3
"""Fewest significant digits that make a decimal acceptable as a rounding of a number without a finite decimal form."""


_ONE = Fraction(1)


class UnreadableError(ValueError):
    """A text that is no value; `reason` says why."""

    def __init__(self, reason: Reason):
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class Quantity:
    """One value read from a text.

    Attributes:
        value: the number, in the unit given.
        exact: the same number as a fraction where it is known to be rational, else None.
        unit: the unit given with it, or None.
        places: decimal places of a lone numeral with a decimal point, else None: only such a numeral can be a rounding.
        significant: its number of significant digits; 0 where `places` is None.
        decimal: whether a numeral with a decimal point took part in the value.
    """

    value: float
    exact: Fraction | None
    unit: Unit | None = None
    places: int | None = None
    significant: int = 0
    decimal: bool = False


def from_fraction(exact: Fraction, *, unit: Unit | None = None, decimal: bool = False) -> Quantity:
    """Quantity of an exact number; beyond `MAX_BITS` it is kept as a float only."""
    small = exact.numerator.bit_length() <= MAX_BITS and exact.denominator.bit_length() <= MAX_BITS
    try:
        return Quantity(float(exact), exact if small else None, unit, decimal=decimal)
    except OverflowError:
        raise UnreadableError("bounds") from None


def from_float(value: float, *, unit: Unit | None = None, decimal: bool = False) -> Quantity:
    """Quantity of a number that is not known to be rational; raises `UnreadableError` unless it is finite."""
    if not math.isfinite(value):
        raise UnreadableError("bounds")
    return Quantity(value, None, unit, decimal=decimal)


def _bounded(unit: Unit | None) -> Unit | None:
    if unit is not None and any(abs(exponent) > MAX_UNIT_EXPONENT for _, exponent in unit):
        raise UnreadableError("bounds")
    return unit


def negate(operand: Quantity) -> Quantity:
    """The quantity with the other sign; written digits and unit stay."""
    return replace(operand, value=-operand.value, exact=None if operand.exact is None else -operand.exact)


def scale(operand: Quantity, factor: Fraction) -> Quantity:
    """The number times an exact factor, unit unchanged and written digits dropped."""
    if operand.exact is not None:
        return from_fraction(operand.exact * factor, unit=operand.unit, decimal=operand.decimal)
    return from_float(operand.value * float(factor), unit=operand.unit, decimal=operand.decimal)


def add(left: Quantity, right: Quantity) -> Quantity:
    """Sum; units that contradict, or a bare number after a length (`2m+1`, algebra rather than metres), are unreadable."""
    unit = left.unit or right.unit
    if left.unit and right.unit and left.unit != right.unit:
        factor = conversion(right.unit, left.unit)
        if factor is None:
            raise UnreadableError("malformed")
        right = scale(right, factor)
    elif left.unit and not right.unit and dimension(left.unit) != (("angle", 1),):
        raise UnreadableError("algebra")
    decimal = left.decimal or right.decimal
    if left.exact is not None and right.exact is not None:
        return from_fraction(left.exact + right.exact, unit=unit, decimal=decimal)
    return from_float(left.value + right.value, unit=unit, decimal=decimal)


def multiply(left: Quantity, right: Quantity) -> Quantity:
    """Product, of the units as well."""
    unit, decimal = _bounded(product(left.unit, right.unit)), left.decimal or right.decimal
    if left.exact is not None and right.exact is not None:
        return from_fraction(left.exact * right.exact, unit=unit, decimal=decimal)
    return from_float(left.value * right.value, unit=unit, decimal=decimal)


def divide(left: Quantity, right: Quantity) -> Quantity:
    """Quotient, of the units as well; a division by zero is unreadable."""
    if right.value == 0:
        raise UnreadableError("malformed")
    unit = _bounded(product(left.unit, power(right.unit, -1) if right.unit else None))
    decimal = left.decimal or right.decimal
    if left.exact is not None and right.exact is not None:
        return from_fraction(left.exact / right.exact, unit=unit, decimal=decimal)
    return from_float(left.value / right.value, unit=unit, decimal=decimal)


def raise_to(base: Quantity, exponent: Quantity) -> Quantity:
    """Power with a bounded result; only whole exponents may meet a unit."""
    if exponent.unit is not None:
        raise UnreadableError("malformed")
    decimal = base.decimal or exponent.decimal
    whole = int(exponent.exact) if exponent.exact is not None and exponent.exact.denominator == 1 else None
    if base.unit is not None and (whole is None or not 0 < abs(whole) <= MAX_EXPONENT):
        raise UnreadableError("malformed")
    unit = _bounded(power(base.unit, whole)) if base.unit is not None and whole is not None else None
    if base.exact is not None and whole is not None and abs(whole) <= MAX_EXPONENT and (base.exact or whole >= 0):
        return from_fraction(base.exact**whole, unit=unit, decimal=decimal)
    if base.exact is not None and exponent.exact == Fraction(1, 2):
        return nth_root(base, 2)
    try:
        return from_float(math.pow(base.value, exponent.value), unit=unit, decimal=decimal)
    except OverflowError:
        raise UnreadableError("bounds") from None
    except ValueError:
        raise UnreadableError("malformed") from None


def nth_root(radicand: Quantity, degree: int) -> Quantity:
    """Real root of a degree between 2 and `MAX_EXPONENT`; exact where the radicand is a perfect power."""
    if not 2 <= degree <= MAX_EXPONENT or (radicand.value < 0 and degree % 2 == 0):
        raise UnreadableError("malformed")
    unit = root(radicand.unit, degree) if radicand.unit else None
    if radicand.unit and unit is None:
        raise UnreadableError("malformed")
    if radicand.exact is not None:
        top, bottom = _whole_root(abs(radicand.exact.numerator), degree), _whole_root(radicand.exact.denominator, degree)
        if top is not None and bottom is not None:
            return from_fraction(Fraction(-top if radicand.exact < 0 else top, bottom), unit=unit, decimal=radicand.decimal)
    size = math.sqrt(radicand.value) if degree == 2 else math.pow(abs(radicand.value), 1 / degree)
    return from_float(-size if radicand.value < 0 else size, unit=unit, decimal=radicand.decimal)


def _whole_root(number: int, degree: int) -> int | None:
    if degree == 2:
        guess = math.isqrt(number)
        return guess if guess * guess == number else None
    if number.bit_length() > 200:
        return None
    guess = round(number ** (1 / degree))
    return guess if guess**degree == number else None


def _reciprocal(function: Callable[[float], float]) -> Callable[[float], float]:
    return lambda x: 1 / function(x)


_ANGLE_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "cot": _reciprocal(math.tan),
    "sec": _reciprocal(math.cos),
    "csc": _reciprocal(math.sin),
}
_NUMBER_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "arcsin": math.asin,
    "arccos": math.acos,
    "arctan": math.atan,
    "exp": math.exp,
    "ln": math.log,
    "log": math.log,
    "lg": math.log10,
    "abs": abs,
}
FUNCTIONS = frozenset(_ANGLE_FUNCTIONS) | frozenset(_NUMBER_FUNCTIONS)
"""Names of the functions of one number; angles without a unit are radians, `log` is natural, as sympy writes them."""


def apply(name: str, argument: Quantity) -> Quantity:
    """Value of one of `FUNCTIONS`; outside its domain it is unreadable."""
    value = argument.value
    if name in _ANGLE_FUNCTIONS:
        if argument.unit is not None:
            factor = conversion(argument.unit, (("rad", 1),))
            if factor is None:
                raise UnreadableError("malformed")
            value *= float(factor)
        function = _ANGLE_FUNCTIONS[name]
    elif argument.unit is not None:
        raise UnreadableError("malformed")
    else:
        function = _NUMBER_FUNCTIONS[name]
    try:
        result = function(value)
    except (ValueError, ZeroDivisionError):
        raise UnreadableError("malformed") from None
    except OverflowError:
        raise UnreadableError("bounds") from None
    # sin(30°) is one half: a float this close to a small decimal is that decimal, so that it is not taken for an irrational.
    rounded = round(result, 6)
    if abs(result - rounded) <= 1e-13 * max(1.0, abs(result)):
        return from_fraction(Fraction(str(rounded)), decimal=argument.decimal)
    return from_float(result, decimal=argument.decimal)


def equal(answer: Quantity, gold: Quantity) -> bool:
    """Whether the answer is the gold value: unit, then exact value, 1e-6 relative, or a correct rounding.

    A missing unit on either side is accepted, a contradicting one is not, a convertible one is converted. A whole number without a
    decimal point compares exactly. A decimal for a gold without a finite decimal form may be that gold rounded to the digits given.
    """
    factor = _ONE
    if answer.unit is not None and gold.unit is not None and answer.unit != gold.unit:
        converted = conversion(answer.unit, gold.unit)
        if converted is None:
            return False
        factor = converted
    if answer.exact is not None and answer.exact.denominator == 1 and not answer.decimal:
        exact = answer.exact if factor is _ONE else answer.exact * factor
        if gold.exact is not None:
            return exact == gold.exact
        return math.isclose(float(exact), gold.value, rel_tol=1e-12, abs_tol=1e-300)
    value = answer.value if factor is _ONE else answer.value * float(factor)
    if math.isclose(value, gold.value, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12):
        return True
    return not has_finite_decimal(gold) and answer.significant >= ROUNDED_DIGITS and is_rounding(answer, gold, factor)


def has_finite_decimal(number: Quantity) -> bool:
    """Whether the number can be written out as a decimal; 5/13, √2 and π cannot."""
    if number.exact is None:
        return False
    rest = number.exact.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def is_rounding(answer: Quantity, number: Quantity, factor: Fraction = _ONE) -> bool:
    """Whether the answer's numeral is the number correctly rounded to the decimal places that it shows."""
    if answer.places is None:
        return False
    half = 0.5 * 10.0**-answer.places * float(factor)
    return abs(answer.value * float(factor) - number.value) <= half * (1 + 1e-9)


def render(quantity: Quantity) -> str:
    """Canonical spelling of the number, without its unit.

    A whole number or a short finite decimal is written out (`140`, `2.4`), another fraction as `5/13`, and what is not known to be
    rational with twelve significant digits (`3.46410161514`).
    """
    exact = quantity.exact
    if exact is None or exact.numerator.bit_length() > 64 or exact.denominator.bit_length() > 64:
        return f"{quantity.value:.12g}"
    if exact.denominator == 1:
        return str(exact.numerator)
    decimal = f"{quantity.value:.12f}".rstrip("0")
    return decimal if Fraction(decimal) == exact else f"{exact.numerator}/{exact.denominator}"


def render_units(quantities: tuple[Quantity, ...]) -> str | None:
    """Canonical spelling of the units given, None where there is none; several different ones are joined by a comma."""
    names = dict.fromkeys(render_unit(quantity.unit) for quantity in quantities if quantity.unit is not None)
    return ", ".join(names) or None
