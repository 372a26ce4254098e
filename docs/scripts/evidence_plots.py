"""The plot of evidence.md's tables, drawn from the tables themselves: scores against what trains in the backbone.

``python docs/scripts/evidence_plots.py`` draws it anew; a test sees that it is the tables'.
"""

import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import matplotlib
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

PAGE = Path(__file__).resolve().parents[1] / "evidence.md"
PLOT = PAGE.parent / "images/evidence.svg"
_TRAINS = "trains, backbone"
_COLUMNS = 2  # of panels
_SIZE = (5.0, 3.4)  # of a panel, in inches


class Result(NamedTuple):
    """A row of a table."""

    method: str
    trains: int
    mean: float
    deviation: float


class Table(NamedTuple):
    """A table of a comparison: the heading above it, the name of its score, and the methods."""

    heading: str
    metric: str
    results: list[Result]


def tables(markdown: str) -> Iterator[Table]:
    """The tables of a page that have a mean, its deviation, and how much of the backbone trains.

    Args:
        markdown: The page.
    """
    heading, rows = "", []
    tokens = MarkdownIt().enable("table").parse(markdown)
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = tokens[i + 1].content
        elif token.type == "table_open":
            rows = []
        elif token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(tokens[i + 1].content)
        elif token.type == "table_close":
            names, *values = rows
            means = [name for name in names if name.endswith(", mean")]
            if len(means) == 1 and _TRAINS in names:
                found = [dict(zip(names, row, strict=True)) for row in values]
                yield Table(heading, means[0].removesuffix(", mean"), [_result(row, means[0]) for row in found])


def _result(row: dict[str, str], mean: str) -> Result:
    fraction = "" if row.get("fraction", "1") == "1" else f", {row['fraction']} of the data"
    deviation = row.get("deviation", "")
    numeric = re.fullmatch(r"[\d.]+", deviation) is not None
    return Result(
        row["method"] + fraction,
        int(row[_TRAINS].replace(",", "")),
        float(row[mean]),
        float(deviation) if numeric else 0.0,
    )


def draw(drawn: list[Table]) -> str:
    """The tables as panels of one SVG: means with a deviation each, what trains on a logarithmic axis from 0.

    Args:
        drawn: At least one.

    Raises:
        ValueError: There is none: the page's tables have other columns than they had.
    """
    if not drawn:
        raise ValueError(f"{PAGE.name} has no table with the columns '..., mean' and '{_TRAINS}'")
    rows = -(-len(drawn) // _COLUMNS)
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": PLOT.name, "font.size": 9}):
        figure = Figure((_COLUMNS * _SIZE[0], rows * _SIZE[1]), layout="constrained")
        for i, table in enumerate(drawn):
            axes = figure.add_subplot(rows, _COLUMNS, i + 1)
            for result in table.results:
                axes.errorbar(result.trains, result.mean, result.deviation, fmt="o", capsize=3)
                axes.annotate(result.method, (result.trains, result.mean), (5, 5), textcoords="offset points")
            axes.set_xscale("symlog", linthresh=1e4)
            axes.set(title=table.heading, xlabel="parameters of the backbone that train", ylabel=table.metric)
            axes.margins(x=0.15)
            axes.grid(alpha=0.3)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def plot() -> str:
    """The plot of the page as it is."""
    return draw(list(tables(PAGE.read_text())))


if __name__ == "__main__":
    PLOT.write_text(plot())
