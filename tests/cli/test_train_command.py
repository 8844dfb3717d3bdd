"""tinybert train: what it sets before torch is loaded."""

import os

import pytest

from tinybert_hf.cli import main


@pytest.mark.parametrize("stage", ["sentiment", "retrieval"])
@pytest.mark.parametrize(("chosen", "expected"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_the_user_chose(
    stage: str, chosen: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "to be set back")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if chosen:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    with pytest.raises(SystemExit):
        main(["train", stage, "--data", "there-is-no-such-file.csv"])
    assert os.environ["OMP_WAIT_POLICY"] == expected
