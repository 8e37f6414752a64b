"""Train and evaluate every fold, and write one table that can be trusted.

    run      all folds (and in setting 2 all groups of test organs) of one method -> <output_dir>
    compare  several finished runs side by side -> one table, one report

<output_dir>/settings.json                     what everything was made with; another setting is refused
<output_dir>/[<group>/]fold_<k>/seed_<s>/      a unit: one training, then one evaluation a protocol
    model.pt, log/, log.txt                        its weights, its losses, what it printed
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

from tqdm import tqdm

from bundle.command_line.checks import check_positive_integers, switch
from bundle.data.exclusion import checked_setting
from bundle.data.scans import fold_of, list_scans
from bundle.evaluation.cross_validation.processes import Processes, default_jobs, ending_together
from bundle.evaluation.cross_validation.results import described_by, read_settings, refuse_other_settings, write_results
from bundle.evaluation.cross_validation.workflow import PROTOCOLS, Unit, Workflow, method_name
from bundle.files import alone_in

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
        """Train and evaluate every fold; what is finished already is not done again.

        Args:
            configs: Overrides after configs/train.yaml, by name or path: data_chaos_t2,preset_fast_cpu.
            dataset_dir: Folder with images/ and labels/.
            output_dir: Where all results go. The same command on the same folder goes on where it stopped.
            setting: 1: all training slices; 2: those without any test organ; legacy_all: those without all of them.
                In 2 and legacy_all each of the config's groups is trained for and evaluated.
            folds: Which folds, such as 0 or [0,1]; all five if not said.
            seeds: Seeds of the trainings, such as 1234 or [1,2,3].
            method: What the table calls it; ALPNet and its presets if not said.
            untrained: Do not train: the encoder as it starts.
            weights_of: Do not train: the weights of this output folder of another run, fold by fold. For what changes
                the evaluation only, such as preset_annotate_one.
            jobs: Units at the same time; one a GPU, or one a core, if not said.
            **keys: Any key of the configs, such as --max_epochs 100.
        """
        for key in {"fold", "seed"} & set(keys):
            raise ValueError(f"--{key} is set by each unit of a cross-validation. Choose with --{key}s, such as [0,1].")
        root = Path(output_dir)
        names = configs.split(",") if isinstance(configs, str) else list(configs)
        trained = None if weights_of is None else Path(weights_of)
        workflow = Workflow(
            names, {"dataset_dir": str(dataset_dir), **keys}, checked_setting(setting), switch(untrained), trained
        )
        units = list(_units(root, workflow, _numbers(folds, range(NUM_FOLDS)), _numbers(seeds, ())))
        if trained is not None:
            _check_weights(trained, units)
        # "a, b" on the command line comes as a tuple.
        given = ", ".join(map(str, method)) if isinstance(method, tuple) else method
        method = str(given or method_name(names, workflow.untrained, trained))
        jobs = default_jobs(len(units)) if jobs is None else jobs
        check_positive_integers(jobs=jobs)
        described = described_by(workflow, list_scans(dataset_dir), method)
        if root.exists() and not root.is_dir():
            raise ValueError(f"output_dir {root} is a file. Give a folder.")
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

    def compare(
        self, runs: str | Sequence[str], output_dir: str, title: str = "Cross-validation", pictures: bool = True
    ) -> None:
        """Put finished runs side by side in one table and one report.

        Args:
            runs: Output folders of ``run``, separated by commas.
            output_dir: Where cases.csv, table.md and report.html go.
            title: Of the report.
            pictures: Whether the report shows best, median and worst cases; they are patients' images.
        """
        roots = [Path(name) for name in (runs.split(",") if isinstance(runs, str) else runs)]
        for root in roots:
            if not (root / "settings.json").is_file():
                raise FileNotFoundError(f"{root} is no folder of a cross-validation: it has no settings.json.")
        described = [read_settings(root) for root in roots]
        found = [{**one["settings"], **one.get("values", {})} for one in described]
        shared = {key: value for key, value in found[0].items() if all(one.get(key) == value for one in found)}
        own = {
            f"{one['method']}, setting {one['setting']}: {key}": value
            for one in found
            for key, value in one.items()
            if key not in shared and key not in ("method", "setting")
        }
        write_results(roots, Path(output_dir), title, {**own, **shared}, switch(pictures))


def _units(root: Path, workflow: Workflow, folds: Sequence[int], seeds: Sequence[int]) -> Iterator[Unit]:
    """Return all units, after a look at the data: a fold that cannot be is said before any work."""
    annotated = [scan for scan in list_scans(workflow.get("dataset_dir")) if "label" in scan]
    scans = {fold: len(fold_of(annotated, fold, NUM_FOLDS)[0]) for fold in folds}
    for seed in seeds:
        for group, organs in _groups(workflow).items():
            for fold in folds:
                yield Unit(root, group, organs, fold, seed, scans[fold])


def _check_weights(trained: Path, units: Sequence[Unit]) -> None:
    """Refuse a run whose weights are not there, before any work."""
    missing = [unit.name for unit in units if not (trained / unit.name / "model.pt").is_file()]
    if missing:
        raise FileNotFoundError(
            f"weights_of {trained} has no model.pt of {', '.join(missing)}. Give the output folder of a finished "
            "cross-validation with these folds, seeds and this setting."
        )


def _groups(workflow: Workflow) -> dict[str, dict[str, int]]:
    """Return the organs that are evaluated together, by the group's name; all together in setting 1."""
    organs, groups = dict(workflow.get("organs")), workflow.get("groups")
    if workflow.get("setting") == 1:
        return {"": organs}
    if not groups:
        raise ValueError(
            "setting 2 needs groups of test organs in the config, such as groups: {kidneys: [right_kidney, "
            "left_kidney]}: each group is left out of a training of its own."
        )
    if unknown := [name for names in groups.values() for name in names if name not in organs]:
        raise ValueError(f"groups must name organs ({', '.join(organs)}), got {', '.join(unknown)}.")
    return {group: {name: organs[name] for name in names} for group, names in groups.items()}


def _work(workflow: Workflow, units: Sequence[Unit], jobs: int, method: str) -> list[Unit]:
    """Run the units that are not done, ``jobs`` at a time, with a bar of all steps; return those that failed."""
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
    """Show how many training steps are made and scans of evaluations segmented, until all are done."""
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
        raise ValueError(f"folds and seeds must be whole numbers, such as 0 or [0,1], got {value!r}.")
    return list(dict.fromkeys(numbers))
