"""Real output files of lmms-eval and VLMEvalKit (`fixtures/`) become evaluations; what cannot be matched is counted, never guessed."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from known import small_world

from eval import compare, report, rescore, run, run_folder, scored_answers, tables
from eval.external import current, matching
from eval.external import run as external_run
from eval.external.formats import lmms_eval, vlmevalkit
from eval.external.rows import Row, format_of, share
from eval.external.run import Source, described, score_external, untagged
from eval.results import find, read_records
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.runs import held
from fgrpo.schema import Config
from fgrpo.types import Sample

FIXTURES = Path(__file__).parent / "fixtures"
LMMS = FIXTURES / "20261129_samples_miniworld_cvb_2d.jsonl"
XLSX = FIXTURES / "mini_MiniWorldCVB_exact_matching_result.xlsx"
TSV, JSON = FIXTURES / "mini_MiniWorldCVB.tsv", FIXTURES / "mini_MiniWorldCVB.json"
IMAGES = FIXTURES / "LMUData_MiniWorldCVB.tsv"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature world whose questions the fixtures ask."""
    from miniworld.write.__main__ import write_world

    root = tmp_path_factory.mktemp("world10")
    sizes = ["world.train_per_source=1", "world.bench_per_benchmark=10"]
    write_world(load("smoke", "fgrpo", [f"data.root={root / 'data'}", *sizes]), root / "runs")
    return root / "data"


@pytest.fixture
def config(data: Path) -> Config:
    return small_world(data)


def account(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "external.json").read_text()))


def cells(folder: Path, benchmark: str) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())["greedy"]["benchmarks"][benchmark]
    return {metric: None if cell is None else round(cell["value"], 4) for metric, cell in summary.items()}


def test_lmms_eval_rows_are_scored_by_our_rules_and_judges(config: Config, tmp_path: Path) -> None:
    """The task's name names the benchmark; doc_id its row; the harness' own metric stays beside ours."""
    folder = score_external(Source((LMMS,), "theirs"), config, tmp_path)
    found = account(folder)
    assert (found["rows"], found["scored"], found["left_out"]) == (10, 10, {})
    assert found["found_by"] == {"row number": 10} and found["other_gold"] == []
    assert (found["accuracy"]["n"], found["accuracy"]["ours"], found["accuracy"]["theirs"]) == (10, 0.6, 0.6)
    scored = cells(folder, "cvb_2d")
    assert (scored["accuracy"], scored["inconsistency"], scored["no_trace"]) == (0.6, 0.1111, 0.1)
    assert 0 < scored["semantic_grounding"] < 1 and "spatial_grounding" not in scored
    rollout = next(read_jsonl(folder / "generations.jsonl"))
    assert rollout["text"].startswith("<think>")  # the reply before the harness took its reasoning away
    assert rollout["tokens"] == 21 and rollout["meta"]["key"] == "0"
    assert score_external(Source((LMMS,), "theirs"), config, tmp_path) == folder  # nothing left to do


@pytest.mark.parametrize("file", [XLSX, TSV, JSON])
def test_vlmevalkit_rows_by_the_benchmark_or_by_its_own_images(file: Path, config: Config, tmp_path: Path) -> None:
    ours = score_external(Source((file,), "by-benchmark", benchmark="cvb_2d", like="backbone-cot"), config, tmp_path)
    theirs = score_external(Source((file,), "by-file", images=IMAGES, like="backbone-cot"), config, tmp_path)
    same = cells(ours, "cvb_2d")
    assert cells(theirs, "LMUData_MiniWorldCVB") == same
    assert (same["accuracy"], same["inconsistency"], same["no_trace"]) == (0.7, 0.0, 0.1) and same[
        "spatial_grounding"
    ] > 0.3
    of_theirs = account(ours)["accuracy"]["theirs"]
    assert ("no comparison with their accuracy" in described(account(ours))) == (of_theirs is None)
    assert of_theirs == (0.0 if file == XLSX else None)  # only a result file has `hit`
    images = next(read_jsonl(theirs / "questions.jsonl"))["images"]
    assert all(Path(path).is_file() for path in images)


def test_it_is_an_evaluation_like_any_other(config: Config, tmp_path: Path) -> None:
    """Tables, report, comparison and another judge take it; the table of harnesses has both accuracies."""
    score_external(Source((LMMS,), "lm", title="Theirs"), config, tmp_path)
    score_external(Source((XLSX,), "vl", benchmark="cvb_2d"), config, tmp_path)
    assert list(find(config, tmp_path)) == ["lm", "vl"]
    _, everything, _ = tables.build(config, tmp_path)
    (harnesses,) = [t for t in everything if t.name == "other-harnesses"]
    assert harnesses.rows == (
        ("Theirs", "10", "10", "–", "10", "60.0", "60.0", "0"),
        ("vl", "10", "10", "–", "10", "70.0", "0.0", "7"),
    )
    page = report.write(config, tmp_path).read_text(encoding="utf-8")
    assert "Answers of other harnesses" in page and 'data-model="b"' in page
    paired, out = compare.write(["lm", "vl"], config, tmp_path)
    assert [t.name for t in paired] == ["lm-vs-vl-greedy"] and (out / "index.html").is_file()
    again = rescore.rescore(config, tmp_path / config.preset / "eval" / "lm", "oracle")
    assert len(read_records(again / "scores.jsonl")) == 10


@pytest.mark.parametrize("command", ["eval", "external"])
def test_a_summary_of_an_older_definition_is_computed_again(
    config: Config, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `make eval` does for our own models, from the scores alone: no judge is called and no file of the harness is read."""
    file = shutil.copy(LMMS, tmp_path / LMMS.name)
    folder = score_external(Source((Path(file),), "theirs", title="Theirs"), config, tmp_path)
    Path(file).unlink()
    before = json.loads((folder / "summary.json").read_text())
    scores = (folder / "scores.jsonl").read_bytes()
    monkeypatch.setattr(scored_answers.scoring, "score_file", lambda *_: pytest.fail("no answer is scored again"))
    sizes = ("world.train_per_source=1", "world.bench_per_benchmark=4")
    settings = [f"data.root={config.data.root}", *sizes, "eval.bootstrap_samples=40", "eval.benchmarks=[mmvp]"]
    settings += ["eval.limit=3"]  # says nothing about answers that another harness has
    if command == "external":  # of another file, which is missing
        call = [external_run.__name__, "--name", "other", "--samples", "none.jsonl", "--preset", "smoke"]
        main = external_run.main
    else:
        monkeypatch.setattr(run, "evaluate", lambda *_, **more: tmp_path)
        monkeypatch.setattr(run, "headline", lambda path: "")
        call, main = [run.__name__, "--model", "backbone-cot", "--preset", "smoke"], run.main
    for _ in range(2):
        monkeypatch.setattr("sys.argv", [*call, "--runs", str(tmp_path), "--set", *settings])
        with contextlib.suppress(SystemExit):
            main()
    assert capsys.readouterr().out.count("computed again from its scores") == 1
    now = json.loads((folder / "summary.json").read_text())
    changed = config.model_copy(
        update={"eval": config.eval.model_copy(update={"bootstrap_samples": 40, "benchmarks": ("mmvp",)})}
    )
    monkeypatch.undo()
    fresh = score_external(Source((LMMS,), "theirs", title="Theirs"), changed, tmp_path / "again")
    assert now == json.loads((fresh / "summary.json").read_text())  # as if it were scored anew
    cell, old = (s["greedy"]["benchmarks"]["cvb_2d"]["accuracy"] for s in (now, before))
    assert cell["value"] == old["value"] and (cell["low"], cell["high"]) != (old["low"], old["high"])
    assert {key: now[key] for key in ("model", "title", "mode", "judge", "extractor")} == {
        key: before[key] for key in ("model", "title", "mode", "judge", "extractor")
    }
    assert (folder / "scores.jsonl").read_bytes() == scores
    assert find(changed, tmp_path)["theirs"].title == "Theirs"  # finished, and its files are what the manifest says


def test_scores_of_an_edited_reward_are_said_and_stay(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = score_external(Source((LMMS,), "theirs"), config, tmp_path)
    before = (folder / "summary.json").read_bytes()
    other = config.model_copy(update={"eval": config.eval.model_copy(update={"bootstrap_samples": 40})})
    monkeypatch.setattr(run_folder, "reward_code", lambda: {"consistency": "edited"})
    assert current.rebuild(other, tmp_path) == []
    assert "run `make external` for its files again" in capsys.readouterr().out
    assert (folder / "summary.json").read_bytes() == before
    monkeypatch.undo()
    with held(folder):  # another process works on it
        assert current.rebuild(other, tmp_path) == []
    assert "another process is working" in capsys.readouterr().out
    (folder / "scores.jsonl").write_text("")
    with pytest.raises(UserError, match=r"scores\.jsonl is not what its finished stage wrote"):
        current.rebuild(other, tmp_path)


def test_a_row_without_an_image_is_counted_and_in_no_figure(config: Config, tmp_path: Path) -> None:
    """Two rows ask what the benchmark does not: numbers then prove nothing, and repeated questions have several images."""
    lines = LMMS.read_text(encoding="utf-8").splitlines()
    changed = [json.loads(line) for line in lines]
    changed[0]["input"] = "Is it raining?\n(A) yes\n(B) no"
    changed[0]["input_media"] = []
    file = tmp_path / "x_samples_miniworld_cvb_2d.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in changed), encoding="utf-8")
    folder = score_external(Source((file,), "theirs"), config, tmp_path)
    found = account(folder)
    assert found["left_out"]["no question found"] == 1 and "row number" not in found["found_by"]
    assert found["scored"] + sum(found["left_out"].values()) == 10
    assert "left out: 1 × no question found" in described(found)
    with pytest.raises(UserError, match=r"none of 10 rows can be scored .*no image found"):
        score_external(Source((TSV,), "none"), config, tmp_path)


def test_failed_requests_of_a_harness_are_no_wrong_answers(config: Config, tmp_path: Path) -> None:
    changed = [json.loads(line) for line in LMMS.read_text(encoding="utf-8").splitlines()]
    changed[0]["resps"] = changed[0]["filtered_resps"] = "[LMMS_EVAL_REQUEST_FAILED after 5 retries] time-out"
    file = tmp_path / "x_samples_miniworld_cvb_2d.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in changed), encoding="utf-8")
    folder = score_external(Source((file,), "theirs"), config, tmp_path)
    assert account(folder)["no_reply"] == 1 and account(folder)["accuracy"]["n"] == 9
    assert cells(folder, "cvb_2d")["refused"] == 0.1


@pytest.mark.parametrize("source", [Source((LMMS,), "theirs"), Source((TSV,), "theirs", images=IMAGES)])
def test_cut_offs_that_a_file_does_not_tell_are_no_zero(source: Source, config: Config, tmp_path: Path) -> None:
    """Neither harness stores how a reply ended: null in the files, a dash in the table, also when another judge scores."""
    folder = score_external(source, config, tmp_path)
    assert account(folder)["cut_off"] is None and account(folder)["known_cut_off"] == 0
    for place in (folder, rescore.rescore(config, folder, "oracle")):
        summary = json.loads((place / "summary.json").read_text())["greedy"]
        assert summary["counts"]["truncated"] is None and summary["counts"]["unresolved"] is not None
        assert all("truncated" not in found and "no_trace" in found for found in summary["benchmarks"].values())
    (table,) = [t for t in tables.main_tables(find(config, tmp_path), config) if t.name == "faithfulness-greedy"]
    column = table.headings.index("truncated")
    assert table.rows and all(row[column] == "–" and row[column + 1] != "–" for row in table.rows)


def test_a_cell_that_the_format_cut_off_is_counted(tmp_path: Path) -> None:
    from openpyxl import load_workbook

    file = Path(shutil.copy(XLSX, tmp_path))
    book = load_workbook(file)
    sheet = book.worksheets[0]
    column = [cell.value for cell in sheet[1]].index("prediction") + 1
    sheet.cell(2, column).value = "x" * vlmevalkit.LONGEST_CELL
    book.save(file)
    assert [row.finish for row in vlmevalkit.FORMAT.read(file, None)] == ["length", *[None] * 9]


def sample(question: str, n: int, choices: tuple[str, ...] = ("left", "right"), answer: str = "left") -> Sample:
    return Sample(f"b/test/{n}", (f"{n}.png",), question, choices, answer)


def table(*samples: Sample) -> matching.Table:
    return matching.Table("b", tuple((each,) for each in samples))


def test_numbers_count_only_where_all_rows_agree() -> None:
    """A harness that counts from 1 is found out; a shifted file never gets its neighbour's image."""
    held = table(*(sample(q, n) for n, q in enumerate(("where?", "which?", "where?", "how?"))))

    def ids(*rows: tuple[int, str]) -> list[str]:
        found = held.find([Row(str(n), "t", prompt=q) for n, q in rows])
        return [each if isinstance(each, str) else each.sample.id for each in found]

    assert ids((0, "where?"), (2, "where?"), (3, "how?")) == ["b/test/0", "b/test/2", "b/test/3"]
    assert ids((1, "where?"), (2, "which?"), (3, "where?")) == ["b/test/0", "b/test/1", "b/test/2"]
    shifted = ids((2, "which?"), (3, "where?"), (4, "how?"), (9, "how?"))
    assert shifted == ["b/test/1", "no image found", "b/test/3", "b/test/3"]
    assert ids((0, "where is it?")) == ["no question found"]


def test_a_gold_answer_chooses_no_image() -> None:
    """Pairs of images share a question; a harness' copy may have corrected the gold answer of one."""
    asked = "is the dog facing left?"
    held = table(sample(asked, 0, ("yes", "no"), "yes"), sample(asked, 1, ("yes", "no"), "no"))
    found = held.find([Row("0", "A", prompt=f"{asked}\nA. yes\nB. no", target="B"), Row("7", "A", prompt="which?")])
    assert found == [matching.NO_IMAGE, matching.NO_QUESTION]


def test_a_question_within_another_is_not_it() -> None:
    held = table(sample("is it left?", 0), sample("is it left? look at the cup.", 1))
    row = Row("5", "A", prompt="Is it left? Look at the cup.\nA. left\nB. right")
    (found,) = held.find([row])
    assert isinstance(found, matching.Found) and found.sample.id == "b/test/1"


@pytest.mark.parametrize(
    ("prompt", "is_asked"),
    [
        ("Is it left?", True),
        ("Question: Is it\n left? (A) yes", True),
        ("Look at the cup. Is it left?", True),
        ("<image>Is it left?\nA. yes", True),
        ("**Is it left?**", True),
        ("In the first image, is it left?", False),
        ("In the first image: is it left?", False),
        ("This is it left?", False),
    ],
)
def test_a_question_begins_a_line_or_a_sentence(prompt: str, is_asked: bool) -> None:
    """By row number too: a wrong image would be judged as if the model had seen it."""
    held = table(sample("is it left?", 0))
    for key in ("0", "x"):
        (found,) = held.find([Row(key, "A", prompt=prompt)])
        assert isinstance(found, matching.Found) == is_asked and (is_asked or found == matching.NO_QUESTION)


def test_a_question_without_a_mark_is_not_the_beginning_of_another() -> None:
    held = table(sample("is it left", 0))
    found = held.find(
        [Row("x", "A", prompt=text) for text in ("Is it left\nA. x", "Is it left (A) x", "Is it left of it?")]
    )
    assert [isinstance(each, matching.Found) for each in found] == [True, True, False]


def test_letters_mean_the_options_in_the_rows_order() -> None:
    held = table(sample("where?", 0))
    (found,) = held.find([Row("0", "B", prompt="where?\n(A) right\n(B) left", target="(B)")])
    assert isinstance(found, matching.Found) and found.sample.choices == ("right", "left") and not found.other_gold
    (other,) = held.find([Row("0", "A", prompt="where?\nA. left\nB. right", target="B")])
    assert isinstance(other, matching.Found) and other.other_gold == "right"  # a corrected gold answer is named
    (wrong,) = held.find([Row("0", "A", question="where?", choices=("up", "down"))])
    assert wrong == "its options are not those of the question"


def test_two_answers_to_one_question_are_not_both_counted() -> None:
    first, second = matching.Found(sample("q", 0), "file"), matching.Found(sample("q", 0), "file")
    assert matching.unique([first, second, "x"]) == [first, matching.REPEATED, "x"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, 1.0), (0, 0.0), ("1", 1.0), ({"is_correct": False, "score": 1}, 0.0), ({"pred": "A"}, None), (7, None),
     (float("nan"), None), ("A", None), (None, None), ([1], None)],
)  # fmt: skip
def test_their_score_of_an_answer(value: Any, expected: float | None) -> None:
    assert share(value) == expected


def test_a_reply_without_tags_can_be_taken_as_a_trace() -> None:
    assert untagged("It is red.\n\nSo: A") == "<think>It is red.</think>So: A"
    assert untagged("<think>x</think>A\nB") == "<think>x</think>A\nB"
    assert untagged("A") == "A"


def test_images_that_a_line_may_lack_are_not_used() -> None:
    held, path = "data:image/png;base64,aa", "a/b.png"
    assert lmms_eval._images([held, path]) == (held,)
    assert lmms_eval._images([path]) == lmms_eval._images([held] * 4) == lmms_eval._images("x") == ()
    assert lmms_eval._images([held, path, "c.png"]) == ()


def test_images_of_a_data_set_file(tmp_path: Path) -> None:
    """Base64, a list of two, a reference to another row, names of files; nothing outside the folder, nothing broken."""
    raw = base64.b64decode(next(iter(vlmevalkit._table(IMAGES)))["image"])
    text = base64.b64encode(raw).decode()
    file = tmp_path / "Set.tsv"
    rows = [
        ("0", text, ""),
        ("1", "0", ""),
        ("2", str([text, text]), ""),
        ("3", "", "a.png"),
        ("4", "", "../b.png"),
        ("5", "%%", ""),
    ]
    file.write_text("index\timage\timage_path\n" + "".join("\t".join(row) + "\n" for row in rows))
    found = vlmevalkit.read_images(file)
    assert (found["0"], found["1"], found["2"], found["3"]) == ((raw,), (raw,), (raw, raw), ("a.png",))
    assert "5" not in found
    (tmp_path / "a.png").write_bytes(raw)
    for key, expected in (("3", 1), ("4", 0), ("5", 0), ("2", 2)):
        assert len(matching._images(Row(key, "t"), found, tmp_path, tmp_path / "cache")) == expected
    broken = {"9": (b"no image",)}
    assert matching._images(Row("9", "t"), broken, tmp_path, tmp_path / "cache") == ()


def test_what_is_no_file_of_a_harness_is_named(config: Config, tmp_path: Path) -> None:
    odd = tmp_path / "x_samples_t.jsonl"
    odd.write_text('{"a": 1}\n')
    broken = tmp_path / "m_d.xlsx"
    broken.write_bytes(b"no zip")
    (tmp_path / "m.parquet").touch()
    for file, words in (
        (odd, "line 1 has no doc_id"),
        (broken, "cannot be read as a file of VLMEvalKit"),
        (tmp_path / "m.parquet", "no file of a known harness"),
        (tmp_path / "none.tsv", "is missing"),
    ):
        with pytest.raises(UserError, match=words):
            score_external(Source((file,), "x", benchmark="cvb_2d"), config, tmp_path / "runs")
    for name in ("fgrpo", "../x", "", "a@b"):
        with pytest.raises(UserError, match="--name"):
            score_external(Source((LMMS,), name), config, tmp_path / "runs")
    with pytest.raises(UserError, match="no metric 'x'; it has: correct"):
        score_external(Source((LMMS,), "m", metric="x"), config, tmp_path / "runs")


def test_lines_of_json_are_read_as_a_list_of_it(tmp_path: Path) -> None:
    rows = json.loads(JSON.read_text(encoding="utf-8"))
    file = tmp_path / "mini_MiniWorldCVB.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    read = list(vlmevalkit.FORMAT.read(file, None))
    assert read == list(vlmevalkit.FORMAT.read(JSON, None)) and len(read) == 10
    assert read[0].text.startswith("<think>") and read[0].choices == ("left", "right")  # SPLIT_THINK; an empty C


def test_names_of_tasks() -> None:
    assert matching.benchmark_of("cv_bench_2d_reasoning") == "cvb_2d"
    assert matching.benchmark_of("Qwen_CV-Bench-3D_result") == "cvb_3d"
    assert matching.benchmark_of("gpt-4o_RealWorldQA") == "realworldqa"
    assert matching.benchmark_of("mme") is None
    assert format_of(LMMS).task(LMMS) == "miniworld_cvb_2d" and format_of(XLSX).title == "VLMEvalKit"


def test_other_files_under_one_name_are_another_evaluation(config: Config, tmp_path: Path) -> None:
    """The miniature presets move the old folder away; the paper's refuse."""
    source = Source((LMMS,), "theirs")
    score_external(source, config, tmp_path)
    copy = shutil.copy(LMMS, tmp_path / "y_samples_miniworld_cvb_2d.jsonl")
    score_external(dataclasses.replace(source, files=(Path(copy),)), config, tmp_path)  # the same content
    assert not (tmp_path / config.preset / "eval" / ".superseded").exists()
    strict = config.model_copy(update={"changed": config.changed.model_copy(update={"finished": "refuse"})})
    with pytest.raises(UserError, match="belongs to another experiment"):
        score_external(dataclasses.replace(source, files=(TSV,), benchmark="cvb_2d"), strict, tmp_path)
