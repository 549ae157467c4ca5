"""pgembed recall."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pgembed.cli import options, output
from pgembed.errors import PgembedError
from pgembed.postgres.connection import connect

_LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
_STATEMENT = (
    "SELECT filter_shape, queries, recall, worst, short, ms, exact_ms "
    "FROM pgembed.recall(%(embedding)s, %(k)s::int, %(sample)s::int, "
    "%(filter_json)s::jsonb, %(workload)s::text::regclass, %(mode)s, %(recall_target)s)"
)


@click.command()
@click.argument("embedding")
@options.dsn
@options.as_json
@click.option("-k", type=int, default=10, show_default=True, help="Rows a search.")
@click.option("--sample", type=int, default=100, show_default=True, help="Queries.")
@click.option("--filter", "filter_json", help="JSON: a filter, or a list of them.")
@click.option("--workload", help="Table of queries: embedding and optionally filter.")
@click.option("--mode", default="auto", show_default=True, help="auto, exact or index.")
@click.option(
    "--recall",
    "recall_target",
    type=float,
    default=0.99,
    show_default=True,
    help="The recall that the searches ask for.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw recall against latency into FILE, for several recalls asked for.",
)
def recall(
    embedding: str, dsn: str | None, as_json: bool, plot: Path | None, **arguments: Any
) -> None:
    """Measure the recall of searches against exact ones, on the live table.

    One row per shape of filter: mean and worst recall, answers that came back short,
    and the median milliseconds of the search and of the exact one. Without a workload
    the queries are vectors of the table, which flatters: each finds itself.
    """
    options.check_filter(arguments["filter_json"])
    figure = _figure(plot) if plot else None
    parameters = {**arguments, "embedding": embedding}
    with connect(options.settings(dsn=dsn).dsn, purpose="recall") as connection:
        rows = output.query(connection, _STATEMENT, parameters)
        curve = [
            (asked, output.query(connection, _STATEMENT, parameters | asked))
            for asked in ({"recall_target": level} for level in _LEVELS if plot)
        ]
    output.show(rows, as_json=as_json, empty="no vectors to measure with")
    if plot:
        _draw(figure, embedding, curve, plot)


def _figure(file: Path) -> Any:
    """Return an empty figure that can be drawn into the file, or raise PgembedError."""
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise PgembedError(
            "--plot needs matplotlib: pip install 'pgembed-vector[plot]'"
        ) from None
    figure = figures.Figure(figsize=(7, 5), layout="constrained")
    formats = figure.canvas.get_supported_filetypes()
    if file.suffix and file.suffix[1:].lower() not in formats:
        raise PgembedError(
            f"cannot write {file}: its name must end in one of "
            f"{', '.join(sorted(formats))}"
        )
    with _writing(file):
        made = not file.exists()
        file.open("ab").close()
        if made:
            file.unlink()
    return figure


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PgembedError(
            f"cannot write {file}: {error.strerror or error}; "
            f"name another file for --plot"
        ) from error


def _draw(
    figure: Any,
    embedding: str,
    curve: Sequence[tuple[Mapping[str, float], Sequence[Mapping[str, Any]]]],
    file: Path,
) -> None:
    axes = figure.subplots()
    shapes: dict[str, list[tuple[float, float]]] = {}
    for _, rows in curve:
        for row in rows:
            point = (row["ms"], row["recall"])
            shapes.setdefault(json.dumps(row["filter_shape"]), []).append(point)
    for shape, points in shapes.items():
        ms, recalls = zip(*sorted(points), strict=True)
        axes.plot(ms, recalls, marker="o", label=shape)
    axes.set(xlabel="median milliseconds", ylabel="recall")
    # Dollars in names and filters are no formulas.
    axes.set_title(embedding, parse_math=False)
    for text in axes.legend(fontsize="small").get_texts():
        text.set_parse_math(False)
    with _writing(file):
        # Without a format, the name of a file without a suffix would get one.
        figure.savefig(file, format=file.suffix[1:].lower() or "png")
