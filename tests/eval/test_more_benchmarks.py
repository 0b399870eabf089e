"""BLINK, MMSI-Bench and TreeBench, beside the paper's seven: tiny files in the genuine schemas, from the row to the table."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import genuine
import matplotlib.pyplot as plt
import pytest
from known import rows_of, table_named
from PIL import Image

from eval import base, figures, models, report, run, tables
from eval.downscale_images import fit
from eval.results import find, read_records
from fgrpo import boxes
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.inference.base import Completion, Request
from fgrpo.policy import backbone
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.schema import Config
from fgrpo.types import Box, Sample
from tests.eval.test_chain import checkpoint
from tests.eval.test_chain import engine as scripted

THREE = ("blink", "mmsi_bench", "treebench")


@lru_cache
def settings(*overrides: str) -> Config:
    """The configuration at paper scale, without count check and judges."""
    judges = ("judges.evaluation.backend=none", "judges.extraction.backend=none")
    return load("paper-7b", "fgrpo", ["eval.counts=null", *judges, *overrides])


def over(root: Path, config: Config) -> Config:
    """`config` with another data root."""
    return config.model_copy(update={"data": config.data.model_copy(update={"root": str(root)})})


@pytest.fixture
def three(tmp_path: Path) -> Config:
    """The configuration over tiny files of the three benchmarks."""
    for writer in (genuine.blink, genuine.mmsi_bench, genuine.treebench):
        writer(tmp_path / "bench")
    return over(tmp_path, settings())


def shades(sample: Sample) -> list[int]:
    """The red of each image, in order."""
    return [Image.open(path).getpixel((0, 0))[0] for path in sample.images]  # type: ignore[index]


def bench_of(config: Config) -> Path:
    return Path(config.data.root) / "bench"


# --- BLINK -----------------------------------------------------------------------------------------------------------


def test_blink_reads_five_tasks_of_the_validation_split(three: Config) -> None:
    found = base.load("blink", three)
    assert [s.meta["task"] for s in found.samples] == list(genuine.BLINK_TASKS) and not found.dropped
    by_task = {s.meta["task"]: s for s in found.samples}
    depth = by_task["Relative_Depth"]
    assert depth.question == "Two points are circled. Which point is closer (Relative_Depth, 1)?"
    assert depth.choices == ("A is closer", "B is closer") and depth.answer == "B is closer" and depth.boxes is None
    assert shades(by_task["Multi-view_Reasoning"]) == [3, 4] and shades(depth) == [2]


@pytest.mark.parametrize(
    ("task", "changed", "reason"),
    [
        ("Counting", {"answer": "(C)"}, "the answer is no letter of the choices"),
        ("Counting", {"answer": None}, "the answer is no letter of the choices"),
        ("Counting", {"image_1": None}, "0 images, fewer than the task has"),
        ("Counting", {"image_3": {"bytes": genuine.png(3), "path": None}}, "an image in between is missing"),
        ("Counting", {"image_1": {"bytes": b"", "path": "1.png"}}, "the row holds no image"),
        ("Multi-view_Reasoning", {}, "1 images, fewer than the task has"),
        ("Counting", {"choices": ["3", "3"]}, "the choices are no list of distinct texts"),
        ("Counting", {"choices": ["3", None]}, "the choices are no list of distinct texts"),
        ("Counting", {"choices": None}, "the choices are no list of distinct texts"),
        ("Counting", {"choices": ["B is closer", "A is closer"]}, "the options of the prompt are not its choices"),
        ("Counting", {"prompt": "(A) A is closer\n(B) B is closer"}, "no question"),
    ],
)
def test_rows_of_blink_that_cannot_be_used_are_counted(
    task: str, changed: dict[str, Any], reason: str, three: Config
) -> None:
    good, bad = genuine.blink_row("Counting"), genuine.blink_row(task, 2, **changed)
    genuine.blink(bench_of(three), {"Counting": [good], task: [*([good] if task == "Counting" else []), bad]})
    found = base.load("blink", three)
    assert len(found.samples) == 1 and found.dropped == {reason: 1}


@pytest.mark.parametrize("prompt", ["", None, "Choose: 1. left 2. right", "What is shown?"])
def test_without_options_in_the_prompt_the_question_counts(prompt: str | None, three: Config) -> None:
    genuine.blink(bench_of(three), {"Counting": [genuine.blink_row("Counting", prompt=prompt)]})
    assert [s.question for s in base.load("blink", three).samples] == ["Which point is closer?"]


def test_missing_tasks_and_columns_are_named(three: Config) -> None:
    folder = bench_of(three) / "BLINK"
    genuine.parquet(folder / "Counting" / "val-00000-of-00001.parquet", [{"question": "Q"}])
    with pytest.raises(UserError, match=r"benchmark blink: .*Counting.* has no column prompt, choices"):
        base.load("blink", three)
    (folder / "Spatial_Relation" / "val-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"blink, task Spatial_Relation: expected one file val-\*.parquet"):
        base.load("blink", three)
    genuine.parquet(bench_of(three) / "MMSI-Bench" / "MMSI_Bench.parquet", [{"question": "Q"}])
    with pytest.raises(UserError, match=r"benchmark mmsi_bench: .* has no column id, images"):
        base.load("mmsi_bench", three)
    tsv = bench_of(three) / "TreeBench" / "TreeBench.tsv"
    tsv.write_text("index\tquestion\n0\tQ\n")
    with pytest.raises(UserError, match=r"benchmark treebench: .* has no column image, answer, .*A or multi-choice"):
        base.load("treebench", three)
    tsv.write_bytes(b"index\t\xff\xfe\n")
    with pytest.raises(UserError, match=r"benchmark treebench: .* cannot be read .*; download it again"):
        base.load("treebench", three)


# --- MMSI-Bench ------------------------------------------------------------------------------------------------------


def test_mmsi_splits_the_options_and_keeps_the_order_of_the_images(three: Config) -> None:
    one, other = base.load("mmsi_bench", three).samples
    assert one.question == "In which direction are you moving (0)?" and one.id == "mmsi_bench/test/0"
    assert one.choices == ("Left, while moving back", "Forward", "1.5 m, 2 m", "Right")
    assert (one.answer, other.answer) == ("Left, while moving back", "1.5 m, 2 m")
    assert shades(one) == [1, 2] and shades(other) == [5, 6, 7]
    assert other.meta["task"] == "Positional Relationship (Obj.–Reg.)"


def test_images_of_mmsi_as_structs(three: Config) -> None:
    images = [{"bytes": genuine.png(n), "path": None} for n in (8, 9)]
    genuine.parquet(bench_of(three) / "MMSI-Bench" / "MMSI_Bench.parquet", [genuine.mmsi_row(0, images=images)])
    assert [shades(s) for s in base.load("mmsi_bench", three).samples] == [[8, 9]]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"answer": "E"}, "the answer is no letter of the options in the question"),
        ({"answer": None}, "the answer is no letter of the options in the question"),
        ({"images": [genuine.png(1)]}, "1 images, fewer than two"),
        ({"images": None}, "0 images, fewer than two"),
        ({"images": [genuine.png(1), b""]}, "the row holds no image"),
        ({"images": [None, genuine.png(1)]}, "the row holds no image"),
        ({"question": "In which direction?"}, "no question with options"),
        ({"question": "Options: A: x, B: y"}, "no question with options"),
        ({"question": None}, "no question with options"),
        ({"question": "Q?\nOptions: A: x, B: x"}, "equal_options"),
    ],
)
def test_rows_of_mmsi_that_cannot_be_used_are_counted(changed: dict[str, Any], reason: str, three: Config) -> None:
    genuine.mmsi_bench(bench_of(three), [genuine.mmsi_row(0), genuine.mmsi_row(1, **changed)])
    found = base.load("mmsi_bench", three)
    assert len(found.samples) == 1 and found.dropped == {reason: 1}


# --- TreeBench -------------------------------------------------------------------------------------------------------


def one_row(config: Config, **changed: Any) -> base.Loaded:
    """TreeBench with a sound row 0 and a changed row 1."""
    genuine.treebench(bench_of(config), [genuine.treebench_row(0), genuine.treebench_row(1, **changed)])
    return base.load("treebench", config)


def test_treebench_has_its_boxes_in_pixels_of_the_file(three: Config) -> None:
    one, other = base.load("treebench", three).samples
    assert one.choices == ("red", "blue", "green", "None") and one.answer == "None"
    assert one.boxes == (Box(10, 6, 50, 30, "original"), Box(60, 30, 90, 54, "original")) and other.boxes is None
    assert one.meta["task"] == "Perception/Attributes" and Image.open(one.images[0]).size == genuine.TREEBENCH_SIZE


EMPTY = dict.fromkeys(genuine.TREEBENCH_LETTERS, "")


@pytest.mark.parametrize(
    ("changed", "choices", "answer"),
    [
        ({"answer": "(b)"}, ("red", "blue", "green", "None"), "blue"),
        ({"multi-choice options": ""}, ("red", "blue", "green", "None"), "None"),
        (EMPTY, ("red", "blue", "green", "None"), "None"),  # the questions of Perception/OCR
        (
            {**EMPTY, "A": "He stands. B. He lies.", "B": "He runs.", "C": "He sits.",
             "multi-choice options": "A. He stands. B. He lies.\nC. He runs.\nD. He sits."},
            ("He stands.", "He lies.", "He runs.", "He sits."), "He sits.",
        ),
        (
            {**EMPTY, "A": "He stands. B. He lies.", "B": "He runs.", "C": "He sits.", "answer": "B",
             "multi-choice options": "A. He stands. B. He lies.\nC. He runs.\nD. He sits."},
            ("He stands.", "He lies.", "He runs.", "He sits."), "He lies.",
        ),
        ({**EMPTY, "multi-choice options": "A First\nB Second\n C Third\nC. Fourth"}, ("A", "B", "C", "D"), "D"),
        ({**EMPTY, "multi-choice options": "A First\nB Second\nC x\nD y\nE z"}, ("A", "B", "C", "D", "E"), "D"),
        ({"C": "", "multi-choice options": "A. red\nB. blue\nC. green\nD. None"}, ("red", "blue", "green", "None"), "None"),
    ],
)  # fmt: skip
def test_options_of_treebench(changed: dict[str, Any], choices: tuple[str, ...], answer: str, three: Config) -> None:
    found = one_row(three, **changed)
    assert not found.dropped
    assert (found.samples[1].choices, found.samples[1].answer) == (choices, answer)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"answer": "E"}, "the answer is no letter of the options"),
        ({"answer": ""}, "the answer is no letter of the options"),
        ({"C": "", "multi-choice options": ""}, "the options cannot be read"),
        ({"A": "blue", "multi-choice options": ""}, "the options cannot be read"),
        ({"question": " "}, "no question"),
        ({"image": ""}, "the row holds no image"),
        ({"image": "12"}, "the row holds no image"),
        ({"image": base64.b64encode(b"no image at all").decode()}, "corrupt_image"),
        *(({"target_instances": text}, "target_instances is no list of boxes")
          for text in ("[[1, 2, 3]]", "[1, 2, 3, 4]", "[['a', 2, 3, 4]]", "a cup", "[[1, 2, 3, 4], None]", "('1234',)",
                       "{}", "[" * 5000, "['1234']", "__import__('os').getcwd()")),
        ({"target_instances": "[[200, 10, 300, 50]]"}, "boxes_beyond_image"),
    ],
)  # fmt: skip
def test_rows_of_treebench_that_cannot_be_used_are_counted(changed: dict[str, Any], reason: str, three: Config) -> None:
    found = one_row(three, **changed)
    assert len(found.samples) == 1 and found.dropped == {reason: 1}


@pytest.mark.parametrize(
    ("text", "kept", "noted"),
    [
        ("[[-10, 0, 30, 60]]", [(0, 0, 30, 60)], {}),  # clipped, as in training
        ("[[10, 6, 50, 30], [10, 6, 50, 30]]", [(10, 6, 50, 30)], {}),
        ("[[10, 6, 50, 30], [90, 0, 150, 60]]", [(10, 6, 50, 30)], {"boxes left out: beyond_image": 1}),
        ("[[10, 6, 50, 30], [50, 6, 10, 30]]", [(10, 6, 50, 30)], {"boxes left out: without_area": 1}),
        ("[[50, 6, 50, 30]]", None, {"boxes left out: without_area": 1}),
        ("[{'bbox': [10, 6, 50, 30], 'label': 'cup'}]", [(10, 6, 50, 30)], {}),
        ("[[10.5, 6, 50, 30.25]]", [(10.5, 6, 50, 30.25)], {}),
        ("", None, {}),
    ],
)
def test_boxes_of_treebench_are_treated_as_those_of_training(
    text: str, kept: list[tuple[float, ...]] | None, noted: dict[str, int], three: Config
) -> None:
    found = one_row(three, target_instances=text)
    boxes_found = found.samples[1].boxes
    assert (None if boxes_found is None else [tuple(box) for box in boxes_found]) == kept
    assert found.noted == noted and not found.dropped


def test_an_image_that_is_turned_by_exif_has_no_boxes(three: Config) -> None:
    turned, out = Image.Exif(), io.BytesIO()
    turned[0x0112] = 6
    Image.new("RGB", genuine.TREEBENCH_SIZE).save(out, "JPEG", exif=turned)
    found = one_row(three, image=base64.b64encode(out.getvalue()).decode())
    assert found.samples[1].boxes is None and found.noted == {"boxes left out: turned_by_exif": 2}


def test_boxes_move_with_an_image_that_is_downscaled(tmp_path: Path) -> None:
    config = over(tmp_path, settings("eval.context_length=8192"))
    path = tmp_path / "large.png"
    Image.new("RGB", (4200, 2800)).save(path)
    sample = Sample("treebench/test/0", (str(path),), "Q?", ("a", "b"), "a", (Box(420, 280, 2100, 1400, "original"),))
    (found,) = fit([sample], models.load("fgrpo"), config, backbone.default().pixels, backbone.default())
    assert found.meta["shrunk"] < 1 and found.boxes is not None
    width, height = Image.open(found.images[0]).size
    assert tuple(found.boxes[0]) == pytest.approx((width / 10, height / 10, width / 2, height / 2))
    assert found.boxes[0].frame == "original"


# --- from the files to the table -------------------------------------------------------------------------------------


class Written:
    """Answers each question with a fixed option; of TreeBench it writes the first annotated box, in pixels that the model sees."""

    def __init__(self, config: Config, bounds: Any) -> None:
        self.samples = [s for name in (*THREE, "cvb_2d") for s in base.load(name, config).samples]
        self.bounds = bounds
        self.asked: dict[str, Request] = {}

    async def sample(self, request: Request) -> Sequence[Completion]:
        (asked,) = [s for s in self.samples if s.question in request.text and list(s.images) == list(request.images)]
        self.asked[asked.id] = request
        sentence = "I see it."
        if asked.id == "treebench/test/0":
            size = boxes.model_size(genuine.TREEBENCH_SIZE, *self.bounds)
            box = boxes.convert(Box(10, 6, 50, 30, "original"), "model", genuine.TREEBENCH_SIZE, size)
            sentence = f"The cup is at <bbox>[{', '.join(f'{v:.2f}' for v in box)}]</bbox>."
        return [Completion(f"<think>{sentence}</think><answer>{self.letter(asked)}</answer>", "stop", (1, 2, 3))]

    @staticmethod
    def letter(sample: Sample) -> str:
        """Right for MMSI-Bench and one question of TreeBench; BLINK is always answered with its first option, which is wrong."""
        right = chr(65 + sample.choices.index(sample.answer))
        return {"blink": "A", "mmsi_bench": right, "cvb_2d": right}.get(
            sample.source, right if sample.id.endswith("/0") else "A"
        )

    async def close(self) -> None:
        return None


@pytest.fixture
def evaluated(three: Config, tmp_path: Path) -> tuple[Config, Path, Written]:
    """CVB-2D, and the three benchmarks by the configuration's entry."""
    extra = f"eval.extra_benchmarks=[{','.join(THREE)}]"
    config = over(tmp_path, settings("eval.benchmarks=[cvb_2d]", "eval.bootstrap_samples=50", extra))
    genuine.cv_bench(tmp_path / "bench")
    root = tmp_path / "runs"
    checkpoint(config, root, "rl-fgrpo")
    engine = Written(config, pixel_bounds(str(root / config.preset / "rl-fgrpo" / "final")))
    run.evaluate(config, "fgrpo", root=root, sampler=engine)  # type: ignore[arg-type]
    return config, root, engine


def test_from_the_files_to_the_table(evaluated: tuple[Config, Path, Written]) -> None:
    config, root, engine = evaluated
    result = find(config, root)["fgrpo"]
    accuracy = {name: result.cell("greedy", name, "accuracy") for name in ("cvb_2d", *THREE, "average")}
    assert {name: (c["value"], c["n"]) for name, c in accuracy.items() if c is not None} == {
        "cvb_2d": (1.0, 2),
        "blink": (0.0, 5),
        "mmsi_bench": (1.0, 2),
        "treebench": (0.5, 2),
        "average": (1.0, 2),
    }
    # one of two annotated boxes is written exactly: Eq. 1 divides by the larger number; the question without boxes does not count
    grounding = result.cell("greedy", "treebench", "spatial_grounding")
    assert grounding is not None and grounding["n"] == 1 and grounding["value"] == pytest.approx(0.5, abs=0.005)
    records = {r.sample_id: r.scores["spatial_grounding"] for r in read_records(result.path / "scores.jsonl")}
    assert records["treebench/test/1"].reason == "no boxes are annotated" and records["treebench/test/1"].value is None
    assert all(records[s.id].state == "not_applicable" for s in engine.samples if s.source != "treebench")

    everything = tables.build(config, root)[1]
    accuracy_table = table_named(everything, "accuracy-greedy")
    titles = ("BLINK (spatial)", "MMSI-Bench", "TreeBench")
    assert accuracy_table.headings == ("accuracy ↑", "CVB-2D", "average", *titles)
    cells = rows_of(accuracy_table)["FGRPO"]
    shown = [cells[title].split()[0] for title in ("CVB-2D", "average", *titles)]
    assert shown == ["100.0", "100.0", "0.0", "100.0", "50.0"]
    faithfulness = rows_of(table_named(everything, "faithfulness-greedy"))
    assert faithfulness["FGRPO: TreeBench"]["spatial grounding ↑"].split()[0] == f"{100 * grounding['value']:.1f}"
    assert (
        faithfulness["FGRPO"]["spatial grounding ↑"]
        == faithfulness["FGRPO: BLINK (spatial)"]["spatial grounding ↑"]
        == "–"
    )


def test_each_request_has_all_images_of_its_question_in_order(evaluated: tuple[Config, Path, Written]) -> None:
    _, _, engine = evaluated
    for sample in engine.samples:
        request = engine.asked[sample.id]
        assert list(request.images) == list(sample.images)
        assert all(f"({chr(65 + n)}) {choice}" in request.text for n, choice in enumerate(sample.choices))
        assert "Options:" not in request.text and "Select from the following" not in request.text


def test_what_was_left_out_is_in_the_manifest(evaluated: tuple[Config, Path, Written]) -> None:
    config, root, engine = evaluated
    beyond = "[[10, 6, 50, 30], [400, 0, 450, 60]]"
    rows = [genuine.treebench_row(0, target_instances=beyond), genuine.treebench_row(1, answer="K")]
    genuine.treebench(bench_of(config), rows)
    engine.samples = base.load("treebench", config).samples
    checkpoint(config, root / "again", "rl-fgrpo")
    folder = run.evaluate(config, "fgrpo", ["treebench"], root / "again", engine)  # type: ignore[arg-type]
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert counts["treebench/boxes left out: beyond_image"] == 1
    assert counts["treebench/left out: the answer is no letter of the options"] == 1


def test_the_presets_evaluate_the_papers_seven_by_default() -> None:
    for preset in ("paper-3b", "paper-7b", "mini", "smoke"):
        settings = load(preset, "fgrpo").eval
        assert not set(settings.every_benchmark) & set(THREE) and len(settings.every_benchmark) == 7
    more = load("paper-7b", "fgrpo", ["eval.extra_benchmarks=[treebench,cvb_2d]"]).eval
    assert more.every_benchmark == [*more.benchmarks, "treebench"]


def test_missing_data_names_the_command_that_downloads_it(tmp_path: Path) -> None:
    """A benchmark that the preset does not evaluate is not downloaded without its name."""
    for name, words in (
        ("treebench", "`make data-download PRESET=paper-7b SETS=treebench` downloads it, or put HaochenWang/TreeBench"),
        ("mmvp", "`make data-download PRESET=paper-7b` downloads it, or put MMVP/MMVP into"),
        ("own", "is missing; put your own questions.jsonl into"),
    ):
        with pytest.raises(UserError) as error:
            base.load(name, over(tmp_path, settings()))
        assert words in str(error.value)


def test_a_wrong_name_among_the_extra_benchmarks_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments = ["--preset", "smoke", "--model", "fgrpo", "--set", "eval.extra_benchmarks=[blimk]"]
    monkeypatch.setattr("sys.argv", ["eval.run", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run.main()
    assert "blimk" in str(stopped.value.code) + capsys.readouterr().err


def test_the_miniature_has_all_three_in_figure_and_report(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    run.evaluate(world, "fgrpo", ["mmvp", *THREE], tmp_path, scripted(world))
    result = find(world, tmp_path)["fgrpo"]
    assert result.averaged("greedy") == ["mmvp"] and set(result.benchmarks()) == {"mmvp", *THREE}
    cell = result.cell("greedy", "treebench", "spatial_grounding")
    assert cell is not None and cell["n"] == 4 and cell["value"] > 0.5
    drawn = figures.figure3({"fgrpo": result}, world)
    assert drawn is not None
    shown = [t.get_text() for t in drawn.axes[-1].get_xticklabels()]
    plt.close(drawn)
    assert shown[:3] == ["BLINK (spatial)", "MMSI-Bench", "TreeBench"] and shown[-1] == "average"
    page = report.write(world, tmp_path).read_text(encoding="utf-8")
    assert all(f'data-benchmark="{title}"' in page for title in shown[:3])
    assert "means of the benchmarks (MMVP)" in page
