"""Order of the test files: two workers take whole files, so the longest ones start first."""

from __future__ import annotations

import pytest

#: Files that take more than 15 s. Left to the end, one worker would wait for the other.
LONG = (
    "test_study_run.py", "test_docs.py", "test_agreement.py", "test_study_engines.py",
    "test_solving.py", "test_worker.py", "test_docs_formulations.py", "test_packaging.py",
    "test_simulate_sampled_instance.py", "test_cli.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the long files to the front; the order is kept otherwise."""
    rank = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG)))
