"""What is kept is computed once, is the same when it is read, and a damaged file is made again."""

import pandas as pd
import pytest
from library import refused

from kedit_lib.data.atomic import cached


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None]}, 1e-05, "Zoë"])
def test_a_value_is_computed_once(tmp_path, value):
    path, calls = tmp_path / "new folder" / "value.json", []
    for _ in range(2):
        assert cached(path, lambda: calls.append(1) or value) == value
    assert len(calls) == 1
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


def test_a_table_is_the_same_the_first_time_and_later(tmp_path):
    table = pd.DataFrame({"x": [1.5, float("nan")], "name": ["a", None]})
    first = cached(tmp_path / "t.parquet", lambda: table)
    pd.testing.assert_frame_equal(first, cached(tmp_path / "t.parquet", lambda: 1 / 0))
    pd.testing.assert_frame_equal(first, table, check_dtype=False)
    cached(tmp_path / "own.parquet", lambda: table, lambda t, path: t.assign(y=2).to_parquet(path))  # written its way
    assert list(cached(tmp_path / "own.parquet", lambda: None).columns) == ["x", "name", "y"]


@pytest.mark.parametrize("name", ["value.json", "value.parquet"])
def test_a_damaged_file_is_made_again(tmp_path, name):
    (tmp_path / name).write_bytes(b"{half")
    table = pd.DataFrame({"x": [1]})
    found = cached(tmp_path / name, lambda: table if name.endswith("parquet") else 7)
    assert found.equals(table) if name.endswith("parquet") else found == 7


def test_nothing_is_kept_without_a_path_or_after_an_error(tmp_path):
    assert cached(None, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        cached(tmp_path / "a.json", lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    refused(lambda: cached(tmp_path / "file" / "a.json", lambda: 1), "cannot be written")
