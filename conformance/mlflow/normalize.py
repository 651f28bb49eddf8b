"""Masks what differs between any two runs of a scenario: ids, times, ports and random names.

Equal ids become equal masks, numbered in the order of their appearance, so that the id of another run remains a difference. Invariant:
the result depends on the meaning of a response alone, so that recording twice gives the same bytes.
"""

import re

# Rewrites that remove differences without meaning, each with its reason.
REWRITES = [
    (re.compile(r"\b1[789]\d{11}\b"), "<time>", "times"),
    (re.compile(r"(already exists\.) Error: .*", re.S), r"\1", "MLflow quotes its SQL statement"),
    (re.compile(r"\(sqlite3\.\w+\).*", re.S), "<sql>", "MLflow quotes its SQL statement"),
    (re.compile(r"http://127\.0\.0\.1:\d+"), "<server>", "ports"),
    (re.compile(r"\bport=\d+"), "port=<port>", "ports"),
    (re.compile(r"(?:API request to endpoint \S+ failed with error code \d+ != 200\. Response body: ')(.*)'$", re.S), r"\1", "the client's wrapping"),
    (re.compile(r"'\{(.*?)\}'?"), lambda m: "{" + ", ".join(sorted(m.group(1).split(", "))) + "}", "Python sets have no order"),
    (re.compile(r"\{((?:'[^']*'(?:, )?)+)\}"), lambda m: "{" + ", ".join(sorted(m.group(1).split(", "))) + "}", "Python sets have no order"),
]
# A scenario uses the id of zeros for what does not exist.
ID = re.compile(r"\b(?!0{32})[0-9a-f]{32}\b")
NAME = re.compile(r"(?<![\w-])[a-z]+-[a-z]+-\d{1,3}(?![\w-])")
EXPERIMENT = re.compile(r"(mlflow-artifacts:/|[Ee]xperiment(?: with)? id[ =]|[Ee]xperiment )(\d+)\b")


class Normalizer:
    """Masks the result of one scenario. Its experiments have the ids after `first` up to `last`."""

    def __init__(self, scenario, first, last):
        self.own_names, self.first, self.last = scenario.replace("_", "-") + "-", first, last
        self.numbers = {}

    def __call__(self, value, key=None):
        if isinstance(value, dict):
            masked = {self(k): self(v, k) for k, v in sorted(value.items())}
            assert len(masked) == len(value), f"keys cannot be distinguished without their ids: {sorted(value)}"
            return masked
        if isinstance(value, list):
            return [self(v) for v in sorted_by_key(value)]
        if isinstance(value, int) and not isinstance(value, bool) and 1_700_000_000_000 < value < 2_000_000_000_000:
            return "<time>"
        if isinstance(value, str):
            for pattern, replacement, _ in REWRITES:
                value = pattern.sub(replacement, value)
            value = ID.sub(lambda m: self.number("id", m.group()), value)
            value = NAME.sub(lambda m: m.group() if m.group().startswith(self.own_names) else self.number("name", m.group()), value)
            if key == "experiment_id" and value.isdigit():
                return self.experiment(value)
            return EXPERIMENT.sub(lambda m: m.group(1) + self.experiment(m.group(2)), value)
        return value

    def number(self, kind, value):
        known = self.numbers.setdefault(kind, {})
        return f"<{kind} {known.setdefault(value, len(known) + 1)}>"

    def experiment(self, id):
        """Experiments are numbered from the first of the scenario, because the ids depend on how many scenarios ran before."""
        return f"<experiment {int(id) - self.first}>" if self.first < int(id) <= self.last else id


def sorted_by_key(items):
    """Sorts a list of objects with unique keys, because neither server guarantees their order."""
    if items and all(isinstance(i, dict) and isinstance(i.get("key"), str) for i in items) and len({i["key"] for i in items}) == len(items):
        return sorted(items, key=lambda i: i["key"])
    return items
