"""A store that several modules' tests share."""

import shutil

import pytest

from wq.study.store.tracking import Store


@pytest.fixture(scope="session")
def database(tmp_path_factory, empty_store):
    """One SQLite file for all tests."""
    return shutil.copy(empty_store, tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(database, request):
    """An experiment of its own for each test."""
    return Store(f"sqlite:///{database}", f"{request.module.__name__} {request.node.name}")
