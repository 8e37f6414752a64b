"""The wheel: whole, the same from a checkout and from an sdist, and of use in an empty environment elsewhere."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from bundle import root
from bundle.data.phantoms import write_phantoms
from tests.packaging.installed import ROOT, Environment, build, copy_of_the_checkout, install, unpacked

pytestmark = pytest.mark.slow

SMOKE = ("--data", "smoke")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_checkout(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install(wheel, tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def workplace(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder elsewhere, in which the installed bundle has learned from the phantom."""
    folder = tmp_path_factory.mktemp("workplace")
    done = environment.run("alpnet", "training", *SMOKE, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}


def files_of(package: Path) -> set[Path]:
    return {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def support_of(workplace: Path) -> tuple[str, ...]:
    phantom = workplace / "eval" / "phantom"
    files = phantom / "images" / "phantom_02.nii.gz", phantom / "labels" / "phantom_02.nii.gz"
    return "--support_image", str(files[0]), "--support_label", str(files[1])


def test_the_wheel_has_configs_weights_metadata_and_types(wheel: Path) -> None:
    found = contents(wheel)
    configs = {f"bundle/shipped/configs/{path.name}" for path in (ROOT / "configs").iterdir() if path.is_file()}
    assert configs | {"bundle/shipped/models/model.pt", "bundle/py.typed"} <= set(found)
    modules = {str(path.relative_to(ROOT).as_posix()) for path in (ROOT / "bundle").rglob("*.py")}
    assert modules <= set(found)
    assert found["bundle/shipped/models/model.pt"] == (ROOT / "models" / "model.pt").read_bytes()


def test_the_wheel_names_its_project_pages(wheel: Path) -> None:
    metadata = next(text for name, text in contents(wheel).items() if name.endswith("METADATA")).decode()
    assert "Project-URL: Paper, https://arxiv.org/abs/2007.09886" in metadata


def test_an_sdist_builds_the_same_wheel(wheel: Path, source: Path, tmp_path: Path) -> None:
    sdist = build("sdist", source, tmp_path / "sdist")
    again = build("wheel", unpacked(sdist, tmp_path / "unpacked"), tmp_path / "wheel")
    assert contents(again) == contents(wheel)


def test_an_installed_training_writes_to_the_working_folder(environment: Environment, workplace: Path) -> None:
    assert (workplace / "eval" / "model.pt").is_file()
    before = files_of(environment.package)
    done = environment.run("-m", "bundle", "training", *SMOKE, "--output_dir", "other", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert (workplace / "other" / "model.pt").is_file()
    assert files_of(environment.package) == before
    assert not (environment.package.parent / "eval").exists()


def test_an_installed_bundle_segments_with_the_shipped_weights(environment: Environment, workplace: Path) -> None:
    keys = ("--output_dir", "masks", "--slice_size", "[64,64]")
    words = ("--dataset_dir", "eval/phantom", *support_of(workplace), *keys)
    done = environment.run("-m", "bundle", "inference", *words, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert (workplace / "masks" / "masks" / "phantom_03.nii.gz").is_file()


def test_an_installed_bundle_ranks_scans(environment: Environment, workplace: Path) -> None:
    words = ("--dataset_dir", "eval/phantom", "--checkpoint", "eval/model.pt", "--output_dir", "ranking")
    done = environment.run("-m", "bundle", "ranking", *SMOKE, *words, *support_of(workplace), cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert (workplace / "ranking" / "next_scan.csv").is_file()


def test_an_installed_bundle_exports(environment: Environment, workplace: Path) -> None:
    words = ("alpnet", "export", "encoder", "--format", "torchscript", "--output", "encoder.ts")
    done = environment.run(*words, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert (workplace / "encoder.ts").is_file()


def test_a_folder_of_the_user_with_the_name_of_the_package_changes_nothing(
    environment: Environment, tmp_path: Path
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    assert "segment scans" in environment.run("-m", "bundle", "--help", cwd=tmp_path).stdout


@pytest.fixture
def package_of_the_user(tmp_path: Path) -> Path:
    """A working folder with a package that has the name of ours: ``python -m bundle`` finds it first."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "__init__.py").write_text("raise RuntimeError('not this one')")
    return tmp_path


def test_beside_a_package_of_the_user_alpnet_trains_and_segments(
    environment: Environment, package_of_the_user: Path
) -> None:
    assert "not this one" in environment.run("-m", "bundle", "--help", cwd=package_of_the_user).stderr
    done = environment.run("alpnet", "training", *SMOKE, "--num_workers", "1", cwd=package_of_the_user)
    assert done.returncode == 0, done.stderr
    words = ("--dataset_dir", "eval/phantom", *support_of(package_of_the_user))
    done = environment.run("alpnet", "inference", *SMOKE, *words, cwd=package_of_the_user)
    assert done.returncode == 0, done.stderr
    assert (package_of_the_user / "eval" / "inference" / "masks" / "phantom_03.nii.gz").is_file()


def test_beside_a_package_of_the_user_the_processes_of_alpnet_find_their_own(
    environment: Environment, package_of_the_user: Path
) -> None:
    write_phantoms(package_of_the_user / "study", unlabeled=0, labeled=6, size=(64, 64, 6))
    words = ("--dataset_dir", "study", "--folds", "0", "--untrained", "true", "--output_dir", "folds")
    done = environment.run("alpnet", "cross_validation", "run", "--configs", "smoke", *words, cwd=package_of_the_user)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (package_of_the_user / "folds" / "table.md").is_file()


def test_a_checkout_has_its_configs_beside_the_package() -> None:
    assert root.bundle_root() == root.import_root() == ROOT


def test_results_go_into_the_folder_of_a_bundle_that_is_not_installed(tmp_path: Path) -> None:
    assert root.results_root(str(tmp_path)) == str(tmp_path)


def test_an_installed_package_has_its_configs_inside(environment: Environment, tmp_path: Path) -> None:
    done = environment.run("-c", "from bundle.root import bundle_root; print(bundle_root())", cwd=tmp_path)
    assert Path(done.stdout.strip()) == environment.package / "shipped"
