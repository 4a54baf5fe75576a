"""Which results a path means: written with links, from another folder."""

from pathlib import Path

import pytest

from passionsr.report.places import locate_table, results_name
from passionsr.utils.files import UserError


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with results/mini; elsewhere: a folder that is none."""
    for folder in ("repo/config", "repo/results/mini/tables", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "repo/config/mini.yaml").write_text("")
    (tmp_path / "repo/results/mini/tables/table2.csv").write_text("")
    monkeypatch.chdir(tmp_path / "repo")
    return tmp_path / "repo"


TABLE = "results/mini/tables/table2.csv"


def found(path, config=None):
    return locate_table(Path(path), config)


def test_from_any_folder(checkout, monkeypatch):
    assert found(TABLE) == (checkout, checkout / TABLE)
    monkeypatch.chdir(checkout / "results" / "mini")
    assert found("tables/table2.csv") == (checkout, checkout / TABLE)
    monkeypatch.chdir(checkout.parent / "elsewhere")
    assert found(checkout / TABLE) == (checkout, checkout / TABLE)
    assert found(f"../repo/{TABLE}") == (checkout, checkout / TABLE)


def test_a_link_to_the_table(checkout, monkeypatch):
    monkeypatch.chdir(checkout.parent / "elsewhere")
    Path("t.csv").symlink_to(checkout / TABLE)
    assert found("t.csv") == (checkout, checkout / TABLE)


def test_a_table_that_links_to_a_cache(checkout):
    """As DVC's does with `cache.type symlink`: where it leads says nothing of the results."""
    table = checkout / TABLE
    table.rename(checkout / "0a1b2c")
    table.symlink_to(checkout / "0a1b2c")
    assert found(TABLE) == (checkout, table)


@pytest.mark.parametrize("moved", ["results", "results/mini", "results/mini/tables"])
def test_results_on_another_disk(checkout, moved):
    target = checkout.parent / "elsewhere" / "run7"
    (checkout / moved).rename(target)
    (checkout / moved).symlink_to(target)
    assert found(TABLE) == (checkout, checkout / TABLE)
    assert results_name(Path("results/mini")) == "mini"


def test_a_link_to_the_results(checkout):
    Path("latest").symlink_to("results/mini")
    assert found("latest/tables/table2.csv")[0] == checkout
    assert results_name(Path("latest")) == "mini"
    assert results_name(Path("results/mini/")) == "mini"


def test_a_configuration_of_another_name(checkout):
    Path("config/mini.yaml").unlink()
    assert found(TABLE, Path("mine.yaml")) == (checkout, checkout / TABLE)
    with pytest.raises(UserError, match=r"there is no config/mini\.yaml beside its results"):
        found(TABLE)
    with pytest.raises(UserError, match="give the table as results/<name>"):
        found("/t.csv")
