"""Train and evaluate every fold, and write one table.

    run      all folds (and in setting 2 all groups of test organs) of one method -> <output_dir>
    compare  several finished runs side by side -> one table, one report

<output_dir>/settings.json                     all settings; a run with other settings is refused
<output_dir>/[<group>/]fold_<k>/seed_<s>/      a unit: one training, then one evaluation per protocol
    model.pt, log/, log.txt                        its weights, losses and printed output
    paper/, volume/                                its cases.csv, masks and pictures
<output_dir>/cases.csv, table.md, report.html  all cases, the table, the page to look at
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from bundle.command_line.checks import check_positive_integers, refuse_file, switch
from bundle.data.exclusion import checked_setting
from bundle.data.scans import fold_of, list_scans
from bundle.evaluation.cross_validation.processes import Processes, default_jobs, ending_together
from bundle.evaluation.cross_validation.results import described_by, read_settings, refuse_other_settings, write_results
from bundle.evaluation.cross_validation.workflow import PROTOCOLS, Unit, Workflow, method_name
from bundle.files import alone_in
from tqdm import tqdm

NUM_FOLDS = 5


class CrossValidation:
    r"""Cross-validation: every row of a table in one command.

    python -m bundle cross_validation run --configs data_chaos_t2,preset_fast_cpu \
        --dataset_dir <dir> --output_dir <dir>
    python -m bundle cross_validation compare --runs <dir>,<dir> --output_dir <dir>
    """

    def run(
        self,
        configs: str | Sequence[str],
        dataset_dir: str,
        output_dir: str,
        setting: Any = 1,
        folds: int | Sequence[int] | None = None,
        seeds: int | Sequence[int] = 1234,
        method: str | None = None,
        untrained: bool = False,
        weights_of: str | None = None,
        jobs: int | None = None,
        **keys: Any,
    ) -> None:
        """Train and evaluate every fold; finished units are not repeated.

        Args:
            configs: Overrides after configs/train.yaml, by name or path: data_chaos_t2,preset_fast_cpu.
            dataset_dir: Folder with images/ and labels/.
            output_dir: Where all results go. Rerun the command to resume a run that was stopped.
            setting: 1: all training slices; 2: those that show no test organ; legacy_all: those that do not show all.
                In 2 and legacy_all each of the config's groups is trained for and evaluated.
            folds: Folds to run, such as 0 or [0,1]; all five if not set.
            seeds: Random seeds of the trainings, such as 1234 or [1,2,3].
            method: Name of the method in tables; ALPNet and its presets if not set.
            untrained: Evaluate the initial weights, without training.
            weights_of: Evaluate the weights of another run, given by its output folder, fold by fold, without training.
                For presets that change the evaluation only, such as preset_annotate_one.
            jobs: Units at the same time; if not set, one per GPU, or else one per core.
            **keys: Any key of the configs, such as --max_epochs 100.
        """
        for key in {"fold", "seed"} & set(keys):
            raise ValueError(f"--{key} is set by each unit of a cross-validation. Choose with --{key}s, such as [0,1].")
        root = Path(output_dir)
        names = configs.split(",") if isinstance(configs, str) else list(configs)
        trained = None if weights_of is None else Path(weights_of)
        keys = {"dataset_dir": str(dataset_dir), **keys}
        workflow = Workflow(names, keys, checked_setting(setting), switch(untrained), trained)
        units = list(_units(root, workflow, _numbers(folds, range(NUM_FOLDS)), _numbers(seeds, ())))
        if trained is not None:
            _check_weights(trained, units)
        # "a, b" on the command line becomes a tuple.
        given = ", ".join(map(str, method)) if isinstance(method, tuple) else method
        method = str(given or method_name(names, workflow.untrained, trained))
        _run(root, workflow, units, default_jobs(len(units)) if jobs is None else jobs, method)

    def compare(
        self, runs: str | Sequence[str], output_dir: str, title: str = "Cross-validation", pictures: bool = True
    ) -> None:
        """Put finished runs side by side in one table and one report.

        Args:
            runs: Output folders of ``run``, separated by commas.
            output_dir: Where cases.csv, table.md and report.html go.
            title: Title of the report.
            pictures: Whether the report shows the best, median and worst case; these are patients' images.
        """
        roots = [Path(name) for name in (runs.split(",") if isinstance(runs, str) else runs)]
        for root in roots:
            if not (root / "settings.json").is_file():
                raise FileNotFoundError(
                    f"{root} must be the output folder of a cross-validation, but has no settings.json. Correct --runs."
                )
        described = [read_settings(root) for root in roots]
        found = [{**one["settings"], **one.get("values", {})} for one in described]
        shared = {key: value for key, value in found[0].items() if all(one.get(key) == value for one in found)}
        own = {
            f"{one['method']}, setting {one['setting']}: {key}": value
            for one in found
            for key, value in one.items()
            if key not in shared and key not in ("method", "setting")
        }
        # An expression that all runs share tells a reader nothing; one that differs tells that they do.
        values = {key: value for key, value in shared.items() if not set("$@%") & set(str(value))}
        write_results(roots, Path(output_dir), title, {**own, **values}, switch(pictures))


def _run(root: Path, workflow: Workflow, units: Sequence[Unit], jobs: int, method: str) -> None:
    """Run the units and write the tables.

    Raises:
        ValueError: If ``jobs`` or the folder is wrong, before any work; if units failed, after all others are done.
    """
    check_positive_integers(jobs=jobs)
    described = described_by(workflow, list_scans(workflow.get("dataset_dir")), method)
    refuse_file(root)
    with alone_in(root):
        refuse_other_settings(root / "settings.json", described)
        failed = _work(workflow, units, jobs, method)
        write_results([root], root, f"Cross-validation: {method}", described["values"])
    if failed:
        lines = "\n  ".join(f"{unit.name}: see {unit.folder / 'log.txt'}" for unit in failed)
        raise ValueError(
            f"{len(failed)} of {len(units)} units failed; the others are done, and are in the tables:\n  {lines}\n"
            "Fix the cause and rerun the command."
        )


def _units(root: Path, workflow: Workflow, folds: Sequence[int], seeds: Sequence[int]) -> Iterator[Unit]:
    """Yield all units; a fold that the data do not allow is refused before any work."""
    annotated = [scan for scan in list_scans(workflow.get("dataset_dir")) if "label" in scan]
    scans = {fold: len(fold_of(annotated, fold, NUM_FOLDS)[0]) for fold in folds}
    for seed in seeds:
        for group, organs in _groups(workflow).items():
            for fold in folds:
                yield Unit(root, group, organs, fold, seed, scans[fold])


def _check_weights(trained: Path, units: Sequence[Unit]) -> None:
    """Refuse a run whose weights are missing, before any work."""
    missing = [unit.name for unit in units if not (trained / unit.name / "model.pt").is_file()]
    if missing:
        raise FileNotFoundError(
            f"weights_of {trained} has no model.pt of {', '.join(missing)}. Give the output folder of a finished "
            "cross-validation with these folds, seeds and this setting."
        )


def _groups(workflow: Workflow) -> dict[str, dict[str, int]]:
    """Return the organs that are evaluated together, by the name of their group; in setting 1 all are together."""
    organs, groups = dict(workflow.get("organs")), workflow.get("groups")
    if workflow.get("setting") == 1:
        return {"": organs}
    if not groups:
        raise ValueError(
            "setting 2 needs groups of test organs in the config, such as groups: {kidneys: [right_kidney, "
            "left_kidney]}: each group is left out of its own training."
        )
    if unknown := [name for names in groups.values() for name in names if name not in organs]:
        raise ValueError(
            f"groups must name organs ({', '.join(organs)}), got {', '.join(unknown)}. Correct the config."
        )
    return {group: {name: organs[name] for name in names} for group, names in groups.items()}


def _work(workflow: Workflow, units: Sequence[Unit], jobs: int, method: str) -> list[Unit]:
    """Run the unfinished units, ``jobs`` at a time, with a progress bar; return those that failed."""
    waiting = [unit for unit in units if not unit.done]
    print(f"{len(units) - len(waiting)} of {len(units)} units are done; {jobs} at a time for the others", flush=True)
    if not waiting:
        return []
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    processes = Processes()
    cache_dir = units[0].root / "cache"

    def work(unit: Unit) -> bool:
        slot = slots.get()
        try:
            return processes.run_all(workflow.commands(unit, cache_dir, method), unit.folder, slot, jobs)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(work, unit): unit for unit in waiting}
        try:
            with ending_together():
                _watch(futures, workflow.steps)
        except BaseException:
            processes.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return [unit for future, unit in futures.items() if not future.result()]


def _watch(futures: Mapping[Future[bool], Unit], steps: int) -> None:
    """Show the training steps and the segmented scans of all units until they are done."""
    whole = {future: max(steps + len(PROTOCOLS) * unit.scans, 1) for future, unit in futures.items()}
    with tqdm(total=sum(whole.values()), desc="cross-validation", unit="step or scan", mininterval=2.0) as bar:
        while True:
            done = [future for future in futures if future.done()]
            bar.n = sum(whole[f] if f in done else min(u.step, steps) + u.segmented for f, u in futures.items())
            bar.set_postfix_str(f"{len(done)} of {len(futures)} units")
            if len(done) == len(futures):
                return
            time.sleep(1)


def _numbers(value: int | Sequence[int] | None, default: Sequence[int]) -> list[int]:
    numbers = list(default) if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if not numbers or not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise ValueError(f"folds and seeds must be whole numbers, got {value!r}. Write, for example, 0 or [0,1].")
    return list(dict.fromkeys(numbers))
