"""Tokens to runs: prose is dropped, and what stands between it gets its meaning as symbols of mathematics.

Here a word becomes a unit, a function, a name or prose, by what it is and by what stands before it. This module must not know the
notation within a run (`expressions`) or which run counts (`answers`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mr1_bench.expressions import Symbol
from mr1_bench.lexing import Token, chinese_number
from mr1_bench.quantities import FUNCTIONS
from mr1_bench.units import DEGREE, Unit, other_measure, power, product, unit_of_word


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
NUMBER_WORDS = frozenset(_NUMBER_WORDS)
"""English words for numbers, in lower case."""

_ARC_SIGNS: dict[str, Unit] = {"'": (("arcmin", 1),), "''": (("arcsec", 1),), '"': (("arcsec", 1),)}
# What may stand between a number and the end of a statement without naming a measure.
_NO_MEASURE_WORDS = (
    "is are was were be been being has have had can could will would should must may might since because so as by from with"
    " without for if when where while which that this these those it its the an to of on at in into onto per thus hence"
    " therefore then here there we you respectively answer answers value values result only total exactly too also again"
    " instead overall away apart long wide high tall deep each both correct right true final ok okay yes indeed given using"
    " but whose who what about around such after before angle angles side sides length radius area degrees"
)
_NO_MEASURES = frozenset(_NO_MEASURE_WORDS.split())
_NO_CHINESE_MEASURES = (
    "个只件块辆种项样台架条艘张是为即故所因则且吗呢吧啊哦呀了的等左整正对答选符时成立而也都这那其此由根说可得就题名位道次组处点边角长宽高"
)
_CHINESE_POWERS = {"平方": 2, "立方": 3}
_CLOSING_KINDS = frozenset({"STOP", "SEP", "CLOSE", "PRIME", "QUOTE", "EQ"})
# Before these a measure is part of a formula of units, which the notation then refuses.
_CLOSING_SIGNS = _LIST_WORDS | frozenset("/^·*")
_MAX_MEASURE_WORDS = 3
_CHINESE_COUNT = re.compile(
    "(?<![零一二两三四五六七八九十百千万亿点])([零一二两三四五六七八九]?十[一二三四五六七八九]?|[零一二两三四五六七八九])(?=[个只件块辆种项样台架条艘张]|$)"
)


def write_chinese_counts(text: str) -> str:
    """The text with its Chinese number words before a measure word (`四个`), or alone, written in digits; up to 99."""
    return _CHINESE_COUNT.sub(lambda match: f" {chinese_number(match.group(1))} ", text)


def split_runs(tokens: Sequence[Token], counting: bool, nouns: bool = False) -> list[Run]:
    """Runs of mathematics in order.

    Args:
        tokens: a whole text.
        counting: also take number words for numbers.
        nouns: what is counted may follow a number (`4 cubes`); else a noun there names a measure.
    """
    runs: list[Run] = []
    quotes: set[str] = set()
    symbols: list[Symbol] = []
    listed, before, index = False, "", 0
    while index < len(tokens):
        token = tokens[index]
        symbol, length = _symbol(tokens, index, symbols, counting)
        if symbol is None and not nouns and token.kind in ("WORD", "PROSE") and symbols and symbols[-1].kind in _VALUE_ENDS:
            symbol, length = _measure(tokens, index)
        elif token.kind in ("PRIME", "QUOTE"):
            symbol = _mark(token, symbols, quotes)
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
        ones = tokens[index + 1].text.lower() if counting and text.lower() in _TENS.split() and index + 1 < len(tokens) else ""
        if 0 < _NUMBER_WORDS.get(ones, 0) < 10:
            return Symbol("NUM", str(_NUMBER_WORDS[text.lower()] + _NUMBER_WORDS[ones]), False), 2
        return _word(tokens, index, after_value, counting), 1
    return Symbol(kind, text, glued), 1


def _mark(token: Token, run: Sequence[Symbol], quotes: set[str]) -> Symbol:
    """Minutes or seconds of arc where a prime or quote closes up to a number and no quotation is open, else the mark itself."""
    unit = _ARC_SIGNS.get(token.text)
    if token.text in quotes:
        quotes.discard(token.text)
    elif unit is not None and token.glued and run and run[-1].kind in _VALUE_ENDS:
        return Symbol("UNIT", token.text, True, unit)
    elif not (run and run[-1].kind in ("UNIT", "NAME")):
        quotes.add(token.text)
    return Symbol(token.kind, token.text, token.glued)


def _measure(tokens: Sequence[Token], index: int) -> tuple[Symbol | None, int]:
    """A measure outside the table of units, and its length in tokens.

    Such are one to three words (or one or two Chinese signs) between a number and the end of its statement, unless the first is one of
    the words that name nothing (`is`, `since`, `long`): `5 acres`, `5 light years`, but not `140 by alternate angles`.
    """
    first = tokens[index]
    chinese = first.kind == "PROSE"
    limit = 2 if chinese else _MAX_MEASURE_WORDS
    end = index
    while end < len(tokens) and tokens[end].kind == first.kind and tokens[end].text.lower() not in _LIST_WORDS:
        if end - index == limit or (chinese and not "\u4e00" <= tokens[end].text <= "\u9fff"):
            return None, 1
        end += 1
    closed = end == len(tokens) or tokens[end].kind in _CLOSING_KINDS or tokens[end].text.lower() in _CLOSING_SIGNS
    lower = first.text.lower()
    named = first.text not in _NO_CHINESE_MEASURES if chinese else lower not in _NO_MEASURES and not lower.endswith("ly")
    if not closed or not named or lower in _LIST_WORDS or lower in FUNCTIONS or (len(lower) == 1 and not chinese):
        return None, 1
    words = ("" if chinese else " ").join(token.text.lower() for token in tokens[index:end])
    return Symbol("UNIT", words, first.glued, other_measure(words)), end - index


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
    exponent = {"square": 2, "sq": 2, "cubic": 3, "linear": 1}.get(words[0])
    if words[0] in _CHINESE_POWERS and tokens[index + 1 : index + 2] and tokens[index + 1].kind == "WORD" and unit_of_word(words[1]):
        exponent = _CHINESE_POWERS[words[0]]
    if exponent is not None:
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
    total = (exponent or 1) * written
    return power(unit, total), end


def _exponent(tokens: Sequence[Token], index: int) -> tuple[int, int]:
    """Exponent written after a unit, 1 where there is none, and the index after it."""
    texts = [token.text.lower() for token in tokens[index : index + 4]] + [""] * 4
    if texts[0] in ("squared", "cubed"):
        return (2 if texts[0] == "squared" else 3), index + 1
    if texts[0] in _CHINESE_POWERS:
        return _CHINESE_POWERS[texts[0]], index + 1
    if texts[0] in ("^", "**"):
        if texts[1] in ("2", "3"):
            return int(texts[1]), index + 2
        if texts[1] == "{" and texts[2] in ("2", "3") and texts[3] == "}":
            return int(texts[2]), index + 4
    return 1, index
