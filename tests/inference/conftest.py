"""Each command in turn, and its model."""

import pytest

from tests.support.commands import COMMANDS


@pytest.fixture(params=COMMANDS)
def command(request):
    return COMMANDS[request.param]


@pytest.fixture
def model(command):
    return command.model()
