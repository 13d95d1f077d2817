"""The reader of answers: hand-worked values for every notation, and properties over generated text."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr1_bench.answers import MAX_ANSWER_CHARS, compact, read_answer
from mr1_bench.quantities import equal, from_float, from_fraction
from mr1_bench.units import conversion

ROOT2, ROOT3, ROOT5 = math.sqrt(2), math.sqrt(3), math.sqrt(5)

NUMBERS = [
    ("140", 140),
    ("-3", -3),
    ("−3", -3),
    ("+7", 7),
    ("2.50", 2.5),
    (".5", 0.5),
    ("1,234,567", 1234567),
    ("1,234.5", 1234.5),
    ("１，２００", 1200),
    ("１４０", 140),
    ("1.5e2", 150),
    ("5/13", 5 / 13),
    (r"\frac{5}{13}", 5 / 13),
    (r"\dfrac{5}{13}", 5 / 13),
    (r"\frac5{13}", 5 / 13),
    (r"\frac35", 0.6),
    ("frac{1.0}{3.0}", 1 / 3),
    (r"\frac{\frac{1}{2}}{3}", 1 / 6),
    (r"1\frac{1}{2}", 1.5),
    ("6 2/3", 20 / 3),
    ("-1 1/2", -1.5),
    ("2½", 2.5),
    ("√3", ROOT3),
    ("√{3}", ROOT3),
    ("√(3)", ROOT3),
    (r"\sqrt{3}", ROOT3),
    (r"\sqrt3", ROOT3),
    ("sqrt(3)", ROOT3),
    ("sqrt3", ROOT3),
    ("根号3", ROOT3),
    (r"\sqrt[3]{2}", 2 ** (1 / 3)),
    ("∛27", 3),
    ("2√3", 2 * ROOT3),
    ("10.0√2", 10 * ROOT2),
    ("3√2/2", 3 * ROOT2 / 2),
    (r"\frac{2√{5}}{5}", 2 * ROOT5 / 5),
    (r"\frac{2}{5}√{5}", 2 * ROOT5 / 5),
    ("2*sqrt(5)/5", 2 * ROOT5 / 5),
    ("(√5-1)/2", (ROOT5 - 1) / 2),
    (r"\left(\sqrt{5}-1\right)/2", (ROOT5 - 1) / 2),
    ("60√{3}+1", 60 * ROOT3 + 1),
    ("π", math.pi),
    (r"2\pi", 2 * math.pi),
    ("2pi", 2 * math.pi),
    ("1/6π", math.pi / 6),
    (r"\frac{1}{6}π", math.pi / 6),
    ("2^10", 1024),
    ("2^{-1}", 0.5),
    ("3²", 9),
    ("2**0.5", ROOT2),
    ("-2^2", -4),
    ("2^3^2", 512),
    ("2+3×4", 14),
    ("(2+3)·4", 20),
    ("12÷4", 3),
    (r"3 \times 4 \cdot 5", 60),
    ("2(3+1)", 8),
    ("25%", 0.25),
    (r"37.5\%", 0.375),
    ("sin 30°", 0.5),
    (r"10\tan 60^\circ", 10 * ROOT3),
    ("4*tan(37*pi/180)", 4 * math.tan(37 * math.pi / 180)),
]

QUANTITIES = [
    ("30°", 30, "deg"),
    (r"30^{\circ}", 30, "deg"),
    (r"30^\circ", 30, "deg"),
    ("30^°^", 30, "deg"),
    ("30º", 30, "deg"),
    ("50⁰", 50, "deg"),
    ("30 degrees", 30, "deg"),
    ("30 deg", 30, "deg"),
    ("30度", 30, "deg"),
    ("l00°", 100, "deg"),
    ("25°39'", 25.65, "deg"),
    ("25°39′", 25.65, "deg"),
    (r"25^{\circ}39^{\prime}", 25.65, "deg"),
    ("25°39'36\"", 25.66, "deg"),
    ("25度39分", 25.65, "deg"),
    ("25 degrees 39 minutes", 25.65, "deg"),
    ("8cm", 8, "cm"),
    (r"8\text{ cm}", 8, "cm"),
    (r"$8\mathrm{~cm}$", 8, "cm"),
    ("8 centimetres", 8, "cm"),
    ("8厘米", 8, "cm"),
    ("8 CM", 8, "cm"),
    ("8 (cm)", 8, "cm"),
    ("5cm^2^", 5, "cm^2"),
    ("5cm^{2}", 5, "cm^2"),
    ("5cm²", 5, "cm^2"),
    ("5 square cm", 5, "cm^2"),
    ("5 sq. cm", 5, "cm^2"),
    ("5 cm squared", 5, "cm^2"),
    ("5平方厘米", 5, "cm^2"),
    ("5m3", 5, "m^3"),
    ("16π平方米", 16 * math.pi, "m^2"),
    ("20√{2}海里", 20 * ROOT2, "nmi"),
    ("20 nautical miles", 20, "nmi"),
    ("3.6秒", 3.6, "s"),
    ("(√{3}+1)小时", ROOT3 + 1, "h"),
    ("1小时30分", 1.5, "h"),
    ("60 km/h", 60, "km/h"),
    ("3cm × 4cm", 12, "cm^2"),
    (r"\frac{10√{3}}{3}m", 10 * ROOT3 / 3, "m"),
    ("24/5 cm", 4.8, "cm"),
    ("180° - 40°", 140, "deg"),
]

SENTENCES = [
    ("D. 140°", 140),
    ("(D) 140°", 140),
    ("D) 140°", 140),
    ("D: 140°", 140),
    ("D、140°", 140),
    ("选D. 140°", 140),
    ("∠CED = 140°", 140),
    (r"\angle CED = 140^\circ", 140),
    ("∠1=∠2=140°", 140),
    ("∠1的度数为140°", 140),
    ("x=5", 5),
    ("x_1 = 5", 5),
    ("S_{△ABC} = 5 cm²", 5),
    ("2+3=5", 5),
    ("5 = x", 5),
    ("AB = √(3²+4²) = √25 = 5", 5),
    (r"\boxed{x = 5}", 5),
    (r"The area is \boxed{5} for 3 of them.", 5),
    ("The answer is 140 degrees.", 140),
    ("答案是140度。", 140),
    ("Final answer: **140**", 140),
    ("It is 5, so x = 5.", 5),
    ("2√3 (approximately 3.46)", 2 * ROOT3),
    ("2√3 ≈ 3.5", 2 * ROOT3),
    ("半径为5厘米", 5),
    ("The angle between AB and CD is 50°.", 50),
    ("is -5", -5),
    ("five", 5),
]

UNREADABLE = [
    ("1:4", "ratio"),
    ("√3:2", "ratio"),
    ("4.0 + PE + PF", "algebra"),
    ("AB - 5", "algebra"),
    ("2x+1", "algebra"),
    ("5 AB", "algebra"),
    ("2N3", "algebra"),
    ("k√3", "algebra"),
    ("2m+1", "algebra"),
    ("the length + 5", "algebra"),
    ("x > 5", "relation"),
    ("0{3}{5}", "malformed"),
    (r"\frac{4", "malformed"),
    (r"\foo 3", "malformed"),
    ("√(-1)", "malformed"),
    ("1/0", "malformed"),
    ("|-5|", "malformed"),
    ("5 +", "malformed"),
    ("5cm + 3°", "malformed"),
    ("triangle 1 has angle 50", "ambiguous"),
    ("AB = 10 when x = 5", "ambiguous"),
    ("square root of 3", "ambiguous"),
    ("not 5", "ambiguous"),
    ("3 4", "ambiguous"),
    ("9^9^9^9^9", "bounds"),
    ("1e999", "bounds"),
    ("7" * 61, "bounds"),
    ("(" * 40 + "1" + ")" * 40, "bounds"),
    ("1 " * MAX_ANSWER_CHARS, "bounds"),
    (" or ".join(map(str, range(40))), "bounds"),
    ("无法确定", "no_value"),
    ("yes", "no_value"),
    ("A", "no_value"),
    ("2x = ", "no_value"),
    ("", "no_value"),
]

LISTS = [
    ("30°或50°", [30, 50]),
    ("25°、155°", [25, 155]),
    ("4或6", [4, 6]),
    ("4 or 6", [4, 6]),
    ("1, 000", [1, 0]),
    ("1,2", [1, 2]),
    ("1,2345", [1, 2345]),
    ("4; 6", [4, 6]),
    ("x=4 or x=6", [4, 6]),
    ("The angle is 30° or 50°.", [30, 50]),
    (r"\{4, 6\}", [4, 6]),
    ("±5", [5, -5]),
    ("x = ±5", [5, -5]),
    ("30°, 30°", [30]),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_a_number_has_its_value_and_no_unit(text, value):
    (quantity,) = read_answer(text).quantities
    assert quantity.value == pytest.approx(value, rel=1e-12)
    assert quantity.unit is None


@pytest.mark.parametrize(("text", "value", "unit"), QUANTITIES)
def test_a_quantity_has_its_value_and_unit(text, value, unit):
    reading = read_answer(text)
    assert [each.value for each in reading.quantities] == [pytest.approx(value, rel=1e-12)]
    assert reading.unit == unit


@pytest.mark.parametrize(("text", "value"), SENTENCES)
def test_a_sentence_with_one_value_states_it(text, value):
    assert [each.value for each in read_answer(text).quantities] == [pytest.approx(value, rel=1e-12)]


@pytest.mark.parametrize(("text", "reason"), UNREADABLE)
def test_what_is_no_value_is_refused_with_its_reason(text, reason):
    reading = read_answer(text)
    assert (reading.quantities, reading.failure) == ((), reason)
    assert reading.value is None


@pytest.mark.parametrize(("text", "values"), LISTS)
def test_listed_values_are_all_read(text, values):
    assert [each.value for each in read_answer(text).quantities] == values


def test_a_list_shares_the_unit_at_its_end():
    assert [each.unit for each in read_answer("4 or 6 cm").quantities] == [(("cm", 1),)] * 2


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("four", 4),
        ("There are four red cubes.", 4),
        ("4 items", 4),
        ("twenty-one", 21),
        ("四个", 4),
        ("十二个", 12),
        ("2 SUV", 2),
        ("none", 0),
    ],
)
def test_counting_understands_words(text, number):
    assert [each.value for each in read_answer(text, counting=True).quantities] == [number]


@pytest.mark.parametrize(
    ("text", "spelled"),
    [("140°", "140"), ("2.40", "2.4"), ("12/5", "2.4"), ("10/26", "5/13"), ("2√3", "3.46410161514"), ("4或6", "4, 6"), ("-0.5", "-0.5")],
)
def test_canonical_spelling(text, spelled):
    assert read_answer(text).value == spelled


def test_only_a_lone_decimal_numeral_carries_its_digits():
    digits = {
        text: (read_answer(text).quantities[0].places, read_answer(text).quantities[0].significant) for text in ("3.460", "0.0346", "34.6%")
    }
    assert digits == {"3.460": (3, 4), "0.0346": (4, 3), "34.6%": (3, 3)}
    assert all(read_answer(text).quantities[0].places is None for text in ("346", "3.46*1", "√3.46", "25.5°30'"))


def test_text_is_compared_without_case_space_wrappers_and_end_punctuation():
    assert compact(" Yes. ") == compact(r"\text{YES}") == compact("$yes$") == "yes"
    assert compact("D. 无法确定。") == "无法确定"


# A value a + b·√c over d, or with π, in every notation that is promised: each must be read as that value.
@st.composite
def rendered_values(draw):
    a, b, c, d = draw(st.integers(-99, 999)), draw(st.integers(1, 99)), draw(st.integers(2, 99)), draw(st.integers(2, 60))
    root = draw(
        st.sampled_from(
            [f"√{c}", f"√{{{c}}}", f"√({c})", rf"\sqrt{{{c}}}", rf"\sqrt {c}", f"sqrt({c})", f"{c}^(1/2)", rf"{c}^{{\frac{{1}}{{2}}}}"]
        )
    )
    times = draw(st.sampled_from(["*", "×", "·", r"\times ", r" \cdot "]))
    if root[0] not in "0123456789" and draw(st.booleans()):
        times = ""
    pi = draw(st.sampled_from(["π", r"\pi", "pi", "*pi", " π"]))
    text, value, exact = draw(
        st.sampled_from(
            [
                (f"{a}", a, Fraction(a)),
                (f"{a}.0", a, Fraction(a)),
                (f"{a / 8:.3f}", a / 8, Fraction(a, 8)),
                (f"{a * 1000 + 1000000:,}", a * 1000 + 1000000, Fraction(a * 1000 + 1000000)),
                (f"{a}/{d}", a / d, Fraction(a, d)),
                (rf"\frac{{{a}}}{{{d}}}", a / d, Fraction(a, d)),
                (rf"\dfrac{{{a}}}{{{d}}}", a / d, Fraction(a, d)),
                (f"{b} {d - 1}/{d}", b + (d - 1) / d, Fraction(b * d + d - 1, d)),
                (rf"{b}\frac{{{d - 1}}}{{{d}}}", b + (d - 1) / d, Fraction(b * d + d - 1, d)),
                (f"{a}%", a / 100, Fraction(a, 100)),
                (f"{b}{times}{root}", b * math.sqrt(c), None),
                (f"{a}+{b}{times}{root}", a + b * math.sqrt(c), None),
                (f"({a} - {root})/{d}", (a - math.sqrt(c)) / d, None),
                (rf"\frac{{{a}+{b}{times}{root}}}{{{d}}}", (a + b * math.sqrt(c)) / d, None),
                (f"{b}{pi}", b * math.pi, None),
                (f"{b}{pi}/{d}", b * math.pi / d, None),
                (rf"\frac{{{b}}}{{{d}}}{pi}", b * math.pi / d, None),
            ]
        )
    )
    return text, value, exact


FRAMES = [
    "{}",
    " {} ",
    "{}.",
    "${}$",
    r"\({}\)",
    r"\boxed{{{}}}",
    "x = {}",
    "∠ABC = {}",
    "D. {}",
    "(B) {}",
    "The answer is {}.",
    "答案是{}。",
    "AB = CD = {}",
    "**{}**",
]
UNITS = [
    ("", None),
    ("°", "deg"),
    (r"^{\circ}", "deg"),
    (" degrees", "deg"),
    (" cm", "cm"),
    (r"\text{ cm}^2", "cm^2"),
    ("平方米", "m^2"),
    (" km", "km"),
]


@settings(max_examples=400, deadline=None)
@given(rendered_values(), st.sampled_from(FRAMES), st.sampled_from(UNITS))
def test_any_value_in_any_notation_reads_back(rendered, frame, unit):
    text, value, exact = rendered
    if text.endswith("%") and unit[1]:
        return
    written = frame.format(text + unit[0])
    reading = read_answer(written)
    assert len(reading.quantities) == 1, (written, reading)
    (quantity,) = reading.quantities
    assert quantity.value == pytest.approx(value, rel=1e-9, abs=1e-9), written
    assert reading.unit == unit[1]
    gold = from_fraction(exact) if exact is not None else from_float(value)
    assert equal(quantity, gold)
    assert not equal(quantity, from_fraction(Fraction(f"{value + abs(value) / 1000 + 0.01:.6f}")))


@settings(max_examples=200, deadline=None)
@given(st.decimals(-(10**12), 10**12, allow_nan=False, places=3), st.integers(0, 3), st.sampled_from(["", "°", " °"]))
def test_a_plain_numeral_reads_as_within_a_sentence(number, places, unit):
    text = f"{number:.{places}f}{unit}"
    (plain,), (stated,) = read_answer(text).quantities, read_answer(f"x = {text}").quantities
    assert plain == stated


PAIRS = [
    (left, right)
    for group in (
        ["°", "arcmin", "arcsec", "rad"],
        ["nm", "µm", "mm", "cm", "dm", "m", "hm", "km", "里", "丈", "尺", "寸", "海里", "inches", "ft", "yd", "miles"],
        ["mm²", "cm^2", "平方米", "km²", "公顷", "ha", "acres", "亩"],
        ["s", "min", "h", "days"],
        ["mg", "g", "kg", "吨"],
    )
    for left in group
    for right in group
    if left != right
]


@settings(max_examples=300, deadline=None)
@given(st.fractions(Fraction(1, 8), 900, max_denominator=8), st.sampled_from(PAIRS), st.sampled_from(["{} ({})", "{}, i.e. {}", "{} = {}"]))
def test_a_value_restated_in_another_unit_is_that_value(number, pair, frame):
    left, right = (read_answer(f"1 {unit}").quantities[0].unit for unit in pair)
    factor = conversion(left, right)
    stated = f"{number.numerator}/{number.denominator} {pair[0]}"
    restated = f"{(number * factor).numerator}/{(number * factor).denominator} {pair[1]}"
    (gold,), (quantity,) = read_answer(stated).quantities, read_answer(frame.format(stated, restated)).quantities
    assert equal(quantity, gold)
    assert quantity.unit in (left, right)
    assert quantity.value == pytest.approx(float(number if quantity.unit == left else number * factor))


PIECES = st.sampled_from(
    [
        *"0123456789.,:;=+-*/^()[]{}<>|!%°'\"√π±≈~$\\_&#@`\n\t \x00\x01\x02Aax中度或、",
        r"\frac",
        r"\sqrt",
        r"\boxed{",
        r"\text{",
        r"\left",
        "10",
        "1,000",
        "or",
        "cm",
        "cm^2",
        "sin",
        "twelve",
        "负",
        "二",
        "分之",
        "百",
        "又",
        "的",
        "里",
        "acres",
        "less",
        "twenty",
        "no",
        "square",
        "of",
        "平方米",
        "∠ABC",
        "\ud800",
        "²",
        "½",
        "e9",
        "^9",
        "\\",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=40).map("".join), st.text(st.characters(exclude_categories=()), max_size=80)), st.booleans())
def test_reading_never_raises(text, counting):
    reading = read_answer(text, counting=counting)
    assert bool(reading.quantities) != bool(reading.failure)
    assert all(math.isfinite(each.value) for each in reading.quantities)
    assert isinstance(compact(text), str)
