"""The gold audit's own reader of gold strings, and the forms in which it writes a gold back.

It is there to contradict the grader, so it must not know it: nothing of `answers` or `grading` is used here, and it reads only the few
shapes in which data sets write golds. A gold it cannot read is None, never a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Number:
    """A numeral as it stands."""

    digits: str


@dataclass(frozen=True, slots=True)
class Pi:
    """The circle's number."""


@dataclass(frozen=True, slots=True)
class Root:
    """A square root."""

    of: Term


@dataclass(frozen=True, slots=True)
class Ratio:
    """A fraction."""

    top: Term
    bottom: Term


@dataclass(frozen=True, slots=True)
class Product:
    """Factors side by side."""

    factors: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """Signed terms: pairs of +1 or -1 and a term."""

    terms: tuple[tuple[int, Term], ...]


Term = Number | Pi | Root | Ratio | Product | Sum


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit and its spellings.

    Attributes:
        dimension: what it measures, `length^2` for instance; units of different dimensions contradict each other.
        factor: its size in the dimension's first unit (degree, metre, second).
        short: usual sign.
        latex: the same in LaTeX's mathematics.
        word: English plural.
        chinese: Chinese name.
    """

    dimension: str
    factor: float
    short: str
    latex: str
    word: str
    chinese: str


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold, read: one term or several alternatives that are all wanted, and their common unit."""

    terms: tuple[Term, ...]
    unit: Unit | None


_BASES = [
    Unit("length", 0.001, "mm", r"\text{ mm}", "millimeters", "毫米"),
    Unit("length", 0.01, "cm", r"\text{ cm}", "centimeters", "厘米"),
    Unit("length", 1.0, "m", r"\text{ m}", "meters", "米"),
    Unit("length", 1000.0, "km", r"\text{ km}", "kilometers", "千米"),
]
_UNITS = {
    **{name: unit for unit in _BASES for name in (unit.short, unit.chinese)},
    **dict.fromkeys(("°", "度", "^°^"), Unit("angle", 1.0, "°", r"^{\circ}", "degrees", "度")),
    "海里": Unit("length", 1852.0, "海里", r"\text{海里}", "nautical miles", "海里"),
    **dict.fromkeys(("秒", "s"), Unit("time", 1.0, "s", r"\text{ s}", "seconds", "秒")),
    **dict.fromkeys(("小时", "h"), Unit("time", 3600.0, "h", r"\text{ h}", "hours", "小时")),
}
for _base in _BASES:
    for _power, _sign, _word, _chinese in ((2, "²", "square", "平方"), (3, "³", "cubic", "立方")):
        _raised = Unit(
            f"length^{_power}",
            _base.factor**_power,
            f"{_base.short}{_sign}",
            f"{_base.latex}^{_power}",
            f"{_word} {_base.word}",
            f"{_chinese}{_base.chinese}",
        )
        for _spelling in (
            _raised.short,
            f"{_base.short}^{{{_power}}}",
            f"{_base.short}^{_power}^",
            f"{_base.short}^{_power}",
            _raised.chinese,
        ):
            _UNITS[_spelling] = _raised

_SUFFIXES = sorted(_UNITS, key=len, reverse=True)
_SEPARATOR = re.compile(r"或|、|;|；|\bor\b|, ")
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\\d?frac|\\sqrt|sqrt|√|\\pi|pi|π|[-+*/(){}])")
_MINUTES = re.compile(r"(\d+)°(\d+)['′]")
_LONGEST = 80


def read_gold(text: str) -> Gold | None:
    """Read a gold string; None if it has no shape known here, for instance if it is a word."""
    if len(text) > _LONGEST:
        return None
    terms: list[Term] = []
    units: list[Unit | None] = []
    for part in _SEPARATOR.split(text):
        minutes = _MINUTES.fullmatch(part.strip())
        value, unit = (minutes.expand(r"\1+\2/60"), _UNITS["°"]) if minutes else _split_unit(part.strip())
        term = _Reader(value).read()
        if term is None or math.isnan(value_of(term)):
            return None
        terms.append(term)
        units.append(unit)
    # `4 or 6cm`: the unit is that of all.
    given = {unit for unit in units if unit is not None}
    return Gold(tuple(terms), given.pop() if given else None) if len(given) <= 1 else None


def value_of(term: Term) -> float:
    """The term as a float; NaN where it has none (a division by zero, a root of a negative number)."""
    match term:
        case Number(digits):
            return float(digits)
        case Pi():
            return math.pi
        case Root(of):
            inner = value_of(of)
            return math.sqrt(inner) if inner >= 0 else math.nan
        case Ratio(top, bottom):
            divisor = value_of(bottom)
            return value_of(top) / divisor if divisor else math.nan
        case Product(factors):
            return math.prod(map(value_of, factors))
        case Sum(terms):
            return math.fsum(sign * value_of(each) for sign, each in terms)


def exact(term: Term) -> Fraction | None:
    """The term as a fraction, None if roots or π are in it."""
    match term:
        case Number(digits):
            return Fraction(digits)
        case Pi() | Root():
            return None
        case Ratio(top, bottom):
            above, below = exact(top), exact(bottom)
            return None if above is None or not below else above / below
        case Product(factors):
            values = [exact(factor) for factor in factors]
            return None if None in values else math.prod((value for value in values if value is not None), start=Fraction(1))
        case Sum(terms):
            parts = [(sign, exact(each)) for sign, each in terms]
            return (
                None
                if any(part is None for _, part in parts)
                else sum((sign * part for sign, part in parts if part is not None), Fraction())
            )


def is_finite_decimal(term: Term) -> bool:
    """Whether the term's decimal form ends."""
    fraction = exact(term)
    if fraction is None:
        return False
    rest = fraction.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def plain(term: Term, *, gap: str = "", root: str = "√", pi: str = "π", times: str = "") -> str:
    """The term on one line, as `3√5/2`; with `root="sqrt"` and `times="*"`, as `3*sqrt(5)/2`."""

    def write(each: Term) -> str:
        match each:
            case Number(digits):
                return digits
            case Pi():
                return pi
            case Root(Number(digits)) if root == "√":
                return f"√{gap}{digits}"
            case Root(of):
                return f"{root}({write(of)})"
            case Ratio(top, bottom):
                return f"{grouped(top, Sum)}{gap}/{gap}{grouped(bottom, Sum, Product, Ratio)}"
            case Product(factors):
                return f"{gap}{times}{gap if times else ''}".join(grouped(factor, Sum, Ratio) for factor in factors)
            case Sum(terms):
                signed = "".join(f"{gap}{'-' if sign < 0 else '+'}{gap}{grouped(part, Sum)}" for sign, part in terms).strip()
                return signed.removeprefix("+").strip()

    def grouped(each: Term, *kinds: type) -> str:
        return f"({write(each)})" if isinstance(each, kinds) else write(each)

    return write(term)


def latex(term: Term, *, fraction: str = r"\frac") -> str:
    r"""The term in LaTeX, as `\frac{3\sqrt{5}}{2}`."""

    def write(each: Term) -> str:
        match each:
            case Number(digits):
                return digits
            case Pi():
                return r"\pi"
            case Root(of):
                return rf"\sqrt{{{write(of)}}}"
            case Ratio(top, bottom):
                return rf"{fraction}{{{write(top)}}}{{{write(bottom)}}}"
            case Product(factors):
                return "".join(f"({write(factor)})" if isinstance(factor, Sum) else write(factor) for factor in factors)
            case Sum(terms):
                return "".join(("-" if sign < 0 else "+") + write(part) for sign, part in terms).removeprefix("+")

    return write(term)


def forms(gold: str) -> Iterator[tuple[str, str]]:
    """Write a gold in the forms a model may answer with; every one is right.

    Yields:
        Name of the form and the answer.
    """
    yield "as it stands", gold
    yield "spaces around it", f"  {gold}\n"
    read = read_gold(gold)
    if read is None:
        return
    if len(read.terms) > 1:
        yield from _list_forms(read)
    else:
        yield from _single_forms(read.terms[0], read.unit)


def _list_forms(gold: Gold) -> Iterator[tuple[str, str]]:
    short = gold.unit.short if gold.unit else ""
    answers = [plain(term) + short for term in gold.terms]
    yield "joined by or", " or ".join(answers)
    yield "in reverse", ", ".join(reversed(answers))
    yield "Chinese list", "、".join(answers)
    yield "without unit", " or ".join(plain(term) for term in gold.terms)


def _single_forms(term: Term, unit: Unit | None) -> Iterator[tuple[str, str]]:
    bare = f"({plain(term)})" if unit and isinstance(term, Sum) else plain(term)
    formula = f"({latex(term)})" if unit and isinstance(term, Sum) else latex(term)
    spaced = f"({plain(term, gap=' ')})" if unit and isinstance(term, Sum) else plain(term, gap=" ")
    short, word, chinese, sign = (unit.short, f" {unit.word}", unit.chinese, unit.latex) if unit else ("", "", "", "")
    yield "on one line", bare + short
    yield "inner spaces", f"{spaced} {short}"
    yield "sentence", f"The answer is {bare}{word}."
    yield "Chinese sentence", f"答案是{bare}{chinese}。"
    yield "equation", f"x = {bare}{short}"
    yield "functions", plain(term, root="sqrt", pi="pi", times="*") + word if not unit or not isinstance(term, Sum) else bare + word
    yield "LaTeX", f"${formula}{sign}$"
    yield "LaTeX in brackets", rf"\({latex(term, fraction=chr(92) + 'dfrac')}\){word}"
    yield "boxed", rf"\boxed{{{formula}{sign}}}"
    yield "full-width digits", (bare + short).translate(_FULL_WIDTH)
    yield "without unit", plain(term)
    if unit is None:
        yield "with a unit", f"{f'({bare})' if isinstance(term, Sum) else bare} cm"
    value, fraction = value_of(term), exact(term)
    if fraction is not None and is_finite_decimal(term):
        yield "decimal", _decimal(fraction) + short
        if short in _SMALLER:
            smaller, times = _SMALLER[short]
            yield "converted", f"{_decimal(fraction * times)} {smaller}"
    elif abs(value) >= 0.1:
        yield "rounded", f"{value:.4f}{short}"


def contradictions(gold: str) -> Iterator[tuple[str, str]]:
    """Write a gold with units that contradict its own; every one is wrong. A gold without a unit has none.

    Yields:
        Name of the form and the answer.
    """
    read = read_gold(gold)
    if read is None or read.unit is None or len(read.terms) > 1:
        return
    value = f"({plain(read.terms[0])})"
    for unit in ("cm", "cm²", "°", "s"):
        if _UNITS[unit].dimension != read.unit.dimension:
            yield f"in {_UNITS[unit].word}", f"{value} {unit}"


_SMALLER = {"cm": ("mm", 10), "m": ("cm", 100), "km": ("m", 1000), "m²": ("cm²", 10_000)}
_FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")


def _decimal(value: Fraction) -> str:
    """A fraction whose decimal form ends, with at least one decimal."""
    digits = 1
    while (value * 10**digits).denominator != 1:
        digits += 1
    scaled = f"{abs(value.numerator * 10**digits // value.denominator):0{digits + 1}d}"
    return f"{'-' if value < 0 else ''}{scaled[:-digits]}.{scaled[-digits:]}"


def _split_unit(text: str) -> tuple[str, Unit | None]:
    for suffix in _SUFFIXES:
        if text.endswith(suffix) and len(text) > len(suffix):
            return text.removesuffix(suffix).strip(), _UNITS[suffix]
    return text, None


class _Reader:
    """Recursive descent over a short gold: sum, product, factor."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        self.position = 0
        end = 0
        while end < len(text):
            token = _TOKEN.match(text, end)
            if token is None:
                self.tokens = []
                break
            self.tokens.append(token[1])
            end = token.end()

    def read(self) -> Term | None:
        """The whole text as a term, None if it is not one."""
        try:
            term = self._sum()
        except _NotATermError:
            return None
        return term if self.position == len(self.tokens) else None

    def _next(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _take(self, *wanted: str) -> bool:
        if self._next() in wanted and self._next():
            self.position += 1
            return True
        return False

    def _inside(self, opening: str, closing: str) -> Term:
        if not self._take(opening):
            raise _NotATermError
        term = self._sum()
        if not self._take(closing):
            raise _NotATermError
        return term

    def _sum(self) -> Term:
        terms: list[tuple[int, Term]] = [(-1 if self._take("-") else 1, self._product())]
        while self._next() in ("+", "-"):
            sign = -1 if self._next() == "-" else 1
            self.position += 1
            terms.append((sign, self._product()))
        return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else Sum(tuple(terms))

    def _product(self) -> Term:
        factors = [self._factor()]
        while self._next() not in ("", "+", "-", ")", "}"):
            if self._take("/"):
                factors = [Ratio(factors[0] if len(factors) == 1 else Product(tuple(factors)), self._factor())]
                continue
            before = self._take("*")
            if not before and isinstance(factors[-1], Number) and self._next()[0].isdigit():
                raise _NotATermError  # `1 400` is no product
            factors.append(self._factor())
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def _factor(self) -> Term:
        if self._next() == "(":
            return self._inside("(", ")")
        if self._take("π", "pi", r"\pi"):
            return Pi()
        if self._take(r"\frac", r"\dfrac"):
            return Ratio(self._inside("{", "}"), self._inside("{", "}"))
        if self._take("√", "sqrt", r"\sqrt"):
            if self._next() in ("(", "{"):
                return Root(self._inside("(", ")") if self._next() == "(" else self._inside("{", "}"))
            return Root(self._number())
        return self._number()

    def _number(self) -> Number:
        token = self._next()
        if not token[:1].isdigit():
            raise _NotATermError
        self.position += 1
        return Number(token)


class _NotATermError(Exception):
    """The text is no term; never leaves this module."""
