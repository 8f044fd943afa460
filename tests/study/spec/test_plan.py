"""A plan gives every layer a format of its own; the settings of one format are the short way to write one."""

import pytest

from wq.study.spec.composition import compose
from wq.study.spec.config import ConfigurationError
from wq.study.spec.resolution import DEFAULT_FORMAT, resolve_treatment


def resolved(*arguments):
    (config,) = compose([*arguments])
    return resolve_treatment(config)


def layers(*entries: str) -> str:
    return f"plan.layers=[{','.join(entries)}]"


@pytest.mark.parametrize(
    ("short", "entries"),
    [
        ("format=int4 group=32", ["{roles:[encoder,decoder],format:int4,group:32}"]),
        ("format=int4", ["{roles:[encoder],format:int4}", "{roles:[decoder],format:int4}"]),
        (
            "format=nvfp4 decoder_format=int8 granularity=group",
            ["{roles:[decoder],format:int8}", "{roles:[encoder],format:nvfp4}"],
        ),
        (
            "format=int8 granularity=channel roles=[encoder.mlp]",
            ["{roles:[encoder.mlp],format:int8,granularity:channel}"],
        ),
        (
            "format=mxfp4 format.scale_rule=even",
            ["{roles:[encoder,decoder],format:mxfp4,options:{scale_rule:even}}"],
        ),
        ("format=fp32", ["{roles:[encoder,decoder],format:fp32}"]),
    ],
)
def test_a_plan_is_the_same_treatment_as_its_short_way(short, entries):
    assert resolved(layers(*entries)).treatment == resolved(*short.split()).treatment


def test_layers_of_single_blocks_may_differ():
    plan = resolved(
        layers("{roles:['encoder.mlp.fc1:0'],format:int8}", "{roles:['encoder.mlp.fc1:1'],format:int4}")
    ).treatment.plan
    assert [(each.quantizer.format.name, each.roles) for each in plan] == [
        ("int8", ("encoder.mlp.fc1:0",)),
        ("int4", ("encoder.mlp.fc1:1",)),
    ]


def test_what_a_plan_takes_the_place_of_is_told():
    given = "plan=mlp_int4 format=int3 group=64 granularity=tensor roles=[decoder] decoder_format=nf4"
    assert resolved(*given.split()).ignored == (
        *("format=int3", "granularity=tensor", "group=64", "roles=[decoder]", "decoder_format=nf4"),
    )
    assert resolved("plan=mlp_int4").ignored == ()
    assert resolved(layers("{roles:[encoder],format:int8,granularity:channel,group:7}")).ignored == (
        "plan.layers.group=7",
    )
    assert compose([])[0].format.name == DEFAULT_FORMAT


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["{roles:[encoder],format:int8}", "{roles:[encoder.mlp],format:int4}"], "encoder.mlp.fc1 twice"),
        (["{roles:[encodr],format:int8}"], "role encodr matches no layer"),
        (["{roles:[encoder],format:int44}"], "plan.layers: format=int44 is unknown"),
        (["{roles:[encoder],format:int4,granularity:row}"], "plan.layers.granularity=row is unknown"),
        (["{roles:[encoder],format:int4,group:0}"], "plan.layers.group=0 must be at least 1"),
        (["{format:int4}"], "roles is missing"),
        ([], r"plan.layers=\[\] selects nothing"),
    ],
)
def test_what_is_no_plan_is_refused(entries, said):
    with pytest.raises(ConfigurationError, match=said):
        resolved(layers(*entries))
