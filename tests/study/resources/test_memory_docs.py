"""docs/memory.md shows what its commands print."""

import importlib
import re

import pytest

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "memory.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n\$ wq (.+?)\n(.+?)\n```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "printed"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_blocks_are_what_their_commands_print(command, printed, capsys):
    name, *arguments = command.split()
    importlib.import_module(f"wq.commands.{name}").tell(arguments)
    assert capsys.readouterr().out.rstrip("\n") == printed


def test_there_are_blocks_of_every_command():
    assert {command.split()[0] for command, _ in BLOCKS} == {"size", "memory", "cost"}
