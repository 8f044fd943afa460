"""A store that several modules' tests share."""

import pytest

from wq.study.store.tracking import Store


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """One SQLite file for all tests, as its schema takes seconds to make."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture
def store(database, request):
    """An experiment of its own for each test."""
    return Store(f"sqlite:///{database}", f"{request.module.__name__} {request.node.name}")
