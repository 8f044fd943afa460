"""The rules of the tree: which room may import which, and what answers at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "wq"

ROOMS = {
    # room: what of wq and of the outside it may import
    "numerics": ({"numerics", "caches"}, {"torch", "triton"}),
    "whisper": (
        {"whisper", "numerics", "hub", "caches"},
        {"torch", "transformers", "numpy", "safetensors", "tqdm", "huggingface_hub"},
    ),
}


def imports(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide which room is meant"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= names if node.module == "wq" else {str(node.module)}
    return modules


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_one_way(room):
    rooms, libraries = ROOMS[room]
    files = sorted((SOURCE / room).rglob("*.py"))
    assert files
    for file in files:
        for module in imports(file):
            top, *rest = module.split(".")
            allowed = (
                (rest and rest[0] in rooms)
                if top == "wq"
                else top in libraries or top in sys.stdlib_module_names
            )
            assert allowed, f"{file.relative_to(SOURCE)} imports {module}, which the room {room} may not"


@pytest.mark.parametrize("library", ["hydra", "mlflow", "datasets", "jiwer", "evaluate", "altair", "triton"])
def test_each_framework_stays_behind_few_files(library):
    """hydra in composition, grid and main; every other framework behind one file."""
    users = [
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*.py")
        if any(module.split(".")[0] == library for module in imports(file))
    ]
    limit = {"hydra": 3}.get(library, 1)
    assert 1 <= len(users) <= limit, users


@pytest.mark.parametrize("module", ["wq", "wq.main", "wq.study.composition", "wq.study.grid", "wq.__main__"])
def test_answers_need_no_heavy_import(module):
    heavy = ("torch", "transformers", "mlflow", "datasets", "evaluate", "altair", "pandas")
    script = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_no_generated_config_group_shadows_the_group_size():
    """A folder conf/group would make Hydra take group=32 for a config group."""
    assert not (SOURCE.parents[1] / "conf" / "group").exists()
