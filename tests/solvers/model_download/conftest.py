import pytest

from tests.solvers.model_download.instances import TINY, Instance


@pytest.fixture(params=TINY, ids=lambda instance: instance.name, scope="session")
def tiny(request: pytest.FixtureRequest) -> Instance:
    """Every tiny instance in turn."""
    return request.param
