"""The exact bytes of quantized models, from their configurations alone."""

from typing import TYPE_CHECKING

from wq.console import run_command

if TYPE_CHECKING:
    from wq.study.resources.points import Point
    from wq.study.resources.size import Part

HELP = """usage: wq size [key=value ...]

How many bytes a quantized model takes: elements, scales, zero points, tensor scales. It needs no weights, so
it answers for models that are not here. It takes the settings of a job or a grid: python -m wq.main --help.

  wq size model=large_v3 format=nvfp4                 one point, role by role
  wq size model=large_v3 format=nvfp4 details=true    the same, layer by layer
  wq size model=tiny,large_v3 format=int4,nvfp4 group=32,128   a grid, one line for every point
  wq size ... csv=FILE                                every role, or layer, of every point as a table

MB are 10^6 bytes. What is not quantized is counted at fp16, in the fp32 reference at fp32."""

COLUMNS = (
    "parameters",
    "element_bits",
    "scale_bits",
    "zero_point_bits",
    "tensor_scale_bits",
    "ragged_groups",
    "bytes",
)


def main() -> None:
    run_command(tell, HELP)


def tell(arguments: list[str]) -> None:
    from wq.study.resources.points import compose_points, leave_table, split_settings, table_file, truth

    settings, overrides = split_settings(arguments, {"details": truth, "csv": table_file})
    details = settings.get("details", [False])[-1]
    points = compose_points(overrides)
    print(of_one(points[0], details) if len(points) == 1 else of_many(points))
    rows = (
        (*point.names, part.name, part.role, *(getattr(part, column) for column in COLUMNS))
        for point in points
        for part in (*parts(point, details), point.size.linear, point.size.whole)
    )
    leave_table(settings, ("model", "point", "name", "role", *COLUMNS), rows)


def parts(point: "Point", details: bool) -> "list[Part]":
    """Of every role, or of every layer; norms and biases are always summed up."""
    from wq.study.resources.size import REST_ROLES

    roles = point.size.by_role
    if not details:
        return list(roles.values())
    layers = [part for part in point.size.parts if part.role not in REST_ROLES]
    return layers + [roles[role] for role in REST_ROLES if role in roles]


def of_one(point: "Point", details: bool) -> str:
    from wq.study.resources.points import aligned

    listed = parts(point, details)
    size = point.size
    shown = [column for column in COLUMNS if any(getattr(part, column) for part in listed)]
    rows = [
        (part.name, *(getattr(part, column) for column in shown), f"{part.bits_per_weight:.4f}")
        for part in (*listed, size.linear, size.whole)
    ]
    header = ("", *(column.replace("_", " ") for column in shown), "bits/weight")
    return (
        f"{' '.join(point.names)}\n{aligned(header, rows)}\n"
        f"linear layers {size.linear_bytes / 1e6:.2f} MB, whole checkpoint {size.model_bytes / 1e6:.2f} MB, "
        f"{size.compression_ratio:.3f} times smaller than at fp16"
    )


def of_many(points: "list[Point]") -> str:
    from wq.study.resources.points import aligned

    header = ("model", "point", "linear MB", "bits/weight", "whole MB", "bits/weight", "against fp16")
    rows = [
        (
            *point.names,
            f"{point.size.linear_bytes / 1e6:.2f}",
            f"{point.size.bits_per_weight:.4f}",
            f"{point.size.model_bytes / 1e6:.2f}",
            f"{point.size.whole.bits_per_weight:.4f}",
            f"{point.size.compression_ratio:.3f}",
        )
        for point in points
    ]
    return aligned(header, rows)
