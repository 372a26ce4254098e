import pytest
from helpers.data_sets import write_photos


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data_root={write_photos(tmp_path_factory.mktemp('launching') / 'data')}"
