"""Answer text to tokens: spellings are unified first (LaTeX, full-width signs, superscripts), then cut by one regular expression.

Both steps are linear in the text. This module must not know what a token sequence means (`expressions`) or which value counts
(`answers`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mr1_bench.units import CJK_SPELLINGS


class Token(NamedTuple):
    """One piece of text.

    Attributes:
        kind: name of the group of `_TOKEN` that matched.
        text: the piece.
        glued: whether it follows the piece before it without white space.
    """

    kind: str
    text: str
    glued: bool


_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR = {"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5), "⅙": (1, 6)}

_CHARACTERS: dict[int, str] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_CHARACTERS |= {ord(sign): rf"\frac{{{top}}}{{{bottom}}}" for sign, (top, bottom) in _VULGAR.items()}
_CHARACTERS |= {
    ord(sign): replacement
    for signs, replacement in (
        ("，﹐", ", "),
        ("。．", ". "),
        ("﹔", ";"),
        ("∶﹕", ":"),
        ("−‒–﹣➖", "-"),
        ("×✕✖⨯", "×"),
        ("·⋅∙•●・", "·"),
        ("∕⁄", "/"),
        ("º˚ᵒ", "°"),
        ("′’‘´`", "'"),
        ("″“”", '"'),
        ("‰‱", "\x02"),
        ("㎜", "mm"),
        ("㎝", "cm"),
        ("㎞", "km"),
        ("㎡", "m^{2}"),
        ("㎠", "cm^{2}"),
        ("㎢", "km^{2}"),
        ("ᴨ兀𝜋𝝅𝛑", "π"),
        ("≒≃≅∼", "≈"),
        ("⩽≦", "≤"),
        ("⩾≧", "≥"),
        ("＊", "*"),
        ("【〔", "["),
        ("】〕", "]"),
        ("~\x00\u00a0\u2009\u202f\u3000$", " "),
        ("\u200b\u200c\u200d\ufeff", ""),
    )
    for sign in signs
}
_CHARACTERS[ord("．")] = "."

_SYMBOLS = {
    "times": "×",
    "cdot": "·",
    "ast": "*",
    "div": "÷",
    "pm": "±",
    "mp": "±",
    "pi": "π",
    "circ": "°",
    "degree": "°",
    "deg": "°",
    "degrees": "°",
    "textdegree": "°",
    "prime": "'",
    "angle": "∠",
    "measuredangle": "∠",
    "triangle": "△",
    "bigtriangleup": "△",
    "odot": "⊙",
    "approx": "≈",
    "simeq": "≈",
    "sim": "≈",
    "le": "≤",
    "leq": "≤",
    "ge": "≥",
    "geq": "≥",
    "lt": "<",
    "gt": ">",
    "ne": "≠",
    "neq": "≠",
    "sqrt": "√",
    "surd": "√",
    "lbrace": "(",
    "rbrace": ")",
    "infty": "∞",
    "percent": "%",
}
_FRACTIONS = frozenset({"frac", "dfrac", "tfrac", "cfrac"})
_TRIGONOMETRY = frozenset({"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "ln", "lg"})
_WRAPPERS = "text textbf textit textrm mathrm mathbf mathit mathsf mathnormal operatorname mbox hbox textnormal rm bf overline widehat"
_SPACING = frozenset(_WRAPPERS.split()) | frozenset(
    {"left", "right", "big", "Big", "bigg", "Bigg", "quad", "qquad", "displaystyle", "textstyle", "limits", "boxed", "fbox", "hline"}
)
_GREEK_NAMES = "alpha beta gamma delta theta phi varphi omega lambda mu rho sigma Delta Theta"
_CONNECTIVES = "therefore because Rightarrow rightarrow to implies iff Leftrightarrow parallel perp cong dots ldots cdots"
_GREEK = frozenset(_GREEK_NAMES.split())
_PROSE = frozenset(_CONNECTIVES.split())
_ESCAPES = {
    "{": "(",
    "}": ")",
    "%": "%",
    "$": " ",
    "\\": "\n",
    "(": " ",
    ")": " ",
    "[": " ",
    "]": " ",
    "!": "",
    "_": "_",
    "&": "&",
    "#": " ",
}

_TAG = re.compile(r"</?(?:answer|think|b|i|strong|em|p|br)\s*/?>|</?sup>")
_FULL_WIDTH_GROUP = re.compile(r"(?<=[0-9０-９])，(?=[0-9０-９]{3}(?![0-9０-９]))")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_WRAPPER = re.compile(r"\\(?:" + "|".join(_WRAPPERS.split()) + r")\s*\{([^{}]*)\}")
_THIN_GROUP = re.compile(r"(?<=[0-9])(?:\{,\}|\\,)(?=[0-9]{3}(?![0-9]))")
_BARE_FRACTION = re.compile(r"(\\[dtc]?frac)\s*([0-9])\s*([0-9])(?![0-9])")
_BARE_TOP = re.compile(r"(\\[dtc]?frac)\s*([0-9])\s*\{")
_LOST_FRACTION = re.compile(r"\x0crac(?=\s*\{)|(?<![A-Za-z\\])[dtc]?frac(?=\s*\{)")
_DEGREE_POWER = re.compile(r"\s*\^\s*(?:\{\s*[°oO]\s*\}|[°oO](?![A-Za-z]))\s*\^?")
_CLOSED_POWER = re.compile(r"\^\s*(\{[23]\}|[23])\s*\^(?!\s*[0-9({√])")
_PRIME_POWER = re.compile(r"\^\s*(?:\{\s*('+)\s*\}|('+))")
_GLUED_UNIT_POWER = re.compile(r"(?<=[0-9\s})π])(mm|cm|dm|km|m)([23])(?![A-Za-z0-9.])")
_SUBSCRIPT = re.compile(r"_\s*(?:\{[^{}]*\}|[A-Za-z0-9])|[₀-₉]+")
_BOLD = re.compile(r"(?<![A-Za-z0-9)}\]*])\*\*((?:[^*\n]|\*(?!\*))++)\*\*(?![0-9A-Za-z(*])")
_BULLET = re.compile(r"^[ \t]*\*[ \t]+", re.MULTILINE)
_ROUND_BULLET = re.compile(r"^[ \t]*[•●◦▪‣]+", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![A-Za-z0-9)}\]*])(?<![0-9)}\]] )(\*{1,3})(?![*\s])([^*\n]++)(?<!\s)\1(?![0-9A-Za-z(*])")
_UNDERLINE = re.compile(r"(?<![A-Za-z0-9_)}\]∠△])(_{1,3})(?![_\s{])([^_\n]++)(?<!\s)\1(?![A-Za-z0-9_{])")
_MICRO = re.compile("[µμ](?=m(?![A-Za-z]))")
_CHINESE_DIGITS = {sign: number for number, sign in enumerate("零一二三四五六七八九")} | {"两": 2}
_CHINESE_NUMBER = "[零一二两三四五六七八九]?十[一二三四五六七八九]?|[零一二两三四五六七八九](?![十百千万亿])"
_NUMERATOR = rf"(?:[0-9]*(?:√|根号)(?:\{{[0-9]+\}}|[0-9]+)|[0-9]+(?:\.[0-9]+)?|{_CHINESE_NUMBER})"
# "二又三分之一", "2分之√3", "百分之五十".
_CHINESE_FRACTION = re.compile(
    rf"(?<![0-9.√/^{{}}零一二两三四五六七八九十百千万亿])(?:([0-9]+|{_CHINESE_NUMBER})又)?"
    rf"(百|[0-9]+|{_CHINESE_NUMBER})分之({_NUMERATOR})(?![0-9.√π^零一二两三四五六七八九十百千万亿点]|根号)"
)
_MINUS_WORD = re.compile(r"(?<![-+−])负\s*(?=[0-9０-９.√π∛(（$\\]|根号)")
_CHINESE_MINUS_WORD = re.compile(rf"负({_CHINESE_NUMBER})(?![之又分点零一二两三四五六七八九十百千万亿])")
# Scanned books give a small L for the digit one before further digits: "l00°".
_SMALL_L = re.compile(r"(?<![A-Za-z0-9])l(?=[0-9]+\s*(?:°|$))")
_NEEDS_REWRITING = re.compile(r"[^0-9A-Za-z .,:=()+/°√π{}-]")


def unify(text: str) -> str:
    """Rewrite the many spellings of one thing (LaTeX, full-width, superscripts, Markdown) to one."""
    if _NEEDS_REWRITING.search(text) is None and "frac" not in text:
        return _finish(text)
    if not text.isascii():
        text = _rewrite_chinese(_MICRO.sub("u", _ROUND_BULLET.sub(" ", _FULL_WIDTH_GROUP.sub(",", text))))
    if "<" in text:
        text = _TAG.sub(lambda match: "^" if match.group() == "<sup>" else " ", text)
    text = _SUPERSCRIPT_RUN.sub(_rewrite_superscript, text)
    text = text.translate(_CHARACTERS)
    text = _LOST_FRACTION.sub(r"\\frac", text)
    if "\\" in text:
        text = _THIN_GROUP.sub("", text)
        text = _WRAPPER.sub(r" \1 ", text)
        text = _BARE_FRACTION.sub(r"\1{\2}{\3}", text)
        text = _BARE_TOP.sub(r"\1{\2}{", text)
        text = _COMMAND.sub(_rewrite_command, text)
    if "*" in text:
        text = _EMPHASIS.sub(r" \2 ", _BULLET.sub("", _BOLD.sub(r" \1 ", text)))
    if "^" in text:
        text = _CLOSED_POWER.sub(r"^\1 ", _PRIME_POWER.sub(r"\1\2", _DEGREE_POWER.sub("°", text)))
    if "_" in text:
        text = _UNDERLINE.sub(r" \2 ", text)
    text = _SUBSCRIPT.sub("", text)
    return _finish(text.replace("根号", "√"))


def _finish(text: str) -> str:
    if "m" in text:
        text = _GLUED_UNIT_POWER.sub(r"\1^\2", text)
    return _SMALL_L.sub("1", text) if "l" in text else text


def chinese_number(text: str) -> int:
    """Number that a Chinese numeral up to 99 spells."""
    tens, ten, ones = text.partition("十")
    if not ten:
        return _CHINESE_DIGITS[text]
    return 10 * (_CHINESE_DIGITS[tens] if tens else 1) + (_CHINESE_DIGITS[ones] if ones else 0)


def _rewrite_chinese(text: str) -> str:
    """Signs and fractions in Chinese words as signs of mathematics; a sign before a sign is left to be refused."""
    if "分之" in text:
        text = _CHINESE_FRACTION.sub(_rewrite_fraction, text)
    if "负" in text:
        text = _CHINESE_MINUS_WORD.sub(lambda match: f"负{chinese_number(match.group(1))}", text)
        text = _MINUS_WORD.sub("-", text)
    return text


def _rewrite_fraction(match: re.Match[str]) -> str:
    whole, bottom, top = (part if part is None or "√" in part or "根号" in part else _digits(part) for part in match.groups())
    if bottom == "百":
        return f"{top}%" if whole is None else "\x02"
    return rf"{whole or ''}\frac{{{top}}}{{{bottom}}}"


def _digits(numeral: str) -> str:
    return numeral if numeral == "百" or numeral[0].isascii() else str(chinese_number(numeral))


def _rewrite_superscript(match: re.Match[str]) -> str:
    run = match.group()
    # "50⁰" is a degree sign; a zeroth power is no answer.
    return "°" if run == "⁰" else "^{" + run.translate(_SUPERSCRIPTS) + "}"


def _rewrite_command(match: re.Match[str]) -> str:
    name = match.group(1)
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    if name in _FRACTIONS:
        return "\x01"
    if name in _TRIGONOMETRY:
        return f" {name}"
    if name in _SPACING:
        return " "
    if name in _GREEK:
        return "θ"
    if name in _PROSE:
        return "\n"
    if len(name) > 1:
        # `\pir` and `\sqrtx` are no commands; a command that is not known may change the value, so it must not be skipped.
        return "\x02"
    return _ESCAPES.get(name, " ")


_TOKEN = re.compile(
    r"""(?P<SPACE>[^\S\n\r]+)
    |(?P<NUM>[1-9][0-9]{0,2}(?:,[0-9]{3})++(?:\.[0-9]++)?(?!,?[0-9])
        |[0-9]++(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++(?![A-Za-z.]))?
        |(?<![0-9A-Za-z)\]}.])\.[0-9]++)
    |(?P<NAME>∠\s*(?:[A-Za-zα-ω]+[0-9]*'*|[0-9]{1,2}(?![0-9.]|\s*°))|[△⊙▱□]\s*[A-Za-z]+'*|[∠△⊙▱α-ορ-ωΑ-Ω])
    |(?P<IMAGINARY>I(?=\*)|(?<=\*)I(?![A-Za-z]))
    |(?P<WORD>[A-Za-z]{2,}(?:-[a-z]{2,}|'[a-z]+)*|[A-Za-z])
    |(?P<PI>π)|(?P<ROOT>[√∛∜])|(?P<FRAC>\x01)|(?P<DEG>°)|(?P<PCT>%)
    |(?P<SEP>或者?|以及|[和与及、;&,])
    |(?P<CJK>"""
    + "|".join(CJK_SPELLINGS)
    + r""")
    |(?P<EQ>=+)|(?P<APPROX>≈)|(?P<INEQ>[<>≤≥≠])
    |(?P<PM>±)|(?P<OP>\*\*|[-+*/×·÷^])
    |(?P<OPEN>[(\[{])|(?P<CLOSE>[)\]}])
    |(?P<COLON>:)|(?P<PRIME>'+)|(?P<QUOTE>")
    |(?P<BAD>[|∞\x02])
    |(?P<STOP>[.!?\n\r])
    |(?P<PROSE>.)
    """,
    re.VERBOSE | re.DOTALL,
)


def cut(text: str) -> list[Token]:
    """Tokens of a unified text."""
    tokens: list[Token] = []
    glued = False
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "PROSE"
        if kind == "SPACE":
            glued = False
            continue
        tokens.append(Token(kind, match.group(), glued))
        glued = True
    return tokens
