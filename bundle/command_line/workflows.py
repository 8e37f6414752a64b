"""The workflows of the configs, run by name: config files and keys -> checks -> MONAI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.command_line.command import check_merged, refuse_unknown_keys
from bundle.command_line.configs import ROOT, config_path, config_paths, read_config
from bundle.command_line.values import check_literals, refuse_bare
from bundle.command_line.words import Words, read_words

TAKEN_BY_MONAI = ("meta_file", "logging_file", "tracking")
CHOSEN_BY_THE_VERB = ("config_file", "run_id", "init_id", "final_id", "workflow_name", "workflow_type")

USAGE = """{name}: {summary}

    python -m bundle {name} --key value ...

Every key of the config can be set, and so can its parts, such as --train#trainer#max_epochs 3. Further config files
override the first one, by name or path:

    --configs data_sabs_ct,preset_fast_cpu     (--data is the same, and is read first)

Config files: {files}. Their main keys:
"""


@dataclass(frozen=True)
class Workflow:
    """A workflow of the shipped configs.

    Attributes:
        summary: What it does, in a line.
        first: The config that it reads first.
        last: The config that it reads after all others, if any.
        run_id: The part of the config that is run.
    """

    summary: str
    first: str
    run_id: str
    last: str | None = None

    def help(self, name: str) -> str:
        """Return the help text: the main keys of the config, each with its comment."""
        files = [config_path(file) for file in (self.first, self.last) if file]
        usage = USAGE.format(name=name, summary=self.summary, files=", ".join(path.name for path in files))
        return "\n".join([usage, *(_keys_to_set(path) for path in files)])

    def run(self, name: str, words: Sequence[str]) -> None:
        """Check a command, and run it.

        Raises:
            ValueError: If the command or a config is wrong, before any work.
        """
        given = read_words(words)
        keys = _given_keys(name, given)
        overrides = config_paths(keys.pop("data", None), keys.pop("configs", None))
        files = [*config_paths(self.first), *overrides, *config_paths(self.last)]
        refuse_unknown_keys(files, keys, TAKEN_BY_MONAI)
        refuse_bare(given.bare)
        check_literals(keys)
        for key, value in self._places(overrides).items():
            keys.setdefault(key, value)
        from bundle.command_line.quick_monai import ConfigWorkflow  # importing MONAI takes seconds

        check_merged(files, {key: value for key, value in keys.items() if key not in TAKEN_BY_MONAI})
        keys.update(_left_out(keys))
        workflow = ConfigWorkflow([str(path) for path in files], run_id=self.run_id, **keys)
        workflow.initialize()
        workflow.run()
        workflow.finalize()

    def _places(self, overrides: Sequence[Path]) -> dict[str, Any]:
        """Return the folders of a command: it reads the installed bundle, and writes to the working folder."""
        output_dir = read_config(config_path(self.first))["output_dir"].replace("@results_root", "'.'")
        taken = {key for path in overrides for key in read_config(path)}
        places = {"bundle_root": str(ROOT), "output_dir": output_dir}
        return {key: place for key, place in places.items() if key not in taken}


def _left_out(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of the config that a command does not build: a dry run reads headers, and needs no network.

    One that resumes does, since masks of other weights are not finished ones.
    """
    dry, resumed = (str(keys.get(key, False)).lower() == "true" for key in ("dry_run", "resume"))
    parts = ("network_def", "network") if dry and not resumed else ()
    return {f"{part}::_disabled_": True for part in parts}


def _given_keys(name: str, words: Words) -> dict[str, Any]:
    """Return the keys of a command, and those of its ``--args_file`` that it does not set itself."""
    if words.plain:
        raise ValueError(
            f"{str(words.plain[0])!r} belongs to no key. Write --key value, such as --dataset_dir <folder>."
        )
    refuse_bare(words.bare & {"data", "configs", "args_file"})
    keys = dict(words.keys)
    if "args_file" in keys:
        keys = read_config(Path(str(keys.pop("args_file")))) | keys
    for key in CHOSEN_BY_THE_VERB:
        if key in keys:
            raise ValueError(
                f"--{key} is set by {name} itself. Add config files with --configs <name or path>, or use "
                "python -m monai.bundle run."
            )
    for key in TAKEN_BY_MONAI:
        value = keys.get(key)
        if value is not None and not isinstance(value, Mapping) and value not in (False, "mlflow"):
            _check_file(key, value)
    return keys


def _check_file(key: str, value: Any) -> None:
    """Refuse a missing file: MONAI would ignore that some are missing."""
    if not isinstance(value, str) or not Path(value).is_file():
        raise ValueError(f"--{key} must be an existing file, got {value!r}. Correct the path, or leave it out.")


def _keys_to_set(path: Path) -> str:
    """Return the main keys of a config with their comments: the lines between its header and its paths."""
    lines = path.read_text(encoding="utf-8").split("# --- paths")[0].splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith("# --- set these")), None)
    if start is None:  # a short config: the lines after its header
        start = next(place for place, line in enumerate(lines) if line and not line.startswith("#"))
    return "\n".join(lines[start:]).rstrip()
