"""Answer text to values: the one reader that evaluation, reward, regrading and the gold audit share.

A text is cut into runs of mathematics separated by prose; each run states at most one chain of equalities, whose last member counts.
What is not clearly one value, or a list of values, is refused with a reason rather than guessed. This module must not know golds,
tasks or tags (`grading`), and the notation itself is the business of `lexing`, `runs` and `expressions`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from mr1_bench.expressions import Symbol, number_of, read_run
from mr1_bench.lexing import Token, cut, unify
from mr1_bench.quantities import Quantity, Reason, UnreadableError, equal, is_rounding, render, render_units
from mr1_bench.runs import NUMBER_WORDS, Run, split_runs, write_chinese_counts
from mr1_bench.units import DEGREE, unit_of_word

MAX_ANSWER_CHARS = 2000
"""Longest answer that is read, in characters; a longer one is no short answer and is unparseable."""

MAX_VALUES = 16
"""Most different values in one answer; more are unparseable."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text says.

    Attributes:
        quantities: the different values in order; several only where the text lists them; empty where it cannot be read.
        failure: why it cannot be read, else None.
    """

    quantities: tuple[Quantity, ...]
    failure: Reason | None = None

    @property
    def value(self) -> str | None:
        """Canonical spelling of the values without units, joined by a comma; None where there is none."""
        return ", ".join(render(quantity) for quantity in self.quantities) or None

    @property
    def unit(self) -> str | None:
        """Canonical spelling of the unit given, None where there is none."""
        return render_units(self.quantities)


_PLAIN = re.compile(r"(-?[0-9]{1,15}(?:\.[0-9]{1,15})?) ?(°)?\.?")
_BOXED = re.compile(r"\\f?box(?:ed)?\s*\{")
_NUMBERS = frozenset({"NUM", "PI"})
# Words that make another value of the number beside them.
_MODIFIER_WORDS = (
    "root times twice thrice half double triple squared cubed over plus minus multiplied divided negative not isn't than least most"
    " hundred thousand million dozen never cannot nor neither wrong incorrect false impossible doubled tripled quadrupled halved cent"
    " 不 非 倍 百 千 万 亿 负 之"
)
_MODIFIERS = frozenset(_MODIFIER_WORDS.split())
# Words that do so only right before a number, after `of`, or right after it.
_BEFORE_WORDS = (
    "under below above beneath beyond exceeding exceeds exceed within between less more fewer greater smaller larger up no"
    " almost nearly except without excluding"
)
_BEFORE = frozenset(_BEFORE_WORDS.split())
_OF_WORDS = (
    "square cube reciprocal inverse opposite complement supplement sine cosine tangent log logarithm factorial multiple"
    " fraction power instead sin cos tan third quarter fourth fifth sixth seventh eighth ninth tenth thirds quarters fourths"
    " fifths sixths sevenths eighths ninths tenths"
)
_OF = frozenset(_OF_WORDS.split())
_AFTER_WORDS = (
    "less more fewer greater smaller larger halves thirds quarters fourths fifths sixths sevenths eighths ninths tenths"
    " hundredths thousandths factorial third quarter fourth fifth sixth seventh eighth ninth tenth"
)
_AFTER = frozenset(_AFTER_WORDS.split())
_BETWEEN = frozenset({"than", "to", "or", "equal", "of", "by", "the", "about", "number"})
_CHINESE_MODIFIER = re.compile(
    r"的(?:[平立]方|倒数|相反数|绝对值|[补余]角)|方根|开方|次[方幂]|一半|的半(?!径)|错误|是错|介于"
    r"|(?:[加减乘除](?:以|去|上|掉)?|[大小多少高低]于(?:或?等于)?|至[少多]|最[少多](?:为|是)?|超过|接近|将近|几乎|没有|除了|零下|第)\s*(?=[-+0-9.√π\x01(])"
    r"|(?<=[0-9°])\s*(?:以[上下内外]|之间|多|余|[成折]|半(?!径))"
)
_NOTHING = frozenset({"none", "nothing", "noitems", "noobjects", "没有"})


def read_answer(text: str, *, counting: bool = False) -> Reading:
    """Read the values that a text states; never raises.

    Args:
        text: an answer without tags, or a gold.
        counting: also understand number words (`four items`, `四个`) and take capitals after a number for words.
    """
    plain = _PLAIN.fullmatch(text.strip())
    if plain:
        return Reading((_plain_quantity(plain),))
    return _read_any(text.strip(), counting)


def _plain_quantity(match: re.Match[str]) -> Quantity:
    """What the general reader would make of a plain numeral, several times faster: most answers are one."""
    numeral, degree = match.groups()
    whole, point, digits = numeral.partition(".")
    unit = DEGREE if degree else None
    if not point:
        return Quantity(float(numeral), Fraction(int(numeral)), unit)
    significant = len((whole.lstrip("-") + digits).lstrip("0"))
    return Quantity(float(numeral), Fraction(int(whole + digits), 10 ** len(digits)), unit, len(digits), significant, True)


def _read_any(text: str, counting: bool) -> Reading:
    if len(text) > MAX_ANSWER_CHARS:
        return Reading((), "bounds")
    if counting and compact(text) in _NOTHING:
        return Reading((number_of("0"),))
    reading = _read(text, counting)
    if len(reading.quantities) != 1:
        boxed = _boxed(text)
        if boxed is not None:
            return _read(boxed, counting)
    if reading.failure == "no_value" and not counting and len(text.split()) <= 3:
        return _read(text, True, nouns=False)
    return reading


def compact(text: str) -> str:
    """Normal form in which text answers are compared: NFKC, lower case, without white space, wrappers and end punctuation."""
    if len(text) > MAX_ANSWER_CHARS:
        text = text[:MAX_ANSWER_CHARS]
    plain = unicodedata.normalize("NFKC", re.sub(r"\\(?:text|mathrm|boxed|textbf|mathbf)\s*(?=\{)|[${}*`]|\\[()\[\]]", "", text)).casefold()
    plain = re.sub(r"^\s*(?:\(\s*[a-f]\s*\)|[a-f]\s*[.:、)])\s*(?=\S)", "", plain)
    return re.sub(r"\s+", "", plain).strip(".。,!?;:'\"、")


def _boxed(text: str) -> str | None:
    r"""Content of the only `\boxed{}`, None where there is none or there are several."""
    starts = list(_BOXED.finditer(text))
    if len(starts) != 1:
        return None
    depth, begin = 1, starts[0].end()
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[begin:index]
    return None


def _read(text: str, counting: bool, nouns: bool | None = None) -> Reading:
    if counting:
        text = write_chinese_counts(text)
    unified = unify(text)
    if len(unified) > 2 * MAX_ANSWER_CHARS:
        return Reading((), "bounds")
    tokens = cut(unified)
    try:
        quantities = _collect(split_runs(tokens, counting, counting if nouns is None else nouns), counting)
    except UnreadableError as error:
        return Reading((), error.reason)
    if quantities and (_is_modified(tokens) or (not unified.isascii() and _CHINESE_MODIFIER.search(unified))):
        return Reading((), "ambiguous")
    return Reading(quantities, None if quantities else "no_value")


def _is_modified(tokens: Sequence[Token]) -> bool:
    """Whether a word makes another value of a number, or denies it: `not 5`, `under 5`, `the square of 5`, `5 more`."""
    return any(_modifies(tokens, index) for index, token in enumerate(tokens) if token.kind in ("WORD", "PROSE"))


def _modifies(tokens: Sequence[Token], index: int) -> bool:
    word = tokens[index].text.lower()
    if word in ("squared", "cubed"):
        return index == 0 or unit_of_word(tokens[index - 1].text) is None
    if word in _MODIFIERS or word.endswith("n't"):
        return True
    if word in _BEFORE and _number_follows(tokens, index + 1):
        return True
    if word in _OF and any(each.text == "of" for each in tokens[index + 1 : index + 2]) and _number_follows(tokens, index + 2):
        return True
    return word in _AFTER and any(_is_number(each) for each in tokens[max(0, index - 2) : index])


def _number_follows(tokens: Sequence[Token], index: int) -> bool:
    for token in tokens[index : index + 4]:
        if token.text.lower() not in _BETWEEN and token.text not in ("-", "(", "{"):
            return _is_number(token)
    return False


def _is_number(token: Token) -> bool:
    return token.kind in ("NUM", "PI", "ROOT", "FRAC") or token.text.lower() in NUMBER_WORDS


def _collect(runs: Sequence[Run], counting: bool) -> tuple[Quantity, ...]:
    """Different values of all runs; several must be listed, not just mentioned."""
    found: list[Quantity] = []
    listed = False
    for run in runs:
        listed |= run.listed
        values = _statement(run, counting)
        for place, value in enumerate(values):
            twin = next((index for index, known in enumerate(found) if _restates(value, known)), None)
            if twin is not None:
                found[twin] = _better(found[twin], value)
            elif found and not listed and (place == 0 or all(symbol.kind != "PM" for symbol in run.symbols)):
                raise UnreadableError("ambiguous")
            elif len(found) == MAX_VALUES:
                raise UnreadableError("bounds")
            else:
                found.append(value)
        if values:
            listed = False
    unit = found[-1].unit if found else None
    if unit is not None and all(each.unit is None for each in found[:-1]):
        found = [replace(each, unit=unit) for each in found]
    return tuple(found)


def _restates(value: Quantity, known: Quantity) -> bool:
    """Whether two values are one, also as degrees beside the same angle in radians without a unit: `60° (π/3)`."""
    if equal(value, known) or equal(known, value):
        return True
    for degrees, radians in ((value, known), (known, value)):
        if degrees.unit == DEGREE and radians.unit is None and radians.exact is None:
            return math.isclose(math.radians(degrees.value), radians.value, rel_tol=1e-9)
    return False


def _better(known: Quantity, other: Quantity) -> Quantity:
    """The more exact of two equal values; a number keeps its own unit, and takes the other's only where it has none."""
    if (known.unit is None) != (other.unit is None) and not (equal(other, known) or equal(known, other)):
        return known if known.unit is not None else other
    best = other if known.places is not None and other.places is None else known
    return replace(best, unit=best.unit or known.unit or other.unit)


def _statement(run: Run, counting: bool) -> list[Quantity]:
    """Values that a run states: its only expression, or the last member of its chain of equalities."""
    symbols = run.symbols
    if not any(symbol.kind in _NUMBERS for symbol in symbols):
        return []
    if any(symbol.kind == "INEQ" for symbol in symbols):
        raise UnreadableError("relation")
    parts: list[list[Symbol]] = [[]]
    relation = ""
    for symbol in symbols:
        if symbol.kind in ("EQ", "APPROX"):
            parts.append([])
            relation = symbol.kind
        else:
            parts[-1].append(symbol)
    if len(parts) == 1:
        _check_opening(run)
    last = _strip(parts[-1])
    if len(parts) > 1 and last and all(symbol.kind == "NAME" for symbol in last):
        return _attempt(parts[-2], counting)
    if not any(symbol.kind in _NUMBERS for symbol in last):
        if len(last) > 1:
            raise UnreadableError("algebra")
        return []
    values = read_run(last, loose_names=counting)
    if relation == "APPROX" and len(values) == 1:
        # "2√3 ≈ 3.5" states the exact value; the decimal only illustrates it.
        before = _attempt(parts[-2], counting)
        if len(before) == 1 and before[0].exact is None and is_rounding(replace(values[0], places=values[0].places or 0), before[0]):
            return [replace(before[0], unit=before[0].unit or values[0].unit)]
    return values


def _attempt(part: Sequence[Symbol], counting: bool) -> list[Quantity]:
    try:
        return read_run(_strip(part), loose_names=counting)
    except UnreadableError:
        return []


def _check_opening(run: Run) -> None:
    """Refuse an operator that joins a word to the run (`length + 5`); `is -5` is a sign."""
    first = run.symbols[0]
    if first.kind != "OP":
        return
    # Chinese puts no space before a sign.
    apart = not first.glued or not run.before.isascii()
    sign = first.text == "-" and apart and len(run.symbols) > 1 and run.symbols[1].glued
    if run.before and not sign:
        raise UnreadableError("algebra")


def _strip(part: Sequence[Symbol]) -> list[Symbol]:
    """The part without brackets at its edges that have no partner in it, as in the halves of `(x = 5)`."""
    opened: list[int] = []
    alone: set[int] = set()
    for index, symbol in enumerate(part):
        if symbol.kind == "OPEN":
            opened.append(index)
        elif symbol.kind == "CLOSE":
            if opened:
                opened.pop()
            else:
                alone.add(index)
    alone.update(opened)
    begin, end = 0, len(part)
    while begin < end and begin in alone:
        begin += 1
    while end > begin and end - 1 in alone:
        end -= 1
    return list(part[begin:end])
