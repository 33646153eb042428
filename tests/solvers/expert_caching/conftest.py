import pytest

from tests.solvers.expert_caching.instances import TINY
from tests.solvers.tiny import Tiny


@pytest.fixture(params=TINY, ids=lambda instance: instance.name, scope="session")
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Every tiny instance in turn."""
    return request.param
