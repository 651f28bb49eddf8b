"""The pipeline of the UI tests: every type of artifact, a loop, a condition, a log that grows, and a step that can fail.

    kfp dsl compile --py report.py --output report.yaml
"""

from typing import Dict, List

from kfp import dsl
from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Markdown, Metrics, Output


@dsl.component(base_image="python:3.11")
def measure(
    label: str, rate: float, table: Output[Dataset], metrics: Output[Metrics], classes: Output[ClassificationMetrics]
) -> float:
    """Measures a label."""
    rows = [(i, round(rate * i, 3)) for i in range(1, 6)]
    with open(table.path, "w") as file:
        file.write("step,value\n" + "".join(f"{step},{value}\n" for step, value in rows))
    table.metadata["rows"] = len(rows)
    metrics.log_metric("score", round(rate + len(label) / 100, 4))
    classes.log_confusion_matrix(["cat", "dog", "bird"], [[48, 2, 0], [5, 41, 4], [1, 0, 19]])
    classes.log_roc_curve([0.0, 0.05, 0.2, 0.5, 1.0], [0.0, 0.6, 0.86, 0.97, 1.0], [1.0, 0.9, 0.6, 0.3, 0.0])
    print(f"measured {label}")
    return rate + len(label) / 100


@dsl.component(base_image="python:3.11")
def write(
    words: str,
    scores: List[float],
    options: Dict,
    tables: Input[List[Dataset]],
    page: Output[HTML],
    notes: Output[Markdown],
) -> str:
    """Writes a report in two forms."""
    with open(page.path, "w") as file:
        file.write(
            "<style>h1 { color: rgb(11, 110, 153); font: 600 20px sans-serif }</style><h1>Report</h1><p id=words></p>"
            f"<script>document.getElementById('words').textContent = 'scripted: ' + {words!r}</script>"
        )
    with open(notes.path, "w") as file:
        file.write(f"# Notes\n\nThe scores of **{words}**:\n\n" + "".join(f"- `{score:.2f}`\n" for score in scores))
    return words.upper()


@dsl.component(base_image="python:3.11")
def count(lines: int, fail: bool) -> int:
    """Writes a line now and then, and fails at the end if it should."""
    import time

    for i in range(lines):
        print(f"line {i + 1} of {lines}", flush=True)
        time.sleep(0.2)
    if fail:
        raise SystemExit("it was asked to fail")
    return lines


@dsl.component(base_image="python:3.11")
def praise(score: int) -> str:
    """Runs only after many lines."""
    return f"{score} lines!"


@dsl.pipeline(name="report", description="Measures labels and writes a report")
def report(
    words: str,
    labels: List[str] = ["cats", "dogs", "birds"],
    rate: float = 0.5,
    lines: int = 3,
    fail: bool = False,
    options: Dict = {"color": "blue"},
):
    """Measures labels and writes a report.

    Args:
        words: The title of the report.
        labels: What is measured, each by a step of its own.
        rate: The rate that the scores grow with.
        lines: Lines that are logged, five of them in a second.
        fail: Whether the counting step fails.
        options: Settings that nothing depends on.
    """
    with dsl.ParallelFor(items=labels) as label:
        measured = measure(label=label, rate=rate)
    scores, tables = dsl.Collected(measured.outputs["Output"]), dsl.Collected(measured.outputs["table"])
    write(words=words, scores=scores, options=options, tables=tables)
    counted = count(lines=lines, fail=fail).set_caching_options(False)
    with dsl.If(counted.output > 100):
        praise(score=counted.output)
