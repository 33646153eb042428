import pytest

from tests.solvers.split_training.instances import TINY, Instance


@pytest.fixture(params=TINY, ids=lambda instance: instance.name, scope="session")
def tiny(request: pytest.FixtureRequest) -> Instance:
    """Every tiny instance in turn."""
    return request.param
