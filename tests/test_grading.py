"""The grader: the rule of correctness case by case, the judged disagreements with R1-V, hostile text, and the real logs."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mr1_bench
from mr1_bench.answers import read_answer
from mr1_bench.grading import Score, extract_answer, extract_direct_answer, grade, has_format
from mr1_bench.specs import UnknownTaskError, get_spec
from tests.timing import least_cpu_seconds

JUDGED = [
    json.loads(line)
    for line in (Path(__file__).parent / "fixtures" / "judged_disagreements.jsonl").read_text(encoding="utf-8").splitlines()
]
LOGS = {
    "counting_results_superclevr_200_qwen2vl_2b_instruct_legacy.json": ("mr1_vc", 200, 99, 96),
    "counting_results_superclevr_200_qwen2vl_2b_instruct_grpo100_legacy.json": ("mr1_vc", 200, 165, 165),
    "geoqa_test_qwen2vl_7b_instruct_legacy.json": ("mr1_gr", 754, 199, 231),
}


def tagged(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


RIGHT = [
    ("10√{2}", r"10\sqrt{2}"),
    ("10√{2}", "10.0√2"),
    ("10√{2}", "14.14"),
    ("10√{2}", "14.142136"),
    ("10√{2}", "1414.2%"),
    ("2√{3}", "√12"),
    ("2√{3}", "6/√3"),
    ("2√{3}", "≈3.46"),
    ("2√{3}", "2√3, which is about 3.46"),
    (r"\frac{5}{13}", "0.385"),
    (r"\frac{5}{13}", "38.5%"),
    (r"\frac{20}{3}", "6.67"),
    (r"\frac{12}{5}", "2.4"),
    ("60√{3}+1", "104.9"),
    ("60π", "188.496"),
    ("π", "3.14"),
    ("140°", "140"),
    ("140°", "140.0"),
    ("140", "140°"),
    ("3", "3 cm"),
    ("8cm", "80 mm"),
    ("8cm", "0.08米"),
    ("8cm", "8 units"),
    ("2√{3}m", "346.4 cm"),
    ("5cm^2^", "500 mm²"),
    ("1.5小时", "90分"),
    ("60°", "π/3 rad"),
    ("25°39'", "25.65°"),
    ("30^°^", "30"),
    ("l00°", "100°"),
    ("1/2", "50%"),
    ("30°或50°", "50°, 30°"),
    ("30°或50°", "30 or 50 degrees"),
    ("25°、155°", "155° and 25°"),
    ("4或6", "x=6 or x=4"),
    ("30°", "30°, 30°"),
    ("无法确定", "D. 无法确定。"),
    ("yes", "Yes"),
    ("1:4", "1 : 4"),
    ("5", "4.9999999"),
    ("\\frac{3}{5}", "0.6"),
    ("(√{3}+1)小时", "√3+1"),
    ("24cm", "0.24 m (24 cm)"),
    ("24cm", "0.24 m, i.e. 24 cm"),
    ("8cm", "8.0cm (80 mm)"),
    ("1.5小时", "1.5 h, 90 min"),
    ("-4", "答案是负4"),
    ("-4", "负四"),
    ("-√{3}", "负根号3"),
    (r"\frac{1}{2}", "二分之一"),
    (r"\frac{7}{3}", "二又三分之一"),
    (r"\frac{√{3}}{2}", "2分之√3"),
    ("50%", "百分之五十"),
    (r"-\frac{1}{2}", "负二分之一"),
    ("0.5°", "30'"),
    ("0.5°", "30′"),
    ("30°", "'30'"),
    ("30°", '"30"'),
    ("30°", "“30”"),
    ("30°", '"The answer is 30"'),
    ("25°39'", "25°39′0″"),
    ("50000平方米", "5公顷"),
    ("4cm²", "4平方cm"),
    ("4cm²", "4 cm平方"),
    ("4平方米", "4平方"),
    ("5000米", "5千米"),
    ("5", "5 apples"),
    ("5cm", "5 is the length"),
    ("5cm", "5, since AB = AC"),
    ("140°", "140 by alternate angles"),
    ("140°", "140 approximately"),
    ("140°", "140 angle"),
    ("7", "*7*"),
    ("7", "_7_"),
    ("7", "__7__"),
    ("7", "***7***"),
    ("7", "• 7"),
    ("24", "2 * 3 * 4"),
    ("120°", r"120\textdegree"),
    ("60°", "60° (π/3)"),
    ("60°", "π/3 (60°)"),
    ("1000", "1，000"),
]

WRONG = [
    ("10√{2}", "10"),
    ("10√{2}", "10.0"),
    ("9π", "9"),
    ("9π", "28.26"),
    ("2√3", "2"),
    ("2√3", "3.5"),
    ("2√3", "3.47"),
    ("2√3", "3"),
    ("60√{3}+1", "105"),
    ("1000000√{2}", "1414214"),
    ("1000000", "1000001"),
    (r"\frac{5}{13}", "0.38"),
    (r"\frac{5}{13}", "0.384"),
    (r"\frac{20}{3}", "6.66"),
    (r"\frac{1}{4}", "1:4"),
    (r"\frac{1}{8}", "0.13"),
    ("0.125", "0.13"),
    ("2.4", "2.40001"),
    ("140°", "140 cm"),
    ("140°", "140%"),
    ("8cm", "8 cm^2"),
    ("8cm", "8 m"),
    ("8cm", "8 square units"),
    ("8cm", "8 seconds"),
    ("5cm", "5 inches"),
    ("60°", "π/3"),
    ("60°", "1.047 rad"),
    ("5", "x=5, y=6"),
    ("5", "5 or 6"),
    ("30°或50°", "30°"),
    ("30°或50°", "30°, 50°, 70°"),
    ("30°或50°", "30 cm or 50 cm"),
    ("4", "4.0 + PE + PF"),
    ("5", "5x"),
    ("5", "not 5"),
    ("5", "±5"),
    ("5", "-5"),
    ("12", "1,2"),
    ("3", "square root of 3"),
    ("50", "triangle 1 has angle 50"),
    ("10√{3}", "10.0 * tan(60.0) ≈ 10.0 * 2.2460 ≈ 22.7 meters"),
    ("yes", "no"),
    ("无法确定", "5"),
    ("24m", "0.24 m (24 cm)"),
    ("80cm", "8.0cm (80 mm)"),
    ("90小时", "1.5 h, 90 min"),
    ("30小时", "0.5 h (30 min)"),
    *[("4", answer) for answer in ["负4", "答案是负4", "负四", "-负4", "负负4", "减4", "4的平方", "4的平方根", "4倍"]],
    *[("5", answer) for answer in ["5的一半", "5次方", "5千", "大于5", "小于5", "至少5", "第5", "5以上", "5的相反数"]],
    ("√{3}", "负√3"),
    ("1", "二分之一"),
    ("2", "三分之二"),
    ("1", "根号3分之1"),
    (r"\frac{1}{2}", "负二分之一"),
    ("16", "16的平方根"),
    ("4", "the square of 4"),
    ("3", "cube of 3"),
    ("3", "the reciprocal of 3"),
    *[("5", answer) for answer in ("under 5", "below 5", "up to 5", "cannot be 5", "can't be 5", "never 5", "5 is wrong", "5 doubled")],
    ("3 or 4", "between 3 and 4"),
    ("30°", "30′"),
    ("30°", "30'"),
    ("30°", '30"'),
    ("5平方米", "5公顷"),
    ("20海里", "20里"),
    *[("5cm", f"5{unit}") for unit in (" acres", "丈", "尺", " nm", " hm", " µm", " μm", "µm", r" \mu m", " kPa", "kPa", " ha", "帕")],
    *[("5cm", answer) for answer in ("5 light years", "5 furlongs", "five acres", "5 furlongs per fortnight")],
    ("4cm", "4平方cm"),
    ("62.83", "60° (π/3)"),
    *[("5cm", answer) for answer in ("5 kPa/s", "5 foo^2", "5 acres = x")],
    *[
        ("5", answer)
        for answer in ("5‰", "5 per cent", "5 factorial", "5 hundredths", "instead of 5", "almost 5", "接近5", "除了5", "零下5")
    ],
    ("1", "one third"),
    ("1", "one-third"),
    ("-3", "负三点五"),
    ("5", "三点五"),
]


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_right_answers(gold, answer):
    score = grade("mr1_gr", gold, tagged(answer))
    assert (score.correct, score.status, score.extracted) == (True, "answered", answer)


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_wrong_answers(gold, answer):
    assert not grade("mr1_gr", gold, tagged(answer)).correct


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        (4, "4", True),
        ("4", "four", True),
        (4, "4.0", True),
        (4, "4 items", True),
        (4, "There are four items in the image.", True),
        (8, "A. 8", True),
        (9, "2 + 7 = 9", True),
        ("<answer> 4 </answer>", "4", True),
        (0, "none", True),
        (4, "5", False),
        (4, "4 or 5", False),
        (4, "3 red and 4 blue", False),
        (4, "4.2", False),
        (4, "Q", False),
        (4, "-4", False),
        (21, "twenty one", True),
        (4, "There are no spheres, so 4.", True),
        (4, "负四", False),
        (-4, "负四", True),
        (3, "第三个", False),
        (5, "三点五个", False),
        (20, "一百二十个", False),
        (5, "5 less", False),
        (5, "five more", False),
        (1, "no one", False),
        (2, "two thirds", False),
    ],
)
def test_counting(gold, answer, correct):
    assert grade("mr1_vc", gold, tagged(answer)).correct is correct


def test_the_score_of_an_answer_holds_what_was_read():
    assert grade("mr1_gr", "8cm", "<think>a\nb</think>\n<answer> 80 mm </answer>") == Score(" 80 mm ", "80", "mm", True, True, "answered")
    assert grade("mr1_gr", "4或6", tagged("6、4")).value == "6, 4"
    assert grade("mr1_gr", "yes", tagged("Yes.")) == Score("Yes.", "yes", None, True, True, "answered")
    with pytest.raises(AttributeError):
        grade("mr1_gr", "5", tagged("5")).correct = False
    assert mr1_bench.grade is grade


def test_statuses():
    assert grade("mr1_gr", "5", "<think>5</think> 5") == Score(None, None, None, False, False, "no_answer")
    assert grade("mr1_gr", "5", "<answer>5") == Score(None, None, None, False, False, "no_answer")
    assert grade("mr1_gr", "5", tagged("x + y")) == Score("x + y", None, None, False, True, "unparseable")
    assert grade("mr1_gr", "5", tagged("")) == Score("", None, None, False, True, "unparseable")
    assert grade("mr1_gr_direct", "5", " \n") == Score(None, None, None, False, False, "no_answer")


@pytest.mark.parametrize("gold", ["", "  ", r"\frac{", "9^9^9^9^9", "nan", "None", "5 6", "?"])
def test_a_gold_that_cannot_be_read_is_no_wrong_answer(gold):
    assert grade("mr1_gr", gold, tagged(gold)).status == "bad_gold"
    assert not grade("mr1_gr", gold, tagged(gold)).correct


def test_a_count_that_is_no_number_is_a_bad_gold():
    assert grade("mr1_vc", "many", tagged("many")).status == "bad_gold"


def test_an_unknown_task_is_refused():
    with pytest.raises(UnknownTaskError, match="mr1_nothing"):
        grade("mr1_nothing", "5", "5")
    assert grade(get_spec("mr1_gr"), "5", tagged("5")).correct


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer>", "1"),
        ("<answer>1</answer><answer>2</answer>", "2"),
        ("<answer>1</answer><answer>2", "1"),
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer><answer>2</answer></answer>", "2"),
        ("<answer>1</answer></answer>", "1"),
        ("</answer><answer>", None),
        ("</answer>1<answer>", None),
        ("<answer>\n1\n</answer> so", "\n1\n"),
        ("1", None),
    ],
)
def test_the_last_closed_block_is_the_answer(text, answer):
    assert extract_answer(text) == answer


def test_a_direct_answer_is_the_whole_text_unless_tagged():
    assert extract_direct_answer(" 140°\n") == "140°"
    assert extract_direct_answer("x <answer>5</answer> 6") == "5"
    assert extract_direct_answer("<think>70</think>140") == "140"
    assert grade("mr1_gr_direct", "140°", "The answer is 140 degrees.").correct
    assert grade("mr1_gr_direct", "140°", "<answer>140").correct
    assert not grade("mr1_gr_direct", "140°", "Angle A is 40°. So angle B is 140°.").correct
    assert grade("mr1_vc_direct", 4, "There are four.").correct


TAGS = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "a", "5", "\u2003"])


@settings(max_examples=300, deadline=None)
@given(st.lists(TAGS, max_size=9).map("".join), st.booleans())
def test_the_format_is_that_of_r1v(text, framed):
    text = f"<think>{text}</answer>" if framed else text
    assert has_format(text) == (re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL) is not None)


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(exclude_categories=()), max_size=60),
    st.text(st.characters(exclude_categories=()), max_size=60),
    st.sampled_from(["mr1_gr", "mr1_vc", "mr1_gr_direct", "mr1_vc_direct"]),
)
def test_grading_never_raises(gold, answer, task):
    score = grade(task, gold, tagged(answer))
    assert score.status in ("answered", "no_answer", "unparseable", "bad_gold")
    assert not (score.correct and score.status != "answered")


HOSTILE = {
    "brackets": "(" * 100_000,
    "short brackets": "([{" * 600,
    "balanced brackets": "(" * 900 + "1" + ")" * 900,
    "power tower": "9^9^9^9^9",
    "high power tower": "^".join("9" * 900),
    "big product": "*".join(["9" * 50] * 35),
    "big power": "9" * 50 + "^60" * 30,
    "digits": "7" * 100_000,
    "thousands": "1" + ",000" * 480,
    "broken thousands": "1,000,00 " * 200,
    "answer opened": "<answer>" * 12_500,
    "answer closed": "</answer>" * 11_000,
    "answers": "<answer>1</answer>" * 10_000,
    "think opened": "<think>" * 15_000,
    "think closed": "<think>" + "</think>" * 12_500 + "</answer>",
    "format": "<think>" + "</think>" * 5000 + "<answer>" * 5000 + "</answer>",
    "format spaces": "<think></think>" + " " * 100_000 + "</answer>",
    "equals": "=" * 100_000,
    "equations": "1=" * 900,
    "fractions": r"\frac{" * 16_000,
    "short fractions": r"\frac{" * 300,
    "nested fractions": r"\frac{1}{" * 200 + "2" + "}" * 200,
    "roots": "√" * 100_000,
    "short roots": "√" * 1900 + "2",
    "signs": "-" * 1900 + "5",
    "text commands": r"\text{" * 300,
    "boxes": r"\boxed{" * 250,
    "superscripts": "²" * 1900,
    "vulgar fractions": "½" * 1900,
    "degrees": "1°" * 900,
    "minutes": "1°1'" * 480,
    "units": "5cm " * 480,
    "words": "squared " * 240,
    "list": " or ".join(map(str, range(290))),
    "surrogates": "\ud800" * 1900 + "5",
    "NUL": "\x00" * 100_000,
    "short NUL": "\x00" * 1900,
    "spaces": "1" + " " * 100_000 + "2",
    "bold": "**a" * 600,
    "subscripts": "_{" * 900,
    "backslashes": "\\" * 1900,
    "Chinese digits": "十" * 1900,
    "Chinese fractions": "二分之" * 600,
    "Chinese signs": "负" * 1900 + "5",
    "Chinese roots": "2分之√" * 450,
    "stars": "*a" * 900,
    "star pairs": "*a*" * 600,
    "underlines": "_a" * 900,
    "quotes": "5'" * 900,
    "measures": "5 light years " * 140,
    "modifiers": "less of " * 240 + "5",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_answered_in_time(name):
    text = HOSTILE[name]
    for task in ("mr1_gr", "mr1_gr_direct", "mr1_vc_direct"):
        for output in (text, f"<answer>{text}</answer>"):
            gold = "140°" if "gr" in task else "140"
            assert not grade(task, gold, output).correct
            taken = least_cpu_seconds(partial(grade, task, gold, output))
            assert taken < 0.05, f"{name} took {taken * 1000:.0f} ms"
    assert not grade("mr1_gr", text, tagged("140")).correct
    assert least_cpu_seconds(lambda: grade("mr1_gr", text, tagged("140"))) < 0.5


@pytest.mark.parametrize("row", JUDGED, ids=[f"{row['log'].split('_')[0]}-{row['index']}" for row in JUDGED])
def test_judged_disagreements_with_r1v(row):
    task = "mr1_vc" if row["log"].startswith("counting") else "mr1_gr"
    output = row["output_tail"] if row["answer"] is None else f"<answer>{row['answer']}</answer>"
    assert grade(task, row["gold"], output).correct is row["verdict"]


def test_judged_disagreements_are_all_the_disagreements(real_data):
    judged = {(row["log"], row["index"]) for row in JUDGED}
    seen = set()
    for name, (task, n, ours, r1v) in LOGS.items():
        rows = json.loads((real_data / "r1v_logs" / name).read_text(encoding="utf-8"))["results"]
        counted = task == "mr1_vc"
        texts = [row["model_output"] if isinstance(row["model_output"], str) else row["model_output"][0] for row in rows]
        scores = [grade(task, row["ground_truth"], text).correct for row, text in zip(rows, texts, strict=True)]
        published = [row["extracted_answer"] == row["ground_truth"] if counted else row["is_correct"] for row in rows]
        assert (len(rows), sum(scores), sum(published)) == (n, ours, r1v)
        seen |= {(name, index) for index, pair in enumerate(zip(scores, published, strict=True)) if pair[0] != pair[1]}
    assert seen == judged


def test_every_real_gold_is_its_own_answer(real_data):
    lines = (real_data / "r1v_prompts" / "geoqa_test_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["ground_truth"] for line in lines]
    assert len(golds) == 754
    frames = ("{}", " {} ", "${}$", r"\boxed{{{}}}", "The answer is {}.", "答案是{}", "x = {}", "D. {}")
    failed = [(gold, frame) for gold in set(golds) for frame in frames if not grade("mr1_gr", gold, tagged(frame.format(gold))).correct]
    assert failed == []


def test_sympy_golds_of_the_training_set_are_read(real_data):
    lines = (real_data / "geoqa_train1000" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["answer"] for line in lines]
    assert len(golds) == 1000
    unread = [gold for gold in golds if not (grade("mr1_gr", gold, tagged(gold)).correct and read_answer(gold).quantities)]
    # A real number by way of complex logarithms, which no answer is: refused as a bad gold, not taken for a text.
    assert unread == ["tan(I*(log(85)-log(-36+77*I))/2)"]
    assert grade("mr1_gr", unread[0], tagged("1")).status == "bad_gold"


def test_grading_the_real_log_is_fast(real_data):
    rows = json.loads((real_data / "r1v_logs" / "geoqa_test_qwen2vl_7b_instruct_legacy.json").read_text(encoding="utf-8"))["results"]
    pairs = [(row["ground_truth"], row["model_output"] if isinstance(row["model_output"], str) else row["model_output"][0]) for row in rows]
    taken = least_cpu_seconds(lambda: [grade("mr1_gr", gold, text) for gold, text in pairs])
    assert taken / len(pairs) < 300e-6
