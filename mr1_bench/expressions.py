"""Tokens of one run of mathematics to quantities: a recursive-descent parser with bounded depth.

A run holds numbers, signs, brackets, units and names of points or unknowns, and no prose. A name inside a formula makes it unreadable
rather than ignored, so that `4 + PE` is never 4. This module must not know how text becomes tokens (`lexing`) or how runs make up an
answer (`answers`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from mr1_bench.quantities import (
    Quantity,
    UnreadableError,
    add,
    apply,
    divide,
    from_float,
    from_fraction,
    multiply,
    negate,
    nth_root,
    raise_to,
    scale,
)
from mr1_bench.units import DEGREE, Unit, conversion

MAX_DEPTH = 24
"""Deepest nesting of brackets, roots, powers and fractions that is read."""

MAX_NUMERAL = 60
"""Longest numeral that is read, in characters."""

_ARC_MINUTE: Unit = (("arcmin", 1),)
_ARC_SECOND: Unit = (("arcsec", 1),)
# After degrees, minutes and seconds are parts of a degree.
_ARC_PARTS: dict[Unit | None, Unit] = {(("min", 1),): _ARC_MINUTE, (("s", 1),): _ARC_SECOND}
_PI = from_float(math.pi)
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_STARTS = frozenset({"NUM", "PI", "ROOT", "FRAC", "FUNC", "OPEN"})
_TIMES = frozenset("*×·")
_OVER = frozenset("/÷")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A token with its meaning in a run.

    Attributes:
        kind: NUM, PI, ROOT, FRAC, FUNC, NAME, UNIT, PCT, OP, PM, OPEN, CLOSE, COLON, PRIME, QUOTE, IMAGINARY or BAD.
        text: the token's text.
        glued: whether no white space stands before it.
        unit: the unit, for UNIT only.
    """

    kind: str
    text: str
    glued: bool
    unit: Unit | None = None


_END = Symbol("END", "", False)


def read_run(symbols: Sequence[Symbol], *, loose_names: bool = False) -> list[Quantity]:
    """Quantities that stand in a run, in order; empty where it holds none.

    Args:
        symbols: the run, without any equals sign.
        loose_names: take a name that stands apart after a value for a word (counting: `2 SUV`) instead of algebra.

    Raises:
        UnreadableError: the run is algebra, a ratio, broken notation, or out of bounds.
    """
    return _Reader(symbols, loose_names).read()


def number_of(text: str) -> Quantity:
    """Quantity of one numeral; raises `UnreadableError` where it is longer than `MAX_NUMERAL`."""
    if len(text) > MAX_NUMERAL:
        raise UnreadableError("bounds")
    plain = text.replace(",", "")
    mantissa, _, exponent = plain.lower().partition("e")
    if exponent and abs(int(exponent)) > 300:
        raise UnreadableError("bounds")
    if "." not in mantissa:
        return from_fraction(Fraction(plain))
    places = len(mantissa) - mantissa.index(".") - 1 - int(exponent or 0)
    significant = len(mantissa.replace(".", "").lstrip("0"))
    return replace(from_fraction(Fraction(plain), decimal=True), places=places, significant=significant)


class _Reader:
    """Position in one run. The only mutable object of the parser; it lives for one call of `read_run`."""

    def __init__(self, symbols: Sequence[Symbol], loose_names: bool):
        self.symbols = symbols
        self.loose_names = loose_names
        self.at = 0
        self.depth = 0

    def peek(self, ahead: int = 0) -> Symbol:
        index = self.at + ahead
        return self.symbols[index] if index < len(self.symbols) else _END

    def read(self) -> list[Quantity]:
        found: list[Quantity] = []
        while self.at < len(self.symbols):
            if not self.skip_label():
                found.extend(self.signed_expression())
                self.check_after_value()
        return found

    def skip_label(self) -> bool:
        """Step over what may stand before a value: a name, a colon, a quote, an option letter in brackets."""
        symbol, after = self.peek(), self.peek(1)
        if symbol.kind in ("COLON", "PRIME", "QUOTE"):
            self.at += 1
            return True
        if symbol.kind == "OPEN" and after.kind == "NAME" and self.peek(2).kind == "CLOSE":
            self.at += 3
            return True
        if symbol.kind == "NAME" and len(symbol.text) == 1 and after.kind == "CLOSE":
            self.at += 2
            return True
        if symbol.kind != "NAME":
            return False
        factor = after.kind in _STARTS and (after.glued or (len(symbol.text) == 1 and symbol.text.islower()))
        if after.kind in ("OP", "PM") or factor or after.kind == "UNIT":
            raise UnreadableError("algebra")
        self.at += 1
        return True

    def signed_expression(self) -> list[Quantity]:
        if self.peek().kind == "PM":
            self.at += 1
            value = self.sum()
            return [value, negate(value)]
        return [self.sum()]

    def check_after_value(self) -> None:
        """Refuse what cannot follow a value: a name, an operator, a ratio's colon, digits without a gap."""
        symbol, after = self.peek(), self.peek(1)
        if symbol.kind == "NAME" and (symbol.glued or not self.loose_names):
            raise UnreadableError("algebra")
        if symbol.kind == "COLON" and (after.kind in _STARTS or after.kind == "OP"):
            raise UnreadableError("ratio")
        if symbol.kind == "OPEN" and symbol.glued and after.kind == "NAME":
            raise UnreadableError("algebra")
        if symbol.kind == "NUM" and symbol.glued:
            raise UnreadableError("malformed")
        if symbol.kind in ("OP", "PM", "UNIT", "CLOSE", "BAD", "IMAGINARY", "PCT"):
            raise UnreadableError("malformed")

    def sum(self) -> Quantity:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError("bounds")
        total = self.product()
        while self.peek().kind == "OP" and self.peek().text in "+-":
            sign = self.peek().text
            self.at += 1
            term = self.product()
            total = add(total, negate(term) if sign == "-" else term)
        self.depth -= 1
        return total

    def product(self) -> Quantity:
        """Factors from left to right; a product without a sign has no precedence of its own, so `1/6π` is a sixth of π."""
        total = self.factor()
        dividing = False
        while True:
            symbol = self.peek()
            if symbol.kind == "UNIT" and symbol.unit is not None:
                total = self.attach_unit(total, symbol.unit, dividing)
            elif symbol.kind == "OP" and (symbol.text in _TIMES or symbol.text in _OVER):
                dividing = symbol.text in _OVER
                self.at += 1
                right = self.factor()
                total = divide(total, right) if dividing else multiply(total, right)
            elif total.unit is None and self.starts_hidden_factor():
                total = multiply(total, self.factor())
            else:
                return total

    def starts_hidden_factor(self) -> bool:
        """Whether a factor without a multiplication sign follows, as in `2√3`, `2π`, `2(√3+1)`, but not `3 4` or `140 (140)`."""
        symbol = self.peek()
        if symbol.kind != "OPEN":
            return symbol.kind in ("PI", "ROOT", "FRAC", "FUNC")
        after = self.peek(1)
        if after.kind == "NAME":
            return False
        if symbol.text == "{":
            # Braces only group: "0{3}{5}" is a fraction that lost its command, not a product.
            if after.kind == "NUM":
                raise UnreadableError("malformed")
            return after.kind in _STARTS
        lone = after.kind == "NUM" and self.peek(2).kind in ("CLOSE", "UNIT", "PCT")
        return (after.kind in _STARTS and (symbol.glued or not lone)) or (after.kind == "OP" and symbol.glued)

    def attach_unit(self, total: Quantity, unit: Unit, dividing: bool) -> Quantity:
        self.at += 1
        if total.unit is not None:
            one = from_fraction(Fraction(1), unit=unit)
            return divide(total, one) if dividing else multiply(total, one)
        total = replace(total, unit=unit)
        return self.smaller_parts(total, unit)

    def smaller_parts(self, total: Quantity, unit: Unit) -> Quantity:
        """Add what follows in smaller units of the same kind: `25°39'`, `25°39'12"`, `1 h 30 min`."""
        while self.peek().kind == "NUM":
            sign = self.peek(1)
            if unit == DEGREE and sign.kind == "PRIME":
                smaller: Unit | None = _ARC_MINUTE if sign.text == "'" else _ARC_SECOND
            elif unit in (DEGREE, _ARC_MINUTE) and (sign.kind == "QUOTE" or sign.text == "''"):
                smaller = _ARC_SECOND
            elif unit in (DEGREE, _ARC_MINUTE) and sign.unit in _ARC_PARTS:
                smaller = _ARC_PARTS[sign.unit]
            else:
                smaller = sign.unit if sign.kind == "UNIT" else None
            factor = conversion(smaller, unit) if smaller else None
            if smaller is None or factor is None or factor >= 1:
                break
            part = number_of(self.peek().text)
            self.at += 2
            converted = scale(replace(part, unit=total.unit), conversion(smaller, total.unit or unit) or factor)
            total = add(replace(total, places=None, significant=0), converted)
            unit = smaller
        return total

    def factor(self) -> Quantity:
        negative = False
        while self.peek().kind == "OP" and self.peek().text in "+-":
            negative ^= self.peek().text == "-"
            self.at += 1
        value = self.power()
        return negate(value) if negative else value

    def power(self) -> Quantity:
        base = self.primary()
        while self.peek().kind == "PCT":
            self.at += 1
            shifted = scale(base, Fraction(1, 100))
            base = shifted if base.places is None else replace(shifted, places=base.places + 2, significant=base.significant)
        if self.peek().kind == "OP" and self.peek().text in ("^", "**"):
            self.at += 1
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise UnreadableError("bounds")
            base = raise_to(base, self.factor())
            self.depth -= 1
        return base

    def primary(self) -> Quantity:
        symbol = self.peek()
        self.at += 1
        if symbol.kind == "NUM":
            return self.mixed(number_of(symbol.text))
        if symbol.kind == "PI":
            return _PI
        if symbol.kind == "OPEN":
            return self.group(symbol)
        if symbol.kind == "ROOT":
            return self.root(symbol)
        if symbol.kind == "FRAC":
            return divide(self.braced(), self.braced())
        if symbol.kind == "FUNC":
            return self.function(symbol.text)
        raise UnreadableError("algebra" if symbol.kind == "NAME" else "malformed")

    def group(self, opening: Symbol) -> Quantity:
        value = self.sum()
        if self.peek().kind != "CLOSE" or self.peek().text != _CLOSING[opening.text]:
            raise UnreadableError("algebra" if self.peek().kind == "NAME" else "malformed")
        self.at += 1
        return value

    def braced(self) -> Quantity:
        """Argument of a fraction: a group in braces, or one bare digit, as LaTeX has it."""
        symbol = self.peek()
        self.at += 1
        if symbol.kind == "OPEN" and symbol.text == "{":
            return self.group(symbol)
        if symbol.kind == "NUM" and len(symbol.text) == 1:
            return number_of(symbol.text)
        raise UnreadableError("malformed")

    def root(self, sign: Symbol) -> Quantity:
        degree = {"√": 2, "∛": 3, "∜": 4}[sign.text]
        bracket, index, close = self.peek(), self.peek(1), self.peek(2)
        if bracket.kind == "OPEN" and bracket.text == "[" and index.kind == "NUM" and index.text.isdigit() and close.kind == "CLOSE":
            degree = int(index.text[:4])
            self.at += 3
        return nth_root(self.argument(), degree)

    def argument(self) -> Quantity:
        """What a root or function without brackets is taken of: the next single item."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError("bounds")
        value = self.primary_without_mixing()
        self.depth -= 1
        return value

    def primary_without_mixing(self) -> Quantity:
        if self.peek().kind == "NUM":
            self.at += 1
            return number_of(self.symbols[self.at - 1].text)
        return self.primary()

    def function(self, name: str) -> Quantity:
        if name in ("sqrt", "cbrt"):
            return nth_root(self.argument(), 2 if name == "sqrt" else 3)
        argument = self.argument()
        unit = self.peek().unit
        if unit is not None and argument.unit is None:
            self.at += 1
            argument = replace(argument, unit=unit)
        return apply(name, argument)

    def mixed(self, whole: Quantity) -> Quantity:
        r"""Mixed numbers `2 1/2` and `2\frac{1}{2}`: a whole number before a proper fraction of whole numbers is a sum."""
        if whole.exact is None or whole.decimal:
            return whole
        first = self.peek()
        if first.kind == "FRAC":
            texts = [self.peek(step).text for step in range(1, 7)]
            shape, top, bottom, length = (texts[0], texts[2], texts[3], texts[5]) == ("{", "}", "{", "}"), texts[1], texts[4], 7
        else:
            slash = self.peek(1)
            shape, top, bottom, length = first.kind == "NUM" and not first.glued and slash.text == "/", first.text, self.peek(2).text, 3
        if not shape or not (top.isdecimal() and bottom.isdecimal() and len(top) <= 9 and len(bottom) <= 9):
            return whole
        if not 0 < int(top) < int(bottom):
            return whole
        self.at += length
        return from_fraction(whole.exact + Fraction(int(top), int(bottom)))
