"""A folder of parquet files."""

import pytest

from .images import FILES, ROWS_PER_FILE, png, write_parquet


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("parquet"), [png(i) for i in range(FILES * ROWS_PER_FILE)])
