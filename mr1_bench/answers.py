"""Answer text to values: the one reader that evaluation, reward, regrading and the gold audit share.

A text is cut into runs of mathematics separated by prose; each run states at most one chain of equalities, whose last member counts.
What is not clearly one value, or a list of values, is refused with a reason rather than guessed. This module must not know golds,
tasks or tags (`grading`), and the notation itself is the business of `lexing` and `expressions`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from mr1_bench.expressions import Symbol, number_of, read_run
from mr1_bench.lexing import Token, cut, unify
from mr1_bench.quantities import FUNCTIONS, Quantity, Reason, UnreadableError, equal, is_rounding, render, render_units
from mr1_bench.units import DEGREE, Unit, power, product, unit_of_word

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


@dataclass(frozen=True, slots=True)
class _Run:
    """Mathematics between prose.

    Attributes:
        symbols: its symbols.
        listed: whether a comma, `or` or the like stands between it and the run before.
        before: the word of prose directly before it, empty where there is none.
    """

    symbols: tuple[Symbol, ...]
    listed: bool
    before: str


_PLAIN = re.compile(r"(-?[0-9]{1,15}(?:\.[0-9]{1,15})?) ?(°)?\.?")
_BOXED = re.compile(r"\\f?box(?:ed)?\s*\{")
_NUMBERS = frozenset({"NUM", "PI"})
_VALUE_ENDS = frozenset({"NUM", "PI", "CLOSE", "PCT"})
_LIST_WORDS = frozenset({"or", "and"})
_ROOT_WORDS = frozenset({"sqrt", "cbrt"})
_FACTOR_STARTS = frozenset({"NUM", "PI", "ROOT", "FRAC", "OPEN"})
# Words that make another value of the number beside them.
_MODIFIER_WORDS = (
    "root times twice thrice half double triple squared cubed over plus minus multiplied divided negative not isn't than least most"
    " hundred thousand million dozen 不 非 倍 百 万 亿"
)
_MODIFIERS = frozenset(_MODIFIER_WORDS.split())
_CARDINALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = {word: number for number, word in enumerate(_CARDINALS.split())}
_NUMBER_WORDS |= {word: 10 * number for number, word in enumerate(_TENS.split(), 2)}
_NUMBER_WORDS |= {
    f"{ten}-{word}": _NUMBER_WORDS[ten] + n for ten in ("twenty", "thirty", "forty") for word, n in _NUMBER_WORDS.items() if 0 < n < 10
}
_CHINESE_DIGITS = {sign: number for number, sign in enumerate("零一二三四五六七八九")} | {"两": 2}
_CHINESE_COUNT = re.compile(
    "(?<![零一二两三四五六七八九十])([零一二两三四五六七八九]?十[一二三四五六七八九]?|[零一二两三四五六七八九])(?=[个只件块辆种项样台架条艘张]|$)"
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
        return _read(text, True)
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


def _read(text: str, counting: bool) -> Reading:
    if counting:
        text = _CHINESE_COUNT.sub(lambda match: f" {_chinese_number(match.group(1))} ", text)
    unified = unify(text)
    if len(unified) > 2 * MAX_ANSWER_CHARS:
        return Reading((), "bounds")
    tokens = cut(unified)
    try:
        quantities = _collect(_split(tokens, counting), counting)
    except UnreadableError as error:
        return Reading((), error.reason)
    if quantities and any(
        token.text.lower() in _MODIFIERS for token in tokens if token.kind in ("WORD", "PROSE") and not _squares(token, tokens)
    ):
        return Reading((), "ambiguous")
    return Reading(quantities, None if quantities else "no_value")


def _squares(token: Token, tokens: Sequence[Token]) -> bool:
    """Whether the word belongs to a unit, as in `5 cm squared`."""
    if token.text.lower() not in ("squared", "cubed"):
        return False
    index = next(place for place, each in enumerate(tokens) if each is token)
    return index > 0 and unit_of_word(tokens[index - 1].text) is not None


def _chinese_number(text: str) -> int:
    tens, ten, ones = text.partition("十")
    if not ten:
        return _CHINESE_DIGITS[text]
    return 10 * (_CHINESE_DIGITS[tens] if tens else 1) + (_CHINESE_DIGITS[ones] if ones else 0)


def _collect(runs: Sequence[_Run], counting: bool) -> tuple[Quantity, ...]:
    """Different values of all runs; several must be listed, not just mentioned."""
    found: list[Quantity] = []
    listed = False
    for run in runs:
        listed |= run.listed
        values = _statement(run, counting)
        for place, value in enumerate(values):
            twin = next((index for index, known in enumerate(found) if equal(value, known) or equal(known, value)), None)
            if twin is not None:
                found[twin] = _better(found[twin], value)
            elif found and not listed and (place == 0 or run.symbols[0].kind != "PM"):
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


def _better(known: Quantity, other: Quantity) -> Quantity:
    """The more exact of two equal values, with the unit of either."""
    best = other if known.places is not None and other.places is None else known
    return replace(best, unit=known.unit or other.unit)


def _statement(run: _Run, counting: bool) -> list[Quantity]:
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


def _check_opening(run: _Run) -> None:
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


def _split(tokens: Sequence[Token], counting: bool) -> list[_Run]:
    """Runs of mathematics, the prose between them dropped."""
    runs: list[_Run] = []
    symbols: list[Symbol] = []
    listed, before, index = False, "", 0
    while index < len(tokens):
        token = tokens[index]
        symbol, length = _symbol(tokens, index, symbols, counting)
        if symbol is not None:
            if symbol.kind == "NAME" and token.kind == "NUM":
                symbols.pop()
            symbols.append(symbol)
        else:
            if symbols:
                runs.append(_Run(tuple(symbols), listed, before))
                symbols, listed = [], False
            listed |= token.kind == "SEP" or token.text == "\n" or token.text.lower() in _LIST_WORDS
            before = "" if token.kind in ("SEP", "STOP") else token.text
        index += length
    if symbols:
        runs.append(_Run(tuple(symbols), listed, before))
    return runs


def _symbol(tokens: Sequence[Token], index: int, run: Sequence[Symbol], counting: bool) -> tuple[Symbol | None, int]:
    """Meaning of the token at `index` after the run so far, None for prose, and how many tokens it takes."""
    token = tokens[index]
    kind, text, glued = token
    after_value = bool(run) and run[-1].kind in _VALUE_ENDS
    if kind in ("SEP", "STOP", "PROSE"):
        return None, 1
    if kind == "NUM":
        name = glued and bool(run) and run[-1].kind == "NAME"
        return (Symbol("NAME", run[-1].text + text, run[-1].glued) if name else Symbol("NUM", text, glued)), 1
    if kind == "DEG":
        return Symbol("UNIT", text, glued, DEGREE), 1
    if after_value:
        found = _unit(tokens, index + (kind == "OPEN"))
        if found is not None and kind in ("WORD", "CJK", "OPEN"):
            unit, end = found
            if kind != "OPEN":
                return Symbol("UNIT", text, glued, unit), end - index
            if end < len(tokens) and tokens[end].kind == "CLOSE":
                return Symbol("UNIT", text, glued, unit), end + 1 - index
    if kind == "CJK":
        return None, 1
    if kind == "WORD":
        return _word(tokens, index, after_value, counting), 1
    return Symbol(kind, text, glued), 1


def _word(tokens: Sequence[Token], index: int, after_value: bool, counting: bool) -> Symbol | None:
    """Meaning of a word that is no unit here: a function, π, a number word, a name, or None for prose."""
    _, text, glued = tokens[index]
    lower = text.lower()
    follower = tokens[index + 1].kind if index + 1 < len(tokens) else ""
    if lower == "pi":
        return Symbol("PI", text, glued)
    if (lower in FUNCTIONS or lower in _ROOT_WORDS) and (
        follower in _FACTOR_STARTS or (tokens[index + 1 : index + 2] and tokens[index + 1].text.lower() == "pi")
    ):
        return Symbol("FUNC", lower, glued)
    if counting and lower in _NUMBER_WORDS:
        return Symbol("NUM", str(_NUMBER_WORDS[lower]), False)
    if after_value and lower in ("percent", "percents"):
        return Symbol("PCT", text, glued)
    if lower in _LIST_WORDS or text == "a":
        return None
    if len(text) == 1 or (text.isupper() and len(text) <= 4) or (after_value and glued and len(text) <= 2):
        return Symbol("NAME", text, glued)
    return None


def _unit(tokens: Sequence[Token], index: int) -> tuple[Unit, int] | None:
    """Unit that starts at `index` and the index after it, such as `cm`, `square cm`, `cm^{2}`, `km/h`, `nautical miles`."""
    found = _simple_unit(tokens, index)
    if found is None:
        return None
    unit, end = found
    if end < len(tokens) and (tokens[end].text in ("/", "每") or tokens[end].text.lower() == "per"):
        below = _simple_unit(tokens, end + 1)
        quotient = product(unit, power(below[0], -1)) if below else None
        if below and quotient:
            return quotient, below[1]
    return unit, end


def _simple_unit(tokens: Sequence[Token], index: int) -> tuple[Unit, int] | None:
    words = [token.text.lower() if token.kind in ("WORD", "CJK") else "" for token in tokens[index : index + 2]]
    if not words or not words[0]:
        return None
    exponent = {"square": 2, "sq": 2, "cubic": 3}.get(words[0], 1)
    if exponent > 1:
        index += 2 if words[0] == "sq" and tokens[index + 1 : index + 2] and tokens[index + 1].text == "." else 1
    elif words[0] == "nautical" and words[1:] and words[1] in ("mile", "miles"):
        return (("nmi", 1),), index + 2
    if index >= len(tokens) or tokens[index].kind not in ("WORD", "CJK"):
        return None
    unit = unit_of_word(tokens[index].text)
    follower = tokens[index + 1].kind if index + 1 < len(tokens) else ""
    if unit is None or (tokens[index].text == "in" and follower in ("WORD", "CJK", "NUM", "PROSE")):
        return None
    written, end = _exponent(tokens, index + 1)
    total = exponent * written
    return power(unit, total), end


def _exponent(tokens: Sequence[Token], index: int) -> tuple[int, int]:
    """Exponent written after a unit, 1 where there is none, and the index after it."""
    texts = [token.text.lower() for token in tokens[index : index + 4]] + [""] * 4
    if texts[0] in ("squared", "cubed"):
        return (2 if texts[0] == "squared" else 3), index + 1
    if texts[0] in ("^", "**"):
        if texts[1] in ("2", "3"):
            return int(texts[1]), index + 2
        if texts[1] == "{" and texts[2] in ("2", "3") and texts[3] == "}":
            return int(texts[2]), index + 4
    return 1, index
