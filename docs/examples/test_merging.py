from __future__ import annotations

import socket

import pytest

pytestmark = pytest.mark.crate(memory="128m", hostname="module")


def test_from_the_module():
    assert socket.gethostname() == "module"


@pytest.mark.crate(hostname="class")
class TestReport:
    def test_from_the_class(self):
        assert socket.gethostname() == "class"

    @pytest.mark.crate(hostname="function", timeout=10)
    def test_from_the_function(self):
        assert socket.gethostname() == "function"
