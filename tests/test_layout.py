"""The rules of the tree: which room may import which, and what answers at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "wq"

FLOORS = {
    # floor: what of wq and of the outside it may import
    "numerics": ({"numerics", "caches"}, {"torch", "triton"}),
    "whisper": (
        {"whisper", "numerics", "hub", "caches", "outputs"},
        {"torch", "transformers", "numpy", "safetensors", "tqdm", "huggingface_hub"},
    ),
}

# The rooms of a floor from the ground up: each may import those before it, and none after
ROOMS = {
    "whisper": ("checkpoint", "layers", "decoding", "calibration", "methods", "export"),
    "study": ("spec", "speech", "score", "store", "resources", "compare", "report", "job", "grid"),
}
MOST_FILES = 12


def imports(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide which room is meant"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= names if str(node.module).startswith("wq") else {str(node.module)}
    return modules


def files(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py"))


def rooms_of(module: str, floor: str) -> str | None:
    """The room of this floor that a module lies in."""
    top, *rest = module.split(".")
    return rest[1] if top == "wq" and rest[:1] == [floor] and len(rest) > 1 else None


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_import_one_way(floor):
    rooms, libraries = FLOORS[floor]
    assert files(SOURCE / floor)
    for file in files(SOURCE / floor):
        for module in imports(file):
            top, *rest = module.split(".")
            allowed = (
                (rest and rest[0] in rooms)
                if top == "wq"
                else top in libraries or top in sys.stdlib_module_names
            )
            assert allowed, f"{file.relative_to(SOURCE)} imports {module}, which the floor {floor} may not"


@pytest.mark.parametrize("floor", ROOMS)
def test_rooms_import_one_way(floor):
    order = ROOMS[floor]
    assert {path.name for path in (SOURCE / floor).iterdir() if path.is_dir() and path.name[0] != "_"} == {
        *order
    }
    for height, room in enumerate(order):
        for file in files(SOURCE / floor / room):
            for module in imports(file):
                other = rooms_of(module, floor)
                assert other is None or other in order[: height + 1], (
                    f"{file.relative_to(SOURCE)} imports {module}, from a room above {room}"
                )


@pytest.mark.parametrize("floor", ROOMS)
def test_a_room_says_what_it_answers_and_is_no_hall(floor):
    for room in ROOMS[floor]:
        docstring = ast.get_docstring(ast.parse((SOURCE / floor / room / "__init__.py").read_text()))
        assert docstring, room
        assert docstring.endswith("?"), f"{room}: {docstring}"
        assert len(files(SOURCE / floor / room)) - 1 <= MOST_FILES, room


def test_no_files_import_each_other_in_a_circle():
    names = {
        ".".join(("wq", *file.relative_to(SOURCE).with_suffix("").parts)): file for file in files(SOURCE)
    }
    reached = {
        name: {
            other
            for module in imports(file)
            for other in (module, module.rpartition(".")[0])
            if other in names and other != name
        }
        for name, file in names.items()
    }
    while True:  # leave out whatever imports nothing that is left: what stays is in a circle, or above one
        leaves = {name for name, others in reached.items() if not others & reached.keys()}
        if not leaves:
            break
        reached = {name: others for name, others in reached.items() if name not in leaves}
    assert not reached


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


@pytest.mark.parametrize(
    "module", ["wq", "wq.main", "wq.study.spec.composition", "wq.study.grid.grid", "wq.console"]
)
def test_answers_need_no_heavy_import(module):
    heavy = ("torch", "transformers", "mlflow", "datasets", "evaluate", "altair", "pandas")
    script = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_no_generated_config_group_shadows_the_group_size():
    """A folder conf/group would make Hydra take group=32 for a config group."""
    assert not (SOURCE.parents[1] / "conf" / "group").exists()
