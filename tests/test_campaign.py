"""A small fixed draw of the fault campaign (`make campaign`), and that it would notice a fault."""

from pathlib import Path

import pytest

from scripts import campaign


@pytest.mark.slow
def test_a_small_draw_survives(capsys: pytest.CaptureFixture[str]) -> None:
    quick = "training, (kill|a damaged)|index build, kill|publish to a folder, kill|push, a broken"
    assert campaign.main(["--draws", "1", "--seed", "0", "--only", quick]) == 0
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[tried.strip(), survived.strip()] for _, tried, survived in rows] == [["1", "1"]] * 5


def test_what_does_not_survive_is_told_with_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign.Draw, "run", lambda *_: 0)
    part = campaign.Part("a part", lambda draw: [], lambda draw: "other bytes", seconds=1.0, expected="the bytes")
    part.draw(tmp_path, seed=7)
    assert part.failed == ["seed 7: other bytes is not the bytes"] and not part.survived
