"""The gold audit: its own reader, a clean bill for the real golds, and graders whose faults it must find."""

import json
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mr1_bench import audit, cli
from mr1_bench.audit import audit_golds, differ
from mr1_bench.gold_forms import Number, Product, Root, contradictions, exact, forms, is_finite_decimal, latex, plain, read_gold, value_of
from mr1_bench.grading import grade
from mr1_bench.logs import LogError, read_golds
from mr1_bench.specs import get_spec

MATH, COUNT = get_spec("mr1_gr"), get_spec("mr1_vc")


@pytest.mark.parametrize(
    ("gold", "value", "unit"),
    [
        ("140°", 140, "°"),
        ("10√{2}", 10 * math.sqrt(2), None),
        (r"\frac{6}{5}√{10}", 1.2 * math.sqrt(10), None),
        (r"\frac{10√{3}}{3}m", 10 * math.sqrt(3) / 3, "m"),
        ("(√{3}+1)小时", math.sqrt(3) + 1, "h"),
        ("60√{3}+1", 60 * math.sqrt(3) + 1, None),
        ("16π平方米", 16 * math.pi, "m²"),
        ("5cm^2^", 5, "cm²"),
        ("-4+2*sqrt(6)", -4 + 2 * math.sqrt(6), None),
        ("3*pi/2", 1.5 * math.pi, None),
        ("25°39'", 25.65, "°"),
        ("30^°^", 30, "°"),
    ],
)
def test_its_reader_by_hand(gold, value, unit):
    read = read_gold(gold)
    assert value_of(read.terms[0]) == pytest.approx(value, rel=1e-12)
    assert (read.unit.short if read.unit else None) == unit


@pytest.mark.parametrize(
    "gold", ["", "yes", "无法确定", "l00°", "1 400", "2√", r"\frac{1}{0}", "√(1-2)", "tan(3)", "(((", "1+", "3°或4cm", "9" * 81]
)
def test_its_reader_never_guesses(gold):
    assert read_gold(gold) is None


def test_writing_by_hand():
    term = read_gold(r"\frac{3√{5}}{2}").terms[0]
    assert plain(term) == "3√5/2"
    assert plain(term, root="sqrt", times="*") == "3*sqrt(5)/2"
    assert latex(term) == r"\frac{3\sqrt{5}}{2}"
    assert dict(forms("1.5m"))["converted"] == "150.0 cm"
    assert dict(forms(r"\frac{13}{2}"))["decimal"] == "6.5"
    assert dict(forms("√{2}"))["rounded"] == "1.4142"
    assert dict(forms("30°或50°"))["in reverse"] == "50°, 30°"
    assert "with a unit" in dict(forms("5")) and "with a unit" not in dict(forms("5cm"))
    assert [answer for _, answer in contradictions("8cm")] == ["(8) cm²", "(8) °", "(8) s"]


@given(st.integers(1, 999), st.integers(2, 99))
def test_what_it_writes_it_reads_back(times, radicand):
    term = Product((Number(str(times)), Root(Number(str(radicand)))))
    for text in (plain(term), plain(term, root="sqrt", times="*"), latex(term)):
        assert value_of(read_gold(text).terms[0]) == pytest.approx(times * math.sqrt(radicand))
    assert exact(term) is None and not is_finite_decimal(term)


@given(st.text(alphabet="0123456789.√π{}()+-*/\\fracsqt°cm²^或 ", max_size=30))
@settings(max_examples=300)
def test_its_reader_never_raises(text):
    read = read_gold(text)
    assert read is None or all(math.isfinite(value_of(term)) or value_of(term) == math.inf for term in read.terms)


@pytest.mark.parametrize(
    ("answer", "gold", "wrong"),
    [
        ("140", "140°", False),
        ("140°", "140", False),
        ("140cm", "140°", True),
        ("8cm²", "8cm", True),
        ("80mm", "8cm", False),
        ("8mm", "8cm", True),
        ("10", "10√{2}", True),
        ("14.1", "10√{2}", False),  # rounded to three digits
        ("14", "10√{2}", True),
        ("14.2", "10√{2}", True),
        ("2.6", r"\frac{13}{5}", False),
        ("2.60", r"\frac{13}{5}", False),
        ("2.61", r"\frac{13}{5}", True),
        ("0.38", r"\frac{5}{13}", True),  # two digits
        ("0.385", r"\frac{5}{13}", False),
        ("50°或30°", "30°或50°", False),
        ("30°", "30°或50°", True),
    ],
)
def test_differ_by_hand(answer, gold, wrong):
    assert differ(read_gold(answer), read_gold(gold)) is wrong


def golds(real_data, name):
    return [json.loads(line)["ground_truth"] for line in (real_data / "r1v_prompts" / name).read_text().splitlines()]


@pytest.mark.parametrize("tagged", [True, False])
def test_all_real_golds_pass(real_data, tagged):
    geometry = audit_golds(replace(MATH, tagged=tagged), golds(real_data, "geoqa_test_prompts.jsonl"))
    assert (geometry.items, geometry.golds, geometry.unread, geometry.failures) == (754, 245, (), ())
    assert geometry.forms > 10 * 245 and geometry.wrong > 0.99 * 245 * 244
    counting = audit_golds(replace(COUNT, tagged=tagged), golds(real_data, "superclevr_test200_counting_problems.jsonl"))
    assert (counting.items, counting.golds, counting.wrong, counting.failures) == (200, 8, 56, ())


def test_golds_elsewhere_in_the_field_pass():
    report = audit_golds(MATH, ["30°或50°", "25°、155°", "4或6", "无法确定", "不存在", "30^°^", "l00°", "25°39'", "yes", "no"])
    assert report.failures == ()
    assert report.unread == ("无法确定", "不存在", "l00°", "yes", "no")


GOLDS = ["10√{2}", "10", "8cm", "80mm", "8cm²", "30°", "30cm", "2√{3}", "2", "3.46", "yes"]


def found_by(monkeypatch, mutate):
    """The failures that the audit finds in a grader that differs from ours."""
    monkeypatch.setattr(audit, "grade", lambda spec, gold, text: mutate(grade(spec, gold, text), gold, text))
    return {(failure.gold, failure.answer.strip(), failure.expected) for failure in audit_golds(MATH, GOLDS).failures}


def first_number(text):
    return re.search(r"\d+(\.\d+)?", text.rpartition("<answer>")[2])


def test_a_grader_that_reads_the_first_number_only_is_found(monkeypatch):
    def mutate(score, gold, text):
        mine, theirs = first_number(text), first_number(gold)
        return replace(score, correct=bool(mine and theirs and mine[0] == theirs[0]))

    found = found_by(monkeypatch, mutate)
    assert {("10√{2}", "10", False), ("2√{3}", "2", False), ("8cm", "8cm²", False), ("30°", "30cm", False)} <= found
    assert {("8cm", "80.0 mm", True), ("yes", "yes", True)} <= found


@pytest.mark.parametrize(
    ("mutate", "example"),
    [
        (lambda score, *_: replace(score, correct=True), ("10", "2", False)),
        (lambda score, *_: replace(score, correct=False), ("30°", "The answer is 30 degrees.", True)),
        (
            lambda score, gold, text: replace(score, correct=score.correct and r"\frac" not in text and "$" not in text),
            ("30°", r"$30^{\circ}$", True),
        ),
        (lambda score, gold, text: replace(score, correct=score.correct or "yes" in text), ("10", "yes", False)),
    ],
)
def test_broken_graders_are_found(monkeypatch, mutate, example):
    assert example in found_by(monkeypatch, mutate)


def test_our_grader_passes_the_same_golds():
    assert audit_golds(MATH, GOLDS).failures == ()


def test_many_golds_are_sampled_but_their_neighbours_are_tried(monkeypatch):
    monkeypatch.setattr(audit, "LARGEST", 40)
    tried = set()

    def watched(spec, gold, text):
        tried.add((gold, text.rpartition("<answer>")[2].removesuffix("</answer>")))
        return grade(spec, gold, text)

    monkeypatch.setattr(audit, "grade", watched)
    report = audit_golds(MATH, [str(number) for number in range(200)])
    assert report.failures == ()
    assert 200 * 20 < report.wrong < 200 * 50
    assert all((str(number), str(number + 1)) in tried for number in range(199))


def test_no_golds_raise():
    with pytest.raises(ValueError, match="no golds"):
        audit_golds(MATH, [])


def test_golds_of_a_file(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"problem": "?", "solution": "<answer> 8 </answer>"}\n{"question": "?", "answer": "2*sqrt(3)", "ground_truth": 5}\n')
    assert read_golds(path) == ("8", 5)
    path.write_text('{"question": "?"}\n')
    with pytest.raises(LogError, match=r"line 1: no gold: expected one of the keys ground_truth.*keys are question"):
        read_golds(path)


def run(capsys, *arguments):
    code = cli.main(["audit", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_command_on_a_file(capsys, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"ground_truth": gold}) + "\n" for gold in (4, 7, 4)))
    code, out, err = run(capsys, path, "--json")
    (report,) = json.loads(out)["golds"]
    assert (code, err, report["task"], report["items"], report["golds"], report["wrong"], report["failures"]) == (
        0,
        "",
        "mr1_vc",
        3,
        2,
        2,
        [],
    )
    assert json.loads(run(capsys, path, "--json", "--task", "mr1_gr")[1])["golds"][0]["task"] == "mr1_gr"
    code, out, _ = run(capsys, path)
    assert code == 0 and "3 golds, 2 of them distinct" in out and "Wrong verdicts: 0" in out


def test_command_fails_with_what_failed(capsys, tmp_path, monkeypatch):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"ground_truth": "10√{2}"}\n{"ground_truth": "10"}\n')
    monkeypatch.setattr(audit, "grade", lambda spec, gold, text: replace(grade(spec, gold, text), correct=True))
    code, out, _ = run(capsys, path)
    assert code == 1
    assert re.search(r"10√\{2\}\s+10\s+another gold\s+wrong\s+answered", out)


def test_command_on_an_embedded_task(capsys):
    code, out, _ = run(capsys, "mr1_vc_synth", "--json")
    assert (code, json.loads(out)["golds"][0]["items"]) == (0, 600)


def test_command_refusals(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MR1_DATA_DIR", str(tmp_path))
    for arguments, message in [
        (("nothing",), "'nothing' is neither a file nor a task"),
        (("mr1_gr",), "data build"),
        (("--train", "gr"), "give both --train and --test"),
        (("--train", "gr", "--test", "gr"), "is not built"),
        (("--train", tmp_path, "--test", tmp_path), "holds neither manifest.jsonl nor parquet"),
    ]:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "") and message in err


def folder(path, rows):
    from PIL import Image

    (path / "images").mkdir(parents=True)
    for number, (_, _, shade) in enumerate(rows):
        picture = Image.radial_gradient("L").rotate(shade, fillcolor=255).resize((120, 90))
        picture.paste(shade, (shade % 80, 10, shade % 80 + 30, 60))
        picture.save(path / "images" / f"{number}.png")
    lines = [{"question": q, "ground_truth": gold, "image": f"images/{n}.png"} for n, (q, gold, _) in enumerate(rows)]
    (path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_command_finds_a_test_item_in_the_training_set(capsys, tmp_path):
    question = "In triangle ABC angle A is 50 and angle B is 70, what is angle C ()"
    train = folder(tmp_path / "train", [(question, "60°", 40), ("How long is side DE of the drawn square DEFG?", "4", 200)])
    copy = folder(tmp_path / "copy", [(question, "60°", 40)])
    other = folder(tmp_path / "other", [("What is the area of the shaded ring?", "9π", 130)])
    code, out, _ = run(capsys, "--train", train, "--test", copy)
    assert code == 1 and re.search(r"duplicate\s+copy:\S+\s+train:", out)
    assert run(capsys, "--train", train, "--test", other)[0] == 0
    (entry, *_) = json.loads(run(capsys, "--train", train, "--test", copy, "--json")[1])["near_duplicates"]
    assert entry["kind"] == "duplicate"
    (train / "images" / "0.png").write_bytes(b"no picture")
    code, _, err = run(capsys, "--train", train, "--test", copy)
    assert code == 2 and "row 1: image" in err
