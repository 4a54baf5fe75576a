"""Titles, datasets and images with characters that Markdown, TeX, pandas or matplotlib read."""

import html
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from passionsr.benchmark.config import ExternalOutputs, load_config
from passionsr.report.bands import measured
from passionsr.report.figures import drawn, plt
from passionsr.report.frames import read_frame
from passionsr.report.rendering import markdown_escape, tex_escape
from passionsr.report.result_pages import table_section
from passionsr.report.scores import SCORES, read_scores
from passionsr.report.table_list import table_spec
from passionsr.utils.files import UserError

TITLES = ["a|b", "*bold*", "_x_", "`code`", "<b>", "&lt;", "[a](b)", "~~no~~", "$x$", "a\\b"]


@pytest.mark.parametrize("title", TITLES)
def test_markdown_means_the_title_and_nothing_else(title):
    import markdown

    text = markdown_escape(title)
    assert html.unescape(text) == title
    page = markdown.markdown(
        f"| a | b |\n|:--|:--|\n| {text} | **{text}** |\n", extensions=["tables"]
    )
    plain, bold = re.findall("<td[^>]*>(.*?)</td>", page)
    assert "<" not in plain
    assert html.unescape(plain) == title
    assert html.unescape(bold) == f"<strong>{title}</strong>"


@pytest.mark.parametrize("title", ["MinMax", "PassionSR w/o LET", "lbq_form: int_zp_stale", "LSQ+"])
def test_plain_titles_stay_as_they_are(title):
    assert markdown_escape(title) == title
    assert drawn(title) == title


def test_tex():
    assert tex_escape("#1_a^b~{c}$d\\e<f>") == (
        r"\#1\_a\^{}b\textasciitilde{}\{c\}\$d\textbackslash{}e\ensuremath{<}f\ensuremath{>}"
    )


@pytest.mark.parametrize("title", ["$x^{$", "_hidden", "50% $\\frac$"])
def test_figures_draw_any_title(title, tmp_path):
    figure, axis = plt.subplots()
    axis.plot([0, 1], [0, 1], label=drawn(title))
    axis.set_title(drawn(title))
    legend = axis.legend()
    figure.savefig(tmp_path / "x.png")
    plt.close(figure)
    assert [text.get_text().strip().replace(r"\$", "$") for text in legend.get_texts()] == [title]


def test_a_page_is_read_back(tmp_path):
    """Bands know a row by its title, from the tables and from the page."""
    rows = pd.DataFrame(
        {"source": "measured here", "dataset": "d", "bits": "W6A6", "method": TITLES, "psnr": 20.5,
         "psnr_lo": 20.0, "psnr_hi": 21.0, "best": "", "noise": ""}
    )  # fmt: skip
    page = tmp_path / "some.md"
    text = table_section(table_spec("table2"), rows)
    page.write_text(f"<!-- table2 -->\n\n{text}\n\n<!-- /table2 -->\n")
    _, numbers = measured(page)
    assert {key.method for key in numbers} == set(TITLES)


NAMES = ["0801", "802", "NA", "null", "nan", "1e5", "None"]


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """A configuration with scores of images whose names look like numbers, or like no value."""
    config = load_config("config/small.yaml")
    monkeypatch.setattr(type(config), "results", property(lambda self: tmp_path))
    config = replace(config, metrics=("psnr",))
    path = tmp_path / "scores" / "fp32" / "psnr.csv"
    path.parent.mkdir(parents=True)
    lines = [f"NA,NA,W32A32,UV,0,NA,{name},psnr,20.5,0" for name in NAMES]
    path.write_text("\n".join([",".join((*SCORES[:4], "seed", *SCORES[4:], "digest")), *lines]))
    return config, path


def test_names_stay_names(scored):
    config, _ = scored
    frame = read_scores(config, "fp32")
    assert list(frame.image) == NAMES
    assert set(frame.method) == set(frame.dataset) == {"NA"}
    assert frame.value.sum() == 20.5 * len(NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CSV file (No columns to parse from file)"),
        (b"\xff\xfe", "not a text file in UTF-8 (byte 1 does not belong there): save it as UTF-8"),
        (b"a,b\n1,2\n", "expected columns image, psnr; without image"),
        (b"image,psnr\na,1\nb,x\n", "'x' given in column psnr, expected a number"),
        (b"image,psnr\na,1,2,3\nb,2,3,4,5,6\n",
         "not a CSV file (Error tokenizing data. C error: Expected 4 fields in line 3, saw 6)"),
        (None, "file not found"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table(tmp_path, content, message):
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_frame(path, ("image", "psnr"), ("psnr",))
    assert str(caught.value) == f"{path}: {message}"


def test_byte_order_mark_line_ends_and_comments(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes("\ufeff# by me\r\nimage,psnr\r\n#1,2.5\r\n0801,\r\n".encode())
    frame = read_frame(path, ("image", "psnr"), ("psnr",), comments=True)
    assert list(frame.image) == ["0801"]
    path.write_bytes("\ufeffimage,psnr\r\n#1,2.5\r\n0801,\r\n".encode())
    frame = read_frame(path, ("image", "psnr"), ("psnr",))
    assert list(frame.image) == ["#1", "0801"]
    assert frame.psnr.isna().tolist() == [False, True]


def test_parity_of_images_that_are_numbers(scored, tmp_path):
    from passionsr.report.parity import compare

    config, _ = scored
    published = tmp_path / "published.csv"
    published.write_text("\n".join(["image,psnr", *(f"{name}.png,20.5" for name in NAMES)]))
    table = compare(read_scores(config, "fp32"), published, ["psnr"])
    assert table.images.tolist() == [len(NAMES)]
    assert ExternalOutputs("x", "x", "d", Path("x")).published is None
