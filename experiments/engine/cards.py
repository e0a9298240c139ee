"""Model cards: beside every unlearned checkpoint, what it is and what it is not.

``checkpoints/METHOD/seed_N.md`` is Markdown under a front matter of YAML, each of whose
values is JSON as well. What was forgotten is told by hashes; no data stand in it.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping
from typing import Any

from experiments.engine.store import Store
from experiments.engine.task import BASELINES, Page, Task
from experiments.files import to_json, write_atomically
from experiments.reporting import tables
from experiments.reporting.summary import Summary, number


def write(store: Store, task: Task, page: Page, estimates: Summary) -> None:
    """Writes the card of every unlearned model that the study keeps.

    Args:
      store: the finished study.
      task: its kind of experiment.
      page: what its report says.
      estimates: its table.
    """
    for row in store.rows:
        path = store.checkpoint_path(row["method"], row["seed"])
        if row["status"] == "ok" and row["method"] not in BASELINES and path.exists():
            facts = _facts(store, task, row, estimates)
            text = _front(facts) + _body(
                facts, store.folder.name, task, page, estimates
            )
            write_atomically(path.with_suffix(".md"), text.encode())


def _facts(
    store: Store, task: Task, row: Mapping[str, Any], estimates: Summary
) -> dict[str, Any]:
    """All that the card tells machines."""
    method, seed, results = row["method"], row["seed"], store.results
    entry, retrain = estimates.get(method), estimates.get(estimates.reference)
    forgotten = store.kept(f"forgotten/seed_{seed}.txt").encode()
    assert entry is not None  # it has a row
    numbers = {
        column.key: {
            "label": column.label,
            "unit": column.unit,
            "this_model": number(row.get(column.key)),
            "mean": entry.values[column.key].mean,
            "half_width": entry.values[column.key].half_width,
            "retrain": retrain.values[column.key].mean if retrain else None,
        }
        for column in estimates.columns
    }
    return {
        "library_name": "mujax",
        "tags": ["machine-unlearning"],
        "method": method,
        "paper": task.notes[method].paper,
        "seed": seed,
        "forgotten": {
            "examples": sum(line.isdigit() for line in forgotten.splitlines()),
            "sha256": hashlib.sha256(forgotten).hexdigest(),
        },
        "input": results["config"]["input"],
        "recipe": results["config"]["recipes"].get(method, {}),
        "interval": {"level": estimates.level, "seeds": entry.seeds},
        "numbers": numbers,
        "noise_floor": estimates.noise_floor.mean,
        "command": shlex.join(results["config"]["command"]),
        "versions": results["environment"],
    }


def _front(facts: Mapping[str, Any]) -> str:
    lines = (
        f"{key}: {json.dumps(json.loads(to_json(value)))}"
        for key, value in facts.items()
    )
    return "\n".join(["---", *lines, "---", ""])


def _body(
    facts: Mapping[str, Any], folder: str, task: Task, page: Page, estimates: Summary
) -> str:
    """All that the card tells people."""
    note, forgotten = task.notes[facts["method"]], facts["forgotten"]
    lines = [
        "| | This model | Mean over seeds | Retrain |",
        "| :-- | --: | --: | --: |",
    ]
    for column in estimates.columns:
        told = facts["numbers"][column.key]
        mine, mean, theirs = (
            tables.format_number(told[key], column)
            for key in ("this_model", "mean", "retrain")
        )
        half = tables.format_number(told["half_width"], column, missing="")
        mean += f" ± {half}" if half else ""
        unit = f" ({column.unit})" if column.unit else ""
        lines.append(f"| {column.label}{unit} | {mine} | {mean} | {theirs} |")
    table = "\n".join(lines)
    limits = "\n".join(f"- {limit}" for limit in _limits(facts, estimates))
    paper = f" Paper: {note.paper}." if note.paper else ""
    return f"""
# {note.label}, seed {facts["seed"]}

{page.title}. {page.description}

{note.label}: {note.one_line}{paper}

## What was forgotten

{forgotten["examples"]} training examples, those of earlier requests included. The list
of their indices is kept with the study; neither it nor data stand here. Its SHA-256:
`{forgotten["sha256"]}`

## Numbers

{table}

Closer to Retrain is better, higher is not. Intervals are Student t of
{100 * estimates.level:g} % over the {facts["interval"]["seeds"]} seeds that ended well.

## Limits

{limits}

## Made by

```
{facts["command"]}
```

The recipe and the versions are in the front matter; all runs are in `results.json` of
`{folder}`.
"""


def _limits(facts: Mapping[str, Any], estimates: Summary) -> list[str]:
    """What the numbers do not say."""
    entry, floor = estimates.get(facts["method"]), facts["noise_floor"]
    gap = facts["numbers"].get(estimates.gap, {}).get("mean")
    limits = [
        "The numbers are of this forget set, these data and this recipe; another "
        "request has others.",
        "They are no proof that nothing remains: no audit over a bank of models stands "
        "behind this card (`python -m experiments.audit` makes one).",
        "Caches, backups and older checkpoints keep what this model forgot.",
    ]
    if facts["interval"]["seeds"] < 2:
        limits.append("One seed: how much another would differ is not known.")
    if entry is not None and entry.diverged:
        limits.append(f"With other seeds {entry.diverged} runs diverged.")
    if gap is not None and floor is not None:
        within = "within" if gap <= floor else "above"
        limits.append(
            f"Its distance to Retrain, {gap:.2f}, is {within} the noise floor of "
            f"{floor:.2f}, the distance of two Retrains."
        )
    return limits
