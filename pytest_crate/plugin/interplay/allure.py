"""Brings home what a test adds to its Allure result: steps, attachments, labels, parameters, its fixtures."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.plugin import transfer
from pytest_crate.plugin.interplay.adapter import Adapter, expect, from_bytes, to_bytes
from pytest_crate.plugin.interplay.inert import verify_no_tests

# An extension that is a name's end by which Allure knows what is no attachment would make a result of any test's of it.
_ATTACHMENT = re.compile(
    r"[0-9a-f-]{36}-attachment\.(?!.*-(?:result|container|globals)\.json$)[\w.-]{1,50}", re.ASCII | re.IGNORECASE
)
_ADDED = ("add_label", "add_link")
# The fields of Allure's model that hold others of its classes (allure_commons.model2).
_PARTS = {
    "steps": "TestStepResult",
    "attachments": "Attachment",
    "parameters": "Parameter",
    "befores": "TestBeforeResult",
    "afters": "TestAfterResult",
    "links": "Link",
    "statusDetails": "StatusDetails",
}
_FIELDS = ("name", "description", "descriptionHtml", "steps", "attachments", "parameters", "status", "statusDetails")


def adapter(config: pytest.Config) -> Adapter | None:
    listener = config.pluginmanager.get_plugin("allure_listener")
    return None if listener is None else _Results(listener)


class _Results(Adapter):
    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._noted: Any = None

    def shares(self, item: pytest.Item) -> bool:
        return False

    def brings_much(self, item: pytest.Item) -> bool:
        return True

    def child_starts(self, item: pytest.Item) -> None:
        commons: Any = sys.modules["allure_commons"]
        for name in _Noted.HOOKS:
            commons.hookimpl(getattr(_Noted, name))
        self._noted = _Noted()
        commons.plugin_manager.register(self._noted)
        # What is noted is written by pytest's process, into a directory that need not be there in a crate.
        for plugin in commons.plugin_manager.get_plugins():
            if isinstance(plugin, sys.modules["allure_commons.logger"].AllureFileLogger):
                commons.plugin_manager.unregister(plugin)
        # pytest's process attaches what was captured, with the report that it gets.
        item.config.option.attach_capture = False

    def take(self, item: pytest.Item) -> Any:
        result = self._listener.allure_logger.get_test(None)
        if result is None:
            return None
        return {"result": {name: _packed(getattr(result, name)) for name in _FIELDS}, **self._noted.noted}

    def give(self, item: pytest.Item, data: Any) -> None:
        commons: Any = sys.modules["allure_commons"]
        model: Any = sys.modules["allure_commons.model2"]
        hook = commons.plugin_manager.hook
        result = self._listener.allure_logger.get_test(None)
        # Allure writes its files as UTF-8: what can't be so would end the run.
        told, added, containers = (transfer.encodable(data[name]) for name in ("result", "added", "containers"))
        for name, value in expect(told, dict).items():
            if name not in _FIELDS:
                raise ValueError(f"{name!r} is not a test's to say")
            setattr(result, name, _unpacked(name, value))
        for name, arguments in expect(added, list):
            if name not in _ADDED:
                raise ValueError(f"{name!r} is not a test's to do")
            getattr(self._listener, name)(**expect(arguments, dict))
        for name, body in expect(data["attached"], dict).items():
            if not _ATTACHMENT.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an attachment")
            attached = to_bytes(expect(body, str))
            # Its extension is the test's own word: x_test.py makes a module of tests of it.
            verify_no_tests(item, Path(item.config.getoption("allure_report_dir")).absolute() / name, attached)
            hook.report_attached_data(body=attached, file_name=name)
        for fields in expect(containers, list):
            made = {name: _unpacked(name, value) for name, value in expect(fields, dict).items()}
            hook.report_container(container=model.TestResultContainer(**made))


class _Noted:
    """A plugin of Allure's: notes what a test adds."""

    HOOKS = (*_ADDED, "report_attached_data", "report_attached_file", "report_container")

    def __init__(self) -> None:
        self.noted: dict[str, Any] = {"added": [], "attached": {}, "containers": []}

    def add_label(self, label_type: Any, labels: Any) -> None:
        # A severity is a member of an enumeration of texts.
        added = {"label_type": str(label_type), "labels": [str(getattr(label, "value", label)) for label in labels]}
        self.noted["added"].append(["add_label", added])

    def add_link(self, url: Any, link_type: Any, name: Any) -> None:
        self.noted["added"].append(["add_link", {"url": str(url), "link_type": str(link_type), "name": name}])

    def report_attached_data(self, body: Any, file_name: str) -> None:
        self.noted["attached"][file_name] = from_bytes(body.encode() if isinstance(body, str) else body)

    def report_attached_file(self, source: Any, file_name: str) -> None:
        with open(source, "rb") as file:
            self.noted["attached"][file_name] = from_bytes(file.read())

    def report_container(self, container: Any) -> None:
        self.noted["containers"].append(_packed(container))


def _packed(value: Any) -> Any:
    """Return objects of Allure's model as builtins."""
    if isinstance(value, list):
        return [_packed(each) for each in value]
    if hasattr(type(value), "__attrs_attrs__"):
        return {name: _packed(each) for name, each in vars(value).items()}
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _unpacked(name: str, value: Any) -> Any:
    """Return a field's value, with objects of the classes that belong into it."""
    if isinstance(value, list):
        return [_unpacked(name, each) for each in value]
    if isinstance(value, dict):
        kind = getattr(sys.modules["allure_commons.model2"], _PARTS[name])
        return kind(**{inner: _unpacked(inner, each) for inner, each in value.items()})
    return value
