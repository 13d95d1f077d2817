"""Tokens to runs: prose is dropped, and what stands between it gets its meaning as symbols of mathematics.

Here a word becomes a unit, a function, a name or prose, by what it is and by what stands before it. This module must not know the
notation within a run (`expressions`) or which run counts (`answers`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mr1_bench.expressions import Symbol
from mr1_bench.lexing import Token
from mr1_bench.quantities import FUNCTIONS
from mr1_bench.units import DEGREE, Unit, power, product, unit_of_word


@dataclass(frozen=True, slots=True)
class Run:
    """Mathematics between prose.

    Attributes:
        symbols: its symbols.
        listed: whether a comma, `or` or the like stands between it and the run before.
        before: the word of prose directly before it, empty where there is none.
    """

    symbols: tuple[Symbol, ...]
    listed: bool
    before: str


_VALUE_ENDS = frozenset({"NUM", "PI", "CLOSE", "PCT"})
_LIST_WORDS = frozenset({"or", "and"})
_ROOT_WORDS = frozenset({"sqrt", "cbrt"})
_FACTOR_STARTS = frozenset({"NUM", "PI", "ROOT", "FRAC", "OPEN"})
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


def write_chinese_counts(text: str) -> str:
    """The text with its Chinese number words before a measure word (`四个`), or alone, written in digits; up to 99."""
    return _CHINESE_COUNT.sub(lambda match: f" {_chinese_number(match.group(1))} ", text)


def _chinese_number(text: str) -> int:
    tens, ten, ones = text.partition("十")
    if not ten:
        return _CHINESE_DIGITS[text]
    return 10 * (_CHINESE_DIGITS[tens] if tens else 1) + (_CHINESE_DIGITS[ones] if ones else 0)


def split_runs(tokens: Sequence[Token], counting: bool) -> list[Run]:
    """Runs of mathematics in order.

    Args:
        tokens: a whole text.
        counting: also take number words for numbers.
    """
    runs: list[Run] = []
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
                runs.append(Run(tuple(symbols), listed, before))
                symbols, listed = [], False
            listed |= token.kind == "SEP" or token.text == "\n" or token.text.lower() in _LIST_WORDS
            before = "" if token.kind in ("SEP", "STOP") else token.text
        index += length
    if symbols:
        runs.append(Run(tuple(symbols), listed, before))
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
