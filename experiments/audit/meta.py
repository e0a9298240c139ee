"""The audit of audits: models whose truth is known, and which audits see it.

A bank of an audit gains the kinds of :mod:`experiments.audit.kinds`, and models that
were trained on a share of what was to be forgotten. Two kinds more are made of answers
alone: an output wrapper and a model that says the same of everything.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from experiments import data
from experiments.audit import audits, pictures, scoring
from experiments.audit import bank as banks
from experiments.audit.bank import Bank
from experiments.audit.kinds import (
    AGAIN,
    ANSWERS,
    BAD,
    CONSTANT,
    GOOD,
    KINDS,
    ROUNDED,
    WRAPPER,
)
from experiments.audit.pool import Pool
from experiments.audit.scoring import Asked
from experiments.classification import recipes
from experiments.classification.config import Config as Study
from experiments.classification.config import resolve_recipes
from experiments.engine import processes
from experiments.engine.bench import Bench
from experiments.engine.store import Store
from experiments.engine.task import BASELINES, ORIGINAL, REFERENCE, inputs
from experiments.errors import say
from experiments.files import to_json, write_atomically
from experiments.reporting import report, summary, tables
from mujax import methods

DOSES = 0.25, 0.5, 0.75
"""Shares of what is to be forgotten that models are trained on."""
DESCRIPTION = (
    "Models whose truth is known: those that never saw what was to be forgotten are "
    "good, the original and what is made of it are bad, however they look. An audit is "
    "worth as much as it tells them apart."
)
READING = """\
Models, Retrains: what an audit looks at for one verdict; all is every Retrain there is.
Tells apart: how often a model (or eight) that forgot nothing scores above one that
never saw it, in %; 50 is chance; the interval is the bootstrap over models within their
kinds. False alarms: how often Retrain otherwise, which is good, lies above what a
twentieth of Retrain again exceeds, in %. Dose: rank correlation of the score with the
share that was trained on. Rounding: agreement before and after the weights are rounded
to eight bits. Halves: rank correlation of the kinds between two halves of the bank.
Flagged: share of each kind above the threshold. Output wrapper and Constant are
controls and count in no other column."""


def audit_audits(
    study: Study, panel: str, pool: Pool, folder: pathlib.Path, command: list[str]
) -> None:
    """Runs what is missing of all kinds and doses, and leaves the report.

    Args:
      study: the models, and how the bench is to run them.
      panel: what the pool is.
      pool: which examples are forgotten.
      folder: where to keep it.
      command: the words that reproduce it.
    """
    training = resolve_recipes(study)["training"]
    numbers = {"training": training} | {
        name: kind.recipe(training) for name, kind in KINDS.items()
    }
    bank = MetaBank(study, pool)
    settings = {
        "command": command,
        "panel": panel,
        "models": study.seeds,
        "precision": study.precision,
        "input": inputs(bank),
        "recipes": {name: dataclasses.asdict(r) for name, r in numbers.items()},
    }
    extendable = ("command", "models")
    notes = recipes.BASELINE_NOTES | {k: kind.note for k, kind in KINDS.items()}
    labels = {name: note.label for name, note in notes.items()}
    order = (*BASELINES, *KINDS)
    doses = _doses(study, pool, folder, settings, extendable, numbers)
    with Store(folder, settings, extendable, order) as store:

        def accuracies() -> summary.Summary:
            return summary.summarise(store.rows, bank.columns, labels=labels)

        def table_so_far():
            return tables.rich_table(accuracies(), pending=order)

        Bench(bank, numbers, store, study).run_all(tuple(KINDS), table_so_far)
        if not processes.leads():
            return
        found = asked(store, pool, order)
        if set(found) != set(order) or len(doses) < len(DOSES):
            say("experiments.audit: too few models ended well to judge the audits.")
            return
        results = judged(found, doses, pool.dataset.num_classes)
        text, answer = table(results), advice(results)
        write_atomically(folder / "meta.md", f"{text}\n\n{answer}\n".encode())
        kept = {k: {**v._asdict(), "flagged": seen} for k, (v, seen) in results.items()}
        write_atomically(folder / "meta.json", to_json(kept).encode())
        report.write(
            folder,
            store.results,
            bank.columns,
            title=f"Audit of audits: {panel}",
            description=f"{DESCRIPTION} {answer}",
            figures=[
                report.Figure(
                    "faithfulness",
                    "How well each audit tells who forgot",
                    "Share of pairs in which a model that forgot nothing scores above "
                    "one that never saw it, with 95 % intervals. 50 is chance.",
                    lambda: pictures.faithfulness(
                        {label: verdict for label, (verdict, _) in results.items()}
                    ),
                )
            ],
            methods=notes,
            texts=(
                report.Text("The audits, audited", text),
                report.Text("How to read it", READING),
            ),
            summary=audits.audited(
                accuracies(), {name: kind.margins for name, kind in found.items()}
            ),
        )
        print(f"{text}\n\n{answer}\nReport: {folder / 'report.html'}")


def asked(store: Store, pool: Pool, names: Sequence[str]) -> dict[str, Asked]:
    """Margins and errors of all kinds, on the models that all of them have."""
    found = {}
    for name, margins in banks.read(store, pool, names).items():
        rows = [store.row(name, int(model)) or {} for model in margins.models]
        errors = [(row["ua"], 100 - row["ra"], 100 - row["ta"]) for row in rows]
        found[name] = Asked(margins, np.array(errors))
    return found


def answered(found: Mapping[str, Asked], num_classes: int) -> dict[str, Asked]:
    """The kinds that are made of other models' answers."""
    original, oracle = found[ORIGINAL], found[REFERENCE]
    ours, theirs = original.margins, oracle.margins
    wrapped = ours._replace(pool=np.where(ours.member, theirs.pool, ours.pool))
    errors = np.concatenate([oracle.errors[:, :1], original.errors[:, 1:]], axis=1)
    silent = {part: np.zeros_like(getattr(ours, part)) for part in banks.PARTS}
    chance = np.full_like(errors, 100 * (1 - 1 / num_classes))
    return {
        WRAPPER: Asked(wrapped, errors),
        CONSTANT: Asked(ours._replace(**silent), chance),
    }


def judged(
    found: Mapping[str, Asked], doses: Mapping[float, Asked], num_classes: int
) -> dict[str, tuple[scoring.Verdict, dict[str, float]]]:
    """Verdict of each candidate, and the share of each kind that it flags."""
    oracle, results = found[REFERENCE], {}
    dosed = {f"dose {share:g}": asked for share, asked in doses.items()}
    everything = {**found, **answered(found, num_classes), **dosed}
    ladder = [(0.0, AGAIN), *zip(doses, dosed, strict=True), (1.0, ORIGINAL)]
    for candidate in scoring.CANDIDATES:
        scores = {
            kind: scoring.units(candidate, asked, oracle)
            for kind, asked in everything.items()
            if kind != REFERENCE
        }
        judgement = scoring.verdict(
            scores,
            bad=BAD,
            good=GOOD,
            null=AGAIN,
            doses=ladder,
            rounded=(ORIGINAL, ROUNDED),
        )
        shown = (*GOOD, *BAD, *ANSWERS)
        results[candidate.label] = judgement, scoring.flagged(scores, shown, AGAIN)
    return results


def advice(judgements: Mapping[str, tuple[scoring.Verdict, Any]]) -> str:
    """What to measure with one model, and with eight, in plain words."""
    areas = {c: judgements[c.label][0] for c in scoring.CANDIDATES}
    best = max(areas.values(), key=lambda v: v.area)
    sentences = []
    for models, what in ((1, "one unlearned model"), (scoring.GROUP, "eight")):
        able = {c: v for c, v in areas.items() if c.models <= models}
        first = max(able, key=lambda c: able[c].area)
        near = [c for c, v in able.items() if v.high >= able[first].low]
        cheapest = min(near, key=lambda c: (c.models, _cost(c)))
        ours = able[cheapest]
        other = "" if cheapest is first else f", as {first.label} does within intervals"
        sentences.append(
            f"With {what}, measure {cheapest.label} ({_needs(cheapest)}): it tells a "
            f"model that forgot from one that did not in {100 * ours.area:.0f} % of "
            f"the pairs ({100 * ours.low:.0f} to {100 * ours.high:.0f}){other}."
        )
    blind = [
        c.label for c, v in areas.items() if v.low <= 0.5 or v.area < best.area - 0.25
    ]
    if blind:
        sentences.append(f"Do not rely on {', '.join(blind)} alone.")
    passed = [
        f"{ANSWERS[kind].label} passes {', '.join(names)}"
        for kind in ANSWERS
        if (names := [k for k, (_, seen) in judgements.items() if seen[kind] <= 0.2])
    ]
    if passed:
        sentences.append(f"{'; '.join(passed)}: no audit of outputs alone is enough.")
    return " ".join(sentences)


def table(judgements: Mapping[str, tuple[scoring.Verdict, dict[str, float]]]) -> str:
    """Both tables, as Markdown."""
    head = "| Audit | Models | Retrains | Tells apart | 95 % | False alarms | Dose | "
    lines = [head + "Rounding | Halves |", "| :-- |" + " --: |" * 8]
    for c in scoring.CANDIDATES:
        v = judgements[c.label][0]
        many = "all" if c.retrains is None else str(c.retrains)
        lines.append(
            f"| {c.label} | {c.models} | {many} | {100 * v.area:.0f} | "
            f"{100 * v.low:.0f} to {100 * v.high:.0f} | {100 * v.false_alarms:.0f} | "
            f"{v.dose:.2f} | {v.rounding:.2f} | {v.halves:.2f} |"
        )
    notes = {name: kind.note.label for name, kind in KINDS.items()}
    notes |= {name: note.label for name, note in ANSWERS.items()}
    notes |= {AGAIN: "Retrain again", ORIGINAL: "Original"}
    kinds = (*GOOD, *BAD, *ANSWERS)
    lines += ["", "| Flagged, % | " + " | ".join(notes[k] for k in kinds) + " |"]
    lines.append("| :-- |" + " --: |" * len(kinds))
    for c in scoring.CANDIDATES:
        seen = judgements[c.label][1]
        cells = " | ".join(f"{100 * seen[kind]:.0f}" for kind in kinds)
        lines.append(f"| {c.label} | {cells} |")
    return "\n".join(lines)


class MetaBank(Bank):
    """A bank with the kinds beside the baselines."""

    def build(self, name: str, recipe: Any, steps: int) -> methods.Method:
        """A kind's method, or a baseline's training."""
        if name in KINDS:
            return KINDS[name].build(recipe, self.losses, steps)
        return super().build(name, recipe, steps)


class DoseBank(Bank):
    """Retrains that saw a share of what was to be forgotten.

    Args:
      config: as of a bank.
      pool: as of a bank.
      share: of each model's half of the pool.
    """

    def __init__(self, config: Study, pool: Pool, share: float):
        self._share = share
        super().__init__(config, pool)
        self.split = self._dosed(0)

    def for_seed(self, seed: int) -> Self:
        """The task of a model."""
        other = copy.copy(self)
        other.split = self._dosed(seed)
        return other

    def _dosed(self, model: int) -> data.Split:
        whole = self.pool.split(model)
        order = data.shuffled(len(whole.forget), model)
        seen = whole.forget[order[: round(self._share * len(whole.forget))]]
        return dataclasses.replace(
            whole,
            forget=np.setdiff1d(whole.forget, seen).astype(np.int32),
            retain=np.sort(np.concatenate([whole.retain, seen])),
        )


def _doses(
    study: Study,
    pool: Pool,
    folder: pathlib.Path,
    settings: Mapping[str, Any],
    extendable: tuple[str, ...],
    numbers: Mapping[str, Any],
) -> dict[float, Asked]:
    """What the models that were trained on a share say, for each share."""
    found = {}
    for share in DOSES:
        task = DoseBank(study, pool, share)
        ours = {**settings, "input": inputs(task), "dose": share}
        with Store(folder / f"dose_{share:g}", ours, extendable) as store:
            bench = Bench(task, numbers, store, study)
            wanted = [(REFERENCE, model) for model in study.seed_numbers]
            bench.run_these(wanted, lambda: "")
            if kinds := asked(store, pool, [REFERENCE]):
                found[share] = kinds[REFERENCE]
    return found


def _cost(candidate: scoring.Candidate) -> float:
    return np.inf if candidate.retrains is None else candidate.retrains


def _needs(candidate: scoring.Candidate) -> str:
    retrains = {None: "many Retrains", 0: "no Retrain", 1: "one Retrain"}
    return retrains[candidate.retrains]
