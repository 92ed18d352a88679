"""The report: what is in the page, what is told of what is not, and that every text is text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.evals import intervals
from fedjax_rai.runs import files
from fedjax_rai.studies import report
from fedjax_rai.studies.gathered import Gathered, gather
from fedjax_rai.studies.panels import Panel, named_axis
from fedjax_rai.studies.report import Wanted, write_report
from fedjax_rai.studies.report_parts import Section, compared, not_begun_note, report_of
from fedjax_rai.studies.results import write_planned
from tests.studies.report_folders import ARABIC, HANGUL, SCRIPT, some_rows, write_run, write_table
from tests.tiny_runs import vary


class Page(HTMLParser):
    """Tags, texts, and the tables of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.texts.append(data)
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture(autouse=True)
def _few_replicates(monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 1000)


@pytest.fixture
def table(tmp_path, config) -> Path:
    return write_table(tmp_path / "table", config)


def page_of(paths: list[Path], **wanted) -> str:
    page, *_ = write_report(paths, Wanted(**wanted))
    return page.read_text(encoding="utf-8")


def test_the_table_has_arms_rates_intervals_and_counts(table):
    page = Page(page_of([table]))
    header, fl, with_cai = page.rows[:3]
    first = ["arm", "seeds", "harmless (rule)", "HHH", "over-refusal ↓"]
    assert header == [*first, "harmless (phrases)", "drift ↓", "seconds"]
    assert fl[:2] == ["fl", "0, 1"] and with_cai[:2] == ["fl+cai", "0, 1"]
    assert re.fullmatch(r"40\.0 \[1\d\.\d, [67]\d\.\d\] n=10", fl[2]) and with_cai[2].startswith("80.0 [")
    assert fl[4].startswith("33.3 [") and fl[4].endswith(" n=3"), "the empty answer has no verdict"
    assert fl[6] == "0.0500 [?] n=1" and "Not measured: " in " ".join(page.texts)


def test_no_text_is_markup_and_nothing_comes_from_elsewhere(table):
    text = page_of([table])
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags and "img" not in tags and "iframe" not in tags
    assert SCRIPT in page.texts
    assert "the <b>bad</b>" in page.texts and not any(name.startswith("on") for _, given in page.tags for name in given)
    links = [given[key] for _, given in page.tags for key in ("src", "href") if key in given]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert "url(" not in text and "@import" not in text and "http" not in text.replace("http-equiv", "")


def test_texts_of_any_script_length_and_none_are_shown(table):
    page = Page(page_of([table]))
    texts = [given for tag, given in page.tags if given.get("class") in ("text", "prompt")]
    assert texts and all(given["dir"] == "auto" for given in texts)
    assert HANGUL in page.texts and ARABIC in page.texts and "(no word)" in page.texts
    assert any(len(text) == 20_000 for text in page.texts)


def test_what_may_be_harmful_is_behind_a_click(table):
    text = page_of([table])
    assert "prompt 1, not shown" in text and not re.search(r"<summary>[^<]*request", text)
    shown = "show an answer that may be harmful</summary>"
    # of 10 answers an arm 4 and 8 are harmless by the rule, and every other one by the phrases; and
    # of either a bad choice, a marked answer and one that was read, which nobody judged
    assert text.count(shown) == (10 - 2) + (10 - 4) + 2 * 3
    assert re.search(r'<summary><span dir="auto">How do I stop a process', text), "a benign prompt is its own summary"


def test_arms_are_compared_by_prompt_and_seed_with_a_margin_if_there_is_one(table):
    rows = Page(page_of([table], margin=5.0)).rows
    found = next(row for row in rows if len(row) == 4 and row[0] == "fl+cai" and row[1].startswith("+40.0"))
    assert found[2] == "+40.0, +40.0" and found[3].startswith("not shown to be equivalent within 5 points")
    same = next(row for row in rows if len(row) == 4 and row[0] == "fl+cai" and row[1].startswith("+0.0"))
    assert same[1].endswith("the same number of verdicts of either kind on every prompt")
    without = page_of([table])
    assert "takes a margin" in without and "equivalent within" not in without
    assert "points, minus fl+cai" in page_of([table], reference="fl+cai")


def test_arms_of_other_judges_are_not_compared_and_it_is_said(table):
    for seed in (0, 1):
        path = table / f"seed{seed}" / "fl+cai" / "summary.json"
        changed = files.read_object(path)
        changed["rates"]["harmless"]["judge"] = "refusal_phrases"
        files.write_json(path, changed)
    page = Page(page_of([table]))
    gaps = [row for row in page.rows if len(row) > 1 and row[0] == "fl+cai" and row[1].startswith("+40.0")]
    assert len(gaps) == 1, "of the rule's own rate alone"
    why = "fl+cai minus fl: not comparable, as judges differ (refusal_phrases, rule)"
    assert f"harmless (rule, phrases), {why}" in " ".join(page.texts)


def test_marks_of_answers_at_other_temperatures_are_not_compared_and_it_is_said(tmp_path, config):
    marks = {"mt_bench": {"mean": 7.0, "low": 5.0, "high": 9.0, "unit": "mark of 10"}}
    configs = [vary(config, eval={"mt_bench_temperature": how}) for how in ("greedy", "by_category")]
    folders = [write_run(tmp_path / f"run{i}", each, some_rows(4)) for i, each in enumerate(configs)]
    for folder in folders:
        summary = files.read_object(folder / "summary.json")
        files.write_json(folder / "summary.json", summary | {"rates": summary["rates"] | marks})
    section = compared(report_of(gather(folders), None, None))
    why = "not comparable, as eval.mt_bench_temperature differs (by_category, greedy)"
    assert section.absent == [f"MT-Bench, run1 minus run0: {why}"]
    assert section.grids and not any(grid.caption.startswith("MT-Bench") for grid in section.grids)


def test_judges_stand_against_each_other_once(table):
    """4 arms' and seeds' answers to 10 prompts; the primary is the rule, so there is one pair.

    Of ten the rule counts the first 4 or 8, phrases every other one: 2 and 4 both, 2 and 4 the rule alone, 3 and 1
    phrases alone. So 20 of 40 agree, as by chance: 0.6 x 0.5 + 0.4 x 0.5.
    """
    rows = Page(page_of([table])).rows
    pairs = [row for row in rows if len(row) == 6 and " and harmless" in row[0]]
    assert pairs == [["harmless (rule) and harmless (phrases)", "40", "50.0 %", "0.00", "12", "8"]]


def test_what_is_absent_says_why(tmp_path, config):
    plain = vary(config, cai={"enabled": False, "probe": 0})
    folder = write_run(tmp_path / "alone", plain, some_rows(4))
    (folder / "answers.jsonl").unlink()
    (folder / "versions.json").unlink()
    page = " ".join(Page(page_of([folder])).texts)
    for reason in (
        "There is one arm: nothing to compare it with.", "No arm has a CAI phase.", "data.json is not there",
        "No run's answers are kept", "versions.json is not there",
        "No answers that two judges judged are kept.", "1 of 1 run: not measured, an older version ran.",
    ):  # fmt: skip
        assert reason in page, reason


def test_runs_that_agree_but_for_the_seed_are_one_arm(tmp_path, config):
    folders = [write_run(tmp_path / f"run{seed}", vary(config, seed=seed), some_rows(4)) for seed in (1, 0)]
    other = write_run(tmp_path / "other", vary(config, lora={"rank": 3}), some_rows(4))
    again = write_run(tmp_path / "again", vary(config, seed=1), some_rows(4))
    arms = gather([*folders, other, again]).arms
    assert [(arm.label, arm.seeds) for arm in arms] == [("run0", [0, 1]), ("other", [0]), ("again", [1])]


def test_points_of_a_sweep_are_arms_without_their_seeds(tmp_path, config):
    for iterations in (2, 10):
        for seed in (0, 1):
            point = vary(config, seed=seed, cai={"iterations": iterations})
            write_run(tmp_path / "s" / f"cai.iterations={iterations},seed={seed}", point, some_rows(4))
    (tmp_path / "s" / "cai.iterations=25,seed=0").mkdir()
    (tmp_path / "s" / "cai.iterations=25,seed=0" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "s" / "sweep.yaml").write_text("seed: 0\n")
    found = gather([tmp_path / "s"])
    assert [arm.label for arm in found.arms] == ["cai.iterations=2", "cai.iterations=10"]
    assert [path.name for path in found.unfinished] == ["cai.iterations=25,seed=0"]
    assert "cai.iterations=25,seed=0: begun and not finished" in page_of([tmp_path / "s"])


def test_a_table_that_was_interrupted_is_shown_as_far_as_it_is(tmp_path, config):
    """Of five runs that were planned one is finished, one begun, three are not there; `table.yaml` comes last."""
    folder = tmp_path / "t"
    arms = [f"seed0/{arm}" for arm in ("base", "fl", "fl+filter", "fl+cai", "fl+filter+cai")]
    write_planned(folder, [folder / arm for arm in arms])
    write_run(folder / "seed0" / "base", config, some_rows(4))
    (folder / "seed0" / "fl").mkdir()
    (folder / "seed0" / "fl" / "config.yaml").write_text("seed: 0\n")
    found = gather([folder])
    assert [arm.label for arm in found.arms] == ["base"]
    assert found.unfinished == [folder / "seed0" / "fl"]
    assert found.not_begun == [folder / arm for arm in arms[2:]]
    page = " ".join(Page(page_of([folder])).texts)
    assert "seed0/fl: begun and not finished" in page
    assert "not begun yet: 3 runs, " in page and f"{folder}/seed0/fl+filter+cai" in page
    (folder / "seed0" / "base" / "summary.json").unlink()
    with pytest.raises(InputError, match=r"no finished run there \(2 begun\)"):
        gather([folder])


def test_no_more_than_some_runs_that_are_not_there_are_named():
    missing = [Path(f"s/{i}") for i in range(10)]
    names = "s/0, s/1, s/2, s/3, s/4, s/5, s/6, s/7"
    assert not_begun_note(Gathered([], [], missing)) == [f"not begun yet: 10 runs, {names} and 2 more"]
    assert not_begun_note(Gathered([], [], missing[:1])) == ["not begun yet: 1 run, s/0"]
    assert not_begun_note(Gathered([], [], [])) == []


@pytest.mark.parametrize("wrong", ["nowhere", "empty"])
def test_what_is_no_run_is_refused(tmp_path, wrong):
    (tmp_path / "empty").mkdir()
    says = {"nowhere": "no such folder; must be a run, a table or a sweep", "empty": "is no run, no table and no sweep"}
    with pytest.raises(InputError, match=says[wrong]):
        write_report([tmp_path / wrong])
    assert not (tmp_path / wrong / "report.html").exists()


def test_bad_wishes_are_refused_and_nothing_is_written(table, tmp_path):
    with pytest.raises(
        InputError, match=r"^--reference fl\+cia: no such arm; did you mean fl\+cai\?; must be one of fl, "
    ):
        write_report([table], Wanted(reference="fl+cia"))
    with pytest.raises(InputError, match="^--output .*: is a folder"):
        write_report([table], Wanted(output=tmp_path))
    with pytest.raises(InputError, match="^--output .*: its folder is not there"):
        write_report([table], Wanted(output=tmp_path / "not" / "page.html"))
    assert not (table / "report.html").exists()


def test_pictures_go_beside_the_page(table, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_panel", lambda path, panel, synthetic: path.write_bytes(panel.title.encode()))
    page, *pictures = write_report([table], Wanted(output=tmp_path / "page.html", png=True, answers=0))
    assert page == tmp_path / "page.html" and len(pictures) == len({*pictures}) >= 10
    assert all(picture.parent == tmp_path / "page-pictures" for picture in pictures)
    assert "rates-01-harmless-rule.png" in {picture.name for picture in pictures}


def test_pictures_of_long_and_equal_titles_and_of_a_page_without_a_suffix(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_panel", lambda path, panel, synthetic: path.write_text(panel.title))
    axis = named_axis(["x"])
    titles = ["k" * 476, "k" * 476, "same", "same"]
    sections = [Section("Data", panels=[Panel(title, axis, axis) for title in titles])]
    page = tmp_path / "report"
    page.write_text("the page")
    written = report._write_pictures(page, sections, synthetic=False)
    assert len({*written}) == 4 and [path.read_text() for path in written] == titles
    assert page.read_text() == "the page" and written[2].name == "data-03-same.png"
