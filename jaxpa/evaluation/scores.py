"""Measurements as tables: a mean and a confidence interval for every setting and metric."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Score(NamedTuple):
    """One picture and its metrics."""

    setting: str
    case: str
    prompt: str
    seed: int
    values: dict[str, float]


class Interval(NamedTuple):
    """A mean and its 95% confidence interval, of `n` values."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float], groups: Sequence[Any] | None = None, resamples: int = 1000) -> Interval:
    """Percentile bootstrap of a mean. NaN values are left out.

    groups: values of one group (pictures of one subject) are drawn together, since they are not independent.
    """
    x = np.asarray(values, np.float64)
    kept = np.isfinite(x)
    x, labels = x[kept], np.asarray(groups if groups is not None else range(len(x)), object)[kept]
    if not x.size:
        return Interval(math.nan, math.nan, math.nan, 0)
    index: Any = {label: k for k, label in enumerate(dict.fromkeys(labels))}
    member = np.arange(x.size) if len(index) == 1 else np.array([index[label] for label in labels])
    sums, counts = np.bincount(member, x), np.bincount(member)
    drawn = np.random.default_rng(0).integers(len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(x.mean()), float(low), float(high), x.size)


Table = dict[str, dict[str, Interval]]


def summarise(scores: Sequence[Score]) -> Table:
    """A row for each setting, in the order of the scores; a column for each metric. Subjects are drawn whole."""
    columns = list(dict.fromkeys(name for score in scores for name in score.values))
    table: Table = {}
    for label in dict.fromkeys(score.setting for score in scores):
        rows = [score for score in scores if score.setting == label]
        values = {name: [score.values.get(name, math.nan) for score in rows] for name in columns}
        table[label] = {name: interval(each, [score.case for score in rows]) for name, each in values.items()}
    return table


def markdown(table: Table, digits: int = 2) -> str:
    """The table as Markdown: mean (half the interval's width)."""
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    lines = ["| setting | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label, row in table.items():
        cells = [
            f"{each.mean:.{digits}f} ± {(each.high - each.low) / 2:.{digits}f}" if each.n else ""
            for each in (row.get(name, interval([])) for name in columns)
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def csv_text(scores: Sequence[Score]) -> str:
    """Every picture's metrics, a line each."""
    columns = list(dict.fromkeys(name for score in scores for name in score.values))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["setting", "case", "prompt", "seed", *columns])
    for score in scores:
        values = [score.values.get(name, math.nan) for name in columns]
        writer.writerow([*score[:4], *("" if math.isnan(value) else f"{value:.6g}" for value in values)])
    return out.getvalue()


def json_text(table: Table) -> str:
    """The table as JSON: {setting: {metric: {mean, low, high, n}}}; metrics without a value are left out."""
    rows = {label: {name: each._asdict() for name, each in row.items() if each.n} for label, row in table.items()}
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
