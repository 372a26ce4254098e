import pytest
from helpers.small_run import write_data_set


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data_root={write_data_set(tmp_path_factory.mktemp('launching') / 'data')}"
